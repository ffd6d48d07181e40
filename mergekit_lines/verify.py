"""A merged model's tensors, recomputed in float64 from its report and the merge's inputs."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.common import ModelReference, dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import GatherTensors, LoaderCache
from mergekit.options import MergeOptions
from safetensors import safe_open
from tqdm import tqdm

from mergekit_lines.checkpoint.headers import read_headers
from mergekit_lines.comparison import (
    Comparison,
    Merged,
    compare,
    compare_equal,
    compare_whole,
    uses_draws,
)
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.exact import Exact, ExactInputs
from mergekit_lines.fingerprints import changed_files, changed_input
from mergekit_lines.host.process import one_thread
from mergekit_lines.host.state import ONE_AT_A_TIME, fresh_caches
from mergekit_lines.hub.downloads import files_from_hub, wanted_of
from mergekit_lines.inputs import check_models
from mergekit_lines.methods.wrap import registered
from mergekit_lines.opening import open_model, open_models
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.plan.run import MergeRun
from mergekit_lines.preflight import check_recipe
from mergekit_lines.prepare import prepare
from mergekit_lines.recipe.models import base_listed, models_in_order
from mergekit_lines.reported import FILE, read_report
from mergekit_lines.restatement import METHODS, Parameters
from mergekit_lines.tasks import EngineGather, LinesTask
from mergekit_lines.workers import Workers

FORMAT = 1
# One entry in so many may differ where nobody counted a method's own roundings.
SHARE = 10_000
# Keys of a recipe whose values name models.
_MODEL_KEYS = {"base_model", "model", "source", "tokenizer_source"}


@dataclass(frozen=True)
class Choice:
    """What to recompute, and from where.

    Args:
        sample: how many tensors.
        seed: of the sample.
        everything: all tensors instead.
        strict: everything, and whole files wherever the report has a digest of their content.
        moved: folders, by the recipe's names, of models that are elsewhere now.
        trust_remote_code: run code that comes with the models.
    """

    sample: int = 20
    seed: int = 0
    everything: bool = False
    strict: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Checked:
    """One tensor, the coefficient it was scaled by, and what came of it."""

    name: str
    dtype: str
    coefficient: float
    found: Comparison
    allowed: int = 0  # wrong entries, where a method's own roundings are not known

    @property
    def right(self) -> bool:
        """Whether the tensor is what the report says."""
        return self.found.wrong <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Return the tensor as JSON values; what is not finite is text."""
        found = {key: _plain(value) for key, value in asdict(self.found).items()}
        return {
            "tensor": self.name,
            "dtype": self.dtype,
            "coefficient": self.coefficient,
            **found,
            "right": self.right,
        }


