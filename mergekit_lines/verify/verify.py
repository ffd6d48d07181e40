"""A merged model's tensors, recomputed in float64 from its report and the merge's inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from tqdm import tqdm

from mergekit_lines.checkpoint.headers import read_headers
from mergekit_lines.checkpoint.remote.downloads import files_from_hub, hub_models
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.engine.workers import Workers
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.files import REPORT
from mergekit_lines.host.process import one_thread
from mergekit_lines.host.state import ONE_AT_A_TIME, fresh_caches
from mergekit_lines.plan.inputs import check_models
from mergekit_lines.plan.opening import open_model, open_models
from mergekit_lines.plan.planned import MergeRun, PlannedTensor
from mergekit_lines.plan.prepare import prepare
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.reading import one_document
from mergekit_lines.report.file import read_report, reported_readings
from mergekit_lines.report.fingerprints import changed_files, changed_input
from mergekit_lines.verify.checker import Checker, Stored
from mergekit_lines.verify.cuts import Cuts
from mergekit_lines.verify.exact import ExactInputs
from mergekit_lines.verify.sample import Choice, choose
from mergekit_lines.verify.tiers import check_tiers
from mergekit_lines.verify.verdict import Verdict

# Keys of a recipe whose values name models.
_MODEL_KEYS = {"base_model", "model", "source", "tokenizer_source"}


@hub_session()
def verify(out: Path, choice: Choice) -> Verdict:
    """Recompute tensors of the merged model in ``out``; nothing is written.

    Raises:
        LinesError: the report, a shard or an input is not what it was when the model was merged.
    """
    report = read_report(out)
    _check_output(out, report, strict=choice.strict)
    config, names = _recipe(report, choice.moved)
    options = _options(report, choice)
    problems = check_recipe(config, None, options, report["recipe"]) + check_models(config, options)
    if problems:
        raise LinesError(problems)
    run = replace(MergeRun.of(config, options), seed=report["seed"])
    with ONE_AT_A_TIME, one_thread(), ExitStack() as stack:
        # Before the plan, which would say of a changed model only that it does not fit.
        here = {model: name for model, name in names.items() if Path(model.model.path).exists()}
        with fresh_caches():
            _check_inputs(report, here, options, strict=choice.strict)
        with fresh_caches():
            prepared = prepare(config, options, run)
        planned = prepared.planned
        stack.enter_context(fresh_caches())
        stack.enter_context(files_from_hub(hub_models(prepared.headers)))
        others = {model: name for model, name in names.items() if model not in here}
        _check_inputs(report, others, options, strict=choice.strict)
        copies = stack.enter_context(tempfile.TemporaryDirectory(prefix="mergekit-lines-"))
        models = open_models(config, options, Path(copies), stack)
        stored = Stored(out, stack)
        coefficients = _coefficients(report, planned, prepared.seed, stored)
        chosen = choose([item for item in planned if item.weight.name in stored.files], choice)
        verdict = Verdict(len(stored.files))
        inputs = ExactInputs(models, stack)
        workers = Workers()
        stack.callback(workers.close)
        cuts = Cuts.of(report)
        checker = Checker(inputs, prepared.seed, verdict, workers, cuts, names)
        checker.tied = tied_names(prepared.out_config, list(coefficients))
        for item in tqdm(chosen, desc="Verifying", unit="tensor", delay=2, disable=None):
            name = item.weight.name
            checker.check(item, coefficients[name], stored.tensor(name))
        if "larv" in report and len(chosen) == len(coefficients):
            check_tiers(report, planned, inputs)
        elif "larv" in report:
            verdict.notes.append("the tiers of larv are the report's; --all finds them again")
    if cuts and len(chosen) == len(coefficients) and not verdict.skipped:
        cuts.check()
    elif cuts:
        verdict.notes.append("the cuts of trim: model are the report's; --all counts them again")
    verdict.notes += checker.notes()
    return verdict


def _options(report: Mapping[str, Any], choice: Choice) -> MergeOptions:
    # Architectures were compared before the merge; the digests tell whether these are they.
    return MergeOptions(
        quiet=True,
        allow_crimes=True,
        trust_remote_code=choice.trust_remote_code,
        lora_merge_dtype=report.get("lora_merge_dtype"),
    )


def _check_output(out: Path, report: Mapping[str, Any], *, strict: bool) -> None:
    """Refuse a folder whose shards are not those of the report.

    Raises:
        LinesError: names the shards.
    """
    if "output" not in report or "inputs" not in report:
        raise LinesError(
            f"{out / REPORT}: says nothing of files and inputs, wanted a report of mergekit-yaml "
            f"or of `mergekit-lines edit` on folders, of this version. Merge again to have one."
        )
    shards = report["output"]["shards"]
    if changed := changed_files(out, shards, contents=strict):
        raise LinesError(
            f"{out}: not the files that the merge wrote: {'; '.join(changed)}. Copy or download "
            f"the model again."
        )
    if more := {path.name for path in out.glob("*.safetensors")} - set(shards):
        raise LinesError(
            f"{out}: holds {some(more)} beside the shards of the merge, and a loader may take "
            f"them for part of the model. Remove what is not of this merge."
        )
    if problems := read_headers(out).problems:
        raise LinesError(problems)


def _recipe(
    report: Mapping[str, Any], moved: Mapping[str, str]
) -> tuple[MergeConfiguration, dict[ModelReference, str]]:
    """Return the report's recipe with its models where they are now, and the report's names."""
    document, original = _parsed(report["recipe"])
    paths = {path for model in original for path in _paths(model)}
    if unknown := set(moved) - paths:
        raise LinesError(
            f"--model {some(unknown)}: the recipe has no such model, wanted one of "
            f"{some(paths, 10)}."
        )
    places = {**_pinned(report, original), **moved}
    config = MergeConfiguration.model_validate(_replaced(document, places))
    models = models_in_order(config)
    if len(models) != len(original):
        raise LinesError("--model: gives one folder to two models, wanted one for each.")
    return config, {model: str(old) for model, old in zip(models, original, strict=True)}


def _parsed(recipe: str) -> tuple[dict[str, Any], list[ModelReference]]:
    """Return a recipe as it stands, and its models."""
    try:
        document = one_document(recipe)
        return document, models_in_order(MergeConfiguration.model_validate(document))
    except Exception as error:
        raise LinesError(
            f"{REPORT}: its recipe cannot be read ({reason(error)}). The report was edited; "
            f"restore it."
        ) from error


def _paths(model: ModelReference) -> list[str]:
    return [part.path for part in (model.model, model.lora) if part is not None]


def _pinned(report: Mapping[str, Any], models: Sequence[ModelReference]) -> dict[str, str]:
    """Return the models of the Hub with the commits that were merged."""
    places = {}
    for model in models:
        entry = report["inputs"].get(str(model), {})
        for part, facts in ((model.model, entry), (model.lora, entry.get("adapter", {}))):
            if part is not None and facts.get("revision"):
                places[part.path] = f"{part.path}@{facts['revision']}"
    return places


def _replaced(value: Any, places: Mapping[str, str], key: str = "") -> Any:
    """Return a recipe with other paths in the place of its models'."""
    if isinstance(value, dict):
        return {name: _replaced(entry, places, str(name)) for name, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, places, key) for entry in value]
    if not isinstance(value, str) or key not in _MODEL_KEYS:
        return value
    parts = [places.get(part.partition("@")[0], part) for part in value.split("+")]
    return "+".join(parts)