@dataclass
class Verdict:
    """What came of a merged model."""

    tensors: int
    checked: list[Checked] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # NaN or infinity in an input
    notes: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether every tensor that was looked at is right, and any was."""
        return bool(self.checked) and all(one.right for one in self.checked)

    @property
    def total(self) -> Comparison:
        """All comparisons together."""
        result = Comparison(0)
        for one in self.checked:
            result += one.found
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            "format": FORMAT,
            "right": self.right,
            "of": self.tensors,
            "skipped": self.skipped,
            "notes": self.notes,
            "tensors": [one.to_dict() for one in self.checked],
        }


def verify(out: Path, choice: Choice) -> Verdict:
    """Recompute tensors of the merged model in ``out``; nothing is written.

    Raises:
        LinesError: the report, a shard or an input is not what it was when the model was merged.
    """
    report = read_report(out)
    _check_output(out, report, strict=choice.strict)
    config, names = _recipe(report, choice.moved)
    # Architectures were compared before the merge; the digests tell whether these are they.
    options = MergeOptions(
        quiet=True,
        allow_crimes=True,
        trust_remote_code=choice.trust_remote_code,
        lora_merge_dtype=report.get("lora_merge_dtype"),
    )
    problems = check_recipe(config, None, options, report["recipe"]) + check_models(config, options)
    if problems:
        raise LinesError(list(dict.fromkeys(problems)))
    run = MergeRun(seed=report["seed"], base_listed=base_listed(config))
    with ONE_AT_A_TIME, one_thread(), ExitStack() as stack:
        # Before the plan, which would say of a changed model only that it does not fit.
        here = {model: name for model, name in names.items() if Path(model.model.path).is_dir()}
        with fresh_caches():
            _check_inputs(report, here, options, strict=choice.strict)
        with fresh_caches():
            prepared = prepare(config, options, run)
        planned = prepared.planned
        stack.enter_context(fresh_caches())
        stack.enter_context(files_from_hub(wanted_of(prepared.headers)))
        _check_inputs(
            report,
            {model: name for model, name in names.items() if model not in here},
            options,
            strict=choice.strict,
        )
        copies = stack.enter_context(tempfile.TemporaryDirectory(prefix="mergekit-lines-"))
        models = open_models(config, options, Path(copies), stack)
        stored = _Stored(out, stack)
        coefficients = _coefficients(report, planned, run, stored)
        chosen = choose([item for item in planned if item.weight.name in stored.files], choice)
        verdict = Verdict(len(stored.files))
        inputs = ExactInputs(models, stack)
        workers = Workers()
        stack.callback(workers.close)
        checker = _Checker(inputs, run.seed, verdict, workers)
        for item in tqdm(chosen, desc="Verifying", unit="tensor", delay=2, disable=None):
            name = item.weight.name
            checker.check(item, coefficients[name], stored.tensor(name))
    verdict.notes += checker.notes()
    return verdict


def _check_output(out: Path, report: Mapping[str, Any], *, strict: bool) -> None:
    """Refuse a folder whose shards are not those of the report.

    Raises:
        LinesError: names the shards.
    """
    if not isinstance(report.get("output"), dict) or not isinstance(report.get("inputs"), dict):
        raise LinesError(
            f"{out / FILE}: says nothing of files and inputs, wanted a report of mergekit-yaml or "
            f"of `mergekit-lines edit` on folders, of this version. Merge again to have one."
        )
    try:
        shards = report["output"]["shards"]
        changed = changed_files(out, shards, contents=strict)
    except (KeyError, TypeError, AttributeError) as error:
        raise _edited(out, error) from error
    if changed:
        raise LinesError(
            f"{out}: not the files that the merge wrote: {'; '.join(changed)}. Copy or download "
            f"the model again."
        )
    more = {path.name for path in out.glob("*.safetensors")} - set(shards)
    if more:
        raise LinesError(
            f"{out}: holds {some(more)} beside the shards of the merge, and a loader may take "
            f"them for part of the model. Remove what is not of this merge."
        )
    if problems := read_headers(out).problems:
        raise LinesError(problems)


def _edited(out: Path, error: BaseException) -> LinesError:
    return LinesError(
        f"{out / FILE}: not as the merge wrote it ({reason(error)}). The report was edited; "
        f"restore it."
    )


def _recipe(
    report: Mapping[str, Any], moved: Mapping[str, str]
) -> tuple[MergeConfiguration, dict[ModelReference, str]]:
    """Return the report's recipe with its models where they are now, and the report's names."""
    document, original = _parsed(report["recipe"])
    known = {path for model in original for path in _paths(model)}
    if unknown := set(moved) - known:
        raise LinesError(
            f"--model {some(unknown)}: the recipe has no such model, wanted one of "
            f"{some(known, 10)}."
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
        document = yaml.safe_load(recipe)
        document.pop("name", None)
        return document, models_in_order(MergeConfiguration.model_validate(document))
    except Exception as error:
        raise LinesError(
            f"{FILE}: its recipe cannot be read ({reason(error)}). The report was edited; "
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
            problems.append(f"{FILE}: its inputs lack {name}. The report was edited; restore it.")
            continue
        changed = changed_input(model, report["inputs"][name], contents=strict)
        if changed:
            problems.append(
                f"model {name}: not what was merged: {'; '.join(changed)}. Verify with the files "
                f"of the merge, or merge again."
            )
    if problems:
        raise LinesError(problems)


class _Stored:
    """The tensors of the merged model."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._folder, self._stack = out, stack
        self.files = {
            name: header.file for name, header in (read_headers(out).tensors or {}).items()
        }
        self._open: dict[str, Any] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped from its shard."""
        file = self.files[name]
        if file not in self._open:
            shard = safe_open(self._folder / file, framework="pt")
            self._open[file] = self._stack.enter_context(shard)
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor


def _coefficients(
    report: Mapping[str, Any], planned: Sequence[PlannedTensor], run: MergeRun, stored: _Stored
) -> dict[str, float]:
    """Return λ of every tensor; α is the report's, and nothing else of it.

    Raises:
        LinesError: the report's recipe does not give what else the report says.
    """
    known = {item.weight.name: item for item in planned}
    strange = [name for name in stored.files if name not in known]
    lost = [n for n, item in known.items() if n not in stored.files and not item.weight.optional]
    if strange or lost:
        raise LinesError(
            f"the merged model's tensors are not those of its recipe: {some(strange + lost, 3)} "
            f"should {'not ' if strange else ''}be there. Restore the report and the shards."
        )
    said = []
    if run.seed != report["seed"]:
        said.append("seed")
    if sorted({item.wrap for item in planned if item.wrap}) != report["wrap"]:
        said.append("wrap")
    try:
        alpha = report["alpha"]["value"]
        found = {name: item.coefficient(alpha) for name, item in known.items()}
        blocks = {one["name"]: one["coefficients"] for one in report["containers"]}
        for name, item in known.items():
            place = item.depth
            given = report["outside"][name] if place is None else None
            if place is not None:
                given = blocks[place.container][place.index]
            if found[name] not in (given if isinstance(given, list) else [given]):
                said.append(f"the coefficient of {name}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise LinesError(
            f"{FILE}: its coefficients are not those of its recipe ({reason(error)}). The report "
            f"was edited; restore it."
        ) from error
    if said:
        raise LinesError(
            f"{FILE}: its recipe does not give {some(said, 3)} that it says. The report was "
            f"edited; restore it."
        )
    return found


def choose(planned: Sequence[PlannedTensor], choice: Choice) -> list[PlannedTensor]:
    """Return the tensors to recompute, in the order of the plan.

    A sample holds one matrix of the first and of the last block of every container, where an
    index that is off by one shows, and up to three tensors outside the blocks.
    """
    if choice.everything or choice.strict or choice.sample >= len(planned):
        return list(planned)
    generator = random.Random(choice.seed)  # noqa: S311 - a sample, no secret
    ends: dict[str, dict[int, list[PlannedTensor]]] = defaultdict(lambda: defaultdict(list))
    outside = []
    for item in planned:
        if item.depth is None:
            outside.append(item)
        elif item.depth.index in (0, item.depth.count - 1):
            ends[item.depth.container][item.depth.index].append(item)
    first = [generator.choice(items) for blocks in ends.values() for items in blocks.values()]
    first += generator.sample(outside, min(3, len(outside)))
    rest = [item for item in planned if item not in first]
    generator.shuffle(rest)
    names = {item.weight.name for item in [*first, *rest][: choice.sample]}
    return [item for item in planned if item.weight.name in names]


class _Checker:
    """Recomputes one tensor after the other, and remembers how."""

    def __init__(self, inputs: ExactInputs, seed: int, verdict: Verdict, workers: Workers) -> None:
        self._inputs, self._seed, self._verdict, self._workers = inputs, seed, verdict, workers
        self._own: set[str] = set()
        self._drawn = self._aligned = False

    def notes(self) -> Iterator[str]:
        """Yield what was not recomputed by formulas of our own."""
        if self._drawn:
            yield "random draws are taken from the same generator; all else is recomputed"
        if self._inputs.adapted:
            yield (
                "adapters are added in float64; which tensors they change is taken from the "
                "merge's reader"
            )
        if self._aligned:
            yield "vocabularies are aligned by mergekit itself, as for the merge"
        if self._own:
            yield (
                f"{some(self._own)}: recomputed by mergekit's own method in float64, seeded as in "
                f"the merge; entries that it selects otherwise in fp32 are threshold flips, and "
                f"one in {SHARE:,} may differ"
            )
        if self._verdict.skipped:
            yield "tensors with NaN or infinity in an input were left out"

    def check(self, item: PlannedTensor, coefficient: float, stored: torch.Tensor) -> None:
        """Recompute a tensor, and add what came of it to the verdict."""
        task, name = item.task, item.weight.name
        inputs = {model: one.cast(task.input_dtype()) for model, one in self._read(task).items()}
        if not all(bool(torch.isfinite(one.tensor).all()) for one in inputs.values()):
            self._verdict.skipped.append(name)
            return
        found, allowed = self._compare(task, coefficient, inputs, stored), 0
        if registered(task.method_name).wrapped.spec.name not in METHODS:
            allowed = stored.numel() // SHARE
        dtype = str(stored.dtype).removeprefix("torch.")
        self._verdict.checked.append(Checked(name, dtype, coefficient, found, allowed))

    def _read(self, task: LinesTask) -> dict[ModelReference, Exact]:
        gather: Any = task.gather_tensors
        if isinstance(gather, GatherTensors):
            found = {m: self._inputs.read(m, weight) for m, weight in gather.weight_info.items()}
            return {model: one for model, one in found.items() if one is not None}
        # The same for aligned vocabularies: mergekit's own task, on tensors that we read.
        self._aligned = True
        own = EngineGather(weight_info=gather.gather_tensors.weight_info, engine=self)
        aligned = gather.model_copy(update={"gather_tensors": own})
        ((_, tensors),) = Executor([aligned]).run(quiet=True)
        return {model: Exact(tensor) for model, tensor in tensors.items()}

    def gather(self, task: GatherTensors) -> dict[ModelReference, torch.Tensor]:
        """Return a tensor of every model, as the merge's engine does for the alignment."""
        found = {m: self._inputs.read(m, weight) for m, weight in task.weight_info.items()}
        return {
            model: one.tensor if one.error is None or one.doubled else one.tensor.float()
            for model, one in found.items()
            if one is not None
        }

    # Tasks are hashed with their values.
    __hash__ = object.__hash__

    def _compare(
        self,
        task: LinesTask,
        coefficient: float,
        inputs: Mapping[ModelReference, Exact],
        stored: torch.Tensor,
    ) -> Comparison:
        base = inputs.get(task.base_model)
        first = (base or next(iter(inputs.values()))).tensor
        if stored.shape != first.shape:
            raise LinesError(
                f"tensor {task.output_weight.name}: has the shape {tuple(stored.shape)}, by its "
                f"inputs {tuple(first.shape)}. Merge again."
            )
        if not all(one.tensor.is_floating_point() for one in inputs.values()):
            return compare_equal(first, stored)
        dtype = dtype_from_name(task.out_dtype) or dtype_from_name(task.dtype)
        if dtype not in (None, stored.dtype):
            raise LinesError(
                f"tensor {task.output_weight.name}: stored in {stored.dtype}, by its recipe "
                f"{dtype}. Merge again."
            )
        method = registered(task.method_name).wrapped.spec.name
        if method not in METHODS or base is None:
            self._own.add(method)
            return self._by_mergekit(task, coefficient, inputs, stored)
        tuned = [m for m in task.model_order if m in inputs and m != task.base_model]
        cast = task.input_dtype()
        doubled = cast == torch.float64 if cast else any(one.doubled for one in inputs.values())
        parameters = _parameters(task, method, tuned, coefficient)
        self._drawn |= uses_draws(method, dict(enumerate(parameters.densities)))
        merged = Merged(
            task.output_weight.name,
            self._seed,
            parameters,
            base,
            [inputs[model] for model in tuned],
            torch.float64 if doubled else torch.float32,
        )
        return compare(merged, stored, self._workers)

    def _by_mergekit(
        self,
        task: LinesTask,
        coefficient: float,
        inputs: Mapping[ModelReference, Exact],
        stored: torch.Tensor,
    ) -> Comparison:
        values = {"coefficient": coefficient, "seed": self._seed}
        own = task.with_values(values).model_copy(update={"dtype": None})

        def merged(dtype: torch.dtype) -> torch.Tensor:
            name = str(dtype).removeprefix("torch.")
            result = own.model_copy(update={"out_dtype": name}).execute(
                {model: one.tensor.to(dtype) for model, one in inputs.items()}
            )
            if result is None:
                raise LinesError(
                    f"tensor {task.output_weight.name}: {task.method_name} gives none, and one is "
                    f"stored. Merge again."
                )
            return result

        return compare_whole(
            merged(torch.float64),
            lambda: merged(torch.float32),
            list(inputs.values()),
            stored,
            coefficient,
        )


def _parameters(
    task: LinesTask, method: str, models: Sequence[ModelReference], coefficient: float
) -> Parameters:
    """Return what the recipe gives a method that is restated here."""
    if method == "passthrough":
        return Parameters(method, [1.0], [1.0], [0.0], [0.0], False, False, 1.0, coefficient)
    words = registered(task.method_name).names  # some are ours too, and have another name
    shared = dict(task.parameters.items())
    own = task.input_values(models)

    def each(name: str) -> list[float]:
        values = own.get(words.get(name, ""), {})
        return [float(values.get(model, 0.0)) for model in models]

    return Parameters(
        method=method,
        weights=each("weight"),
        densities=each("density"),
        gammas=each("gamma"),
        epsilons=each("epsilon"),
        rescale=shared[words["rescale"]],
        normalize=shared[words["normalize"]],
        scale=shared[words["lambda"]],
        coefficient=coefficient,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else str(value)