def _check_inputs(
    report: Mapping[str, Any],
    names: Mapping[ModelReference, str],
    options: MergeOptions,
    *,
    strict: bool,
) -> None:
    """Refuse inputs that are not those of the merge.

    Raises:
        LinesError: names models and files.
    """
    LoaderCache().setup(options=options)
    problems = []
    for model, name in names.items():
        open_model(ModelReference(model=model.model))
        if name not in report["inputs"]:
            problems.append(f"{REPORT}: its inputs lack {name}. The report was edited; restore it.")
        elif changed := changed_input(model, report["inputs"][name], contents=strict):
            problems.append(
                f"model {name}: not what was merged: {'; '.join(changed)}. Verify with the files "
                f"of the merge, or merge again."
            )
    if problems:
        raise LinesError(problems)


def _coefficients(
    report: Mapping[str, Any], planned: Sequence[PlannedTensor], seed: int, stored: Stored
) -> dict[str, float]:
    """Return λ of every tensor; what the weights gave, α for one, is the report's, no more of it.

    Raises:
        LinesError: the report's recipe does not give what else the report says.
    """
    items = {item.weight.name: item for item in planned}
    strange = [name for name in stored.files if name not in items]
    lost = [n for n, item in items.items() if n not in stored.files and not item.weight.optional]
    if strange or lost:
        raise LinesError(
            f"the merged model's tensors are not those of its recipe: {some(strange + lost, 3)} "
            f"should {'not ' if strange else ''}be there. Restore the report and the shards."
        )
    unlike = []
    if seed != report["seed"]:
        unlike.append("seed")
    if sorted({item.wrap for item in planned if item.wrap}) != report["wrap"]:
        unlike.append("wrap")
    try:
        readings = reported_readings(report)
        coefficients = {name: item.placed.coefficient(readings) for name, item in items.items()}
        blocks = {one["name"]: one["coefficients"] for one in report["containers"]}
        for name, item in items.items():
            place = item.placed.depth
            if place is None:
                reported = report["outside"][name]
            else:
                reported = blocks[place.container][place.index]
            if coefficients[name] not in (reported if isinstance(reported, list) else [reported]):
                unlike.append(f"the coefficient of {name}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise LinesError(
            f"{REPORT}: its coefficients are not those of its recipe ({reason(error)}). The report "
            f"was edited; restore it."
        ) from error
    if unlike:
        raise LinesError(
            f"{REPORT}: its recipe does not give {some(unlike, 3)} that it says. The report was "
            f"edited; restore it."
        )
    return coefficients
