"""Every problem of a recipe that can be seen without reading weights, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, MergeConfiguration
from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.partial import check_out
from mergekit_lines.errors import LinesError, nearest
from mergekit_lines.methods.words import LINES_WORDS, POSTPROCESS_WORDS
from mergekit_lines.methods.wrap import check_wrap, method_for, postprocess_method
from mergekit_lines.planner import models_in_order

DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Section:
    """A ``parameters`` mapping of the recipe: where it stands, and whose it is."""

    place: str
    parameters: dict[str, Any]
    model: ModelReference | None = None


def sections(config: MergeConfiguration) -> Iterator[Section]:
    """Yield every ``parameters`` mapping of a recipe."""

    def one(place: str, holder: Any, model: ModelReference | None = None) -> Iterator[Section]:
        if holder.parameters:
            yield Section(f"{place}parameters", holder.parameters, model)

    def inputs(place: str, holder: Any) -> Iterator[Section]:
        for number, entry in enumerate(holder.models or []):
            yield from one(f"{place}models[{number}].", entry, entry.model)
        for number, output_slice in enumerate(holder.slices or []):
            here = f"{place}slices[{number}]."
            yield from one(here, output_slice)
            for index, source in enumerate(output_slice.sources):
                yield from one(f"{here}sources[{index}].", source, source.model)

    yield from one("", config)
    yield from inputs("", config)
    for name, module in (config.modules or {}).items():
        yield from one(f"modules.{name}.", module)
        yield from inputs(f"modules.{name}.", module)


def check_recipe(
    config: MergeConfiguration, out: Path, options: MergeOptions, source: str | None
) -> list[str]:
    """Return every problem of the recipe, its options and OUT; no file of a model is opened."""
    problems = [*_check_keys(source), *check_out(out), *_check_options(options)]
    problems += _check_structure(config)
    for key in ("dtype", "out_dtype"):
        value = getattr(config, key)
        if value is not None and value.removeprefix("torch.") not in DTYPES:
            problems.append(
                f"{key}: found {value!r}, wanted one of {', '.join(DTYPES)}."
                f"{nearest(value, DTYPES)}"
            )
    postprocess = config.merge_method == "lines_postprocess"
    wraps = [] if postprocess else _wraps(config, problems)
    problems += _check_parameters(config, wraps, postprocess)
    problems += _check_counts(config, wraps, postprocess)
    return list(dict.fromkeys(problems))


def _check_keys(source: str | None) -> Iterator[str]:
    """Check the keys of the YAML itself: pydantic ignores the ones it does not know."""
    try:
        document = yaml.safe_load(source) if source else None
    except yaml.YAMLError:
        return  # mergekit has read the recipe itself before
    if isinstance(document, dict):
        yield from _unknown_keys("", document, MergeConfiguration, {"name"})


def _unknown_keys(
    place: str, document: dict[Any, Any], model: Any, extra: set[str]
) -> Iterator[str]:
    known = set(model.model_fields) | extra
    for key, value in document.items():
        if key not in known:
            yield f"{place}{key}: nobody declares this key.{nearest(str(key), known)}"
            continue
        inner = _INNER.get(key)
        if key == "modules" and isinstance(value, dict):
            entries = [(f"{place}modules.{name}.", entry) for name, entry in value.items()]
        elif inner and isinstance(value, list):
            entries = [(f"{place}{key}[{i}].", entry) for i, entry in enumerate(value)]
        else:
            continue
        for where, entry in entries:
            if isinstance(entry, dict):
                yield from _unknown_keys(where, entry, inner, set())


def _inner_models() -> dict[str, Any]:
    from mergekit import config

    return {
        "models": config.InputModelDefinition,
        "slices": config.OutputSliceDefinition,
        "sources": config.InputSliceDefinition,
        "modules": config.OutputModuleDefinition,
    }


_INNER = _inner_models()


def _check_options(options: MergeOptions) -> Iterator[str]:
    if not options.safe_serialization:
        yield (
            "--no-safe-serialization: lines writes safetensors only. Drop the flag, and convert "
            "the result if a pickled checkpoint is really wanted."
        )
    if options.unsafe_truncate_embeddings:
        yield (
            "--unsafe-truncate-embeddings: would write embeddings that do not match the config. "
            "Drop the flag and align the vocabularies with `tokenizer: {source: base}`."
        )
    device = torch.device(options.device or "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        yield (
            f"--device {options.device} (or --cuda): this torch ({torch.__version__}) sees no CUDA "
            f"device. Drop the flag to merge on the CPU."
        )
    if options.out_shard_size <= 0:
        yield f"--out-shard-size: found {options.out_shard_size}, wanted a size above 0, e.g. 5B."


def _check_structure(config: MergeConfiguration) -> Iterator[str]:
    method = config.merge_method
    slices = [*(config.slices or [])]
    for module in (config.modules or {}).values():
        slices += module.slices or []
    if config.base_model is None and not (slices and all(s.base_model for s in slices)):
        yield (
            f"base_model: found nothing, wanted the pre-trained model: {method} scales the change "
            f"from it. Add `base_model: PATH-OR-HUB-ID`."
        )
    bases = {config.base_model, *(s.base_model for s in slices)}
    if all(model in bases for model in models_in_order(config)):
        yield (
            "models: found no model besides base_model, wanted at least one fine-tuned from it. "
            "Add it under models."
        )
    groups = {"models": [entry.model for entry in config.models or []]}
    for name, module in (config.modules or {}).items():
        groups[f"modules.{name}.models"] = [entry.model for entry in module.models or []]
    for number, output_slice in enumerate(slices):
        groups[f"slices[{number}].sources"] = [s.model for s in output_slice.sources]
        base = output_slice.base_model or config.base_model
        if base is not None and base not in groups[f"slices[{number}].sources"]:
            yield (
                f"slices[{number}].sources: base_model {base} is not among them, wanted it there "
                f"with its layer_range: {method} measures this slice's change from those layers."
            )
    for place, models in groups.items():
        for model in dict.fromkeys(m for m in models if models.count(m) > 1):
            yield f"{place}: found {model} twice, wanted each model once. Add up the weights."


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the scalars of a parameter setting, through filters and gradients."""
    if isinstance(value, ConditionalParameter):
        yield from _leaves(value.value)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _wraps(config: MergeConfiguration, problems: list[str]) -> list[str]:
    wraps = []
    for section in sections(config):
        if "wrap" in section.parameters and section.model is None:
            wraps += list(_leaves(section.parameters["wrap"]))
    whole = (config.parameters or {}).get("wrap")
    filters = whole if isinstance(whole, list) else [whole]
    if whole is None or all(
        isinstance(entry, ConditionalParameter) and entry.filter not in (None, "*")
        for entry in filters
    ):
        wraps.append("task_arithmetic")
    found = []
    for wrap in dict.fromkeys(map(str, wraps)):
        problem = check_wrap(wrap)
        if problem:
            problems.append(problem)
        else:
            found.append(wrap)
    return found


def _check_parameters(
    config: MergeConfiguration, wraps: list[str], postprocess: bool
) -> Iterator[str]:
    methods = [postprocess_method()] if postprocess else [method_for(wrap) for wrap in wraps]
    ours = {word.name: word for word in (POSTPROCESS_WORDS if postprocess else LINES_WORDS)}
    known: dict[str, list[ParameterSpec]] = {name: [word] for name, word in ours.items()}
    for method in methods:
        for parameter in method.spec.parameters:
            if parameter.name not in ours:
                known.setdefault(parameter.name, []).append(parameter)
    for section in sections(config):
        for name, setting in section.parameters.items():
            place = f"{section.place}.{name}"
            if name not in known:
                yield f"{place}: nobody declares this name.{_hint(name, known, postprocess)}"
                continue
            shared = all(spec.scope == ParameterScope.SHARED for spec in known[name])
            if section.model is not None and shared:
                yield (
                    f"{place}: found under one model, where it has no effect, wanted under the "
                    f"recipe's own parameters. Move it there."
                )
                continue
            yield from _check_values(place, setting, known[name], name)


def _hint(name: str, known: dict[str, Any], postprocess: bool) -> str:
    if not postprocess and name == "gamma":
        return " It belongs to merge_method: lines_postprocess; here write alpha and beta."
    if postprocess and name in {word.name for word in LINES_WORDS}:
        return " It belongs to merge_method: lines; lines_postprocess edits one model."
    return nearest(name, known) or f" (known: {', '.join(sorted(known))})"


def _check_values(place: str, setting: Any, specs: list[ParameterSpec], name: str) -> Iterator[str]:
    values = list(_leaves(setting))
    if not values:
        yield f"{place}: found an empty list, wanted a value."
    if name == "blocks" and isinstance(setting, list):
        yield (
            f"{place}: found a list, which mergekit reads as a gradient or filter, wanted ONE text "
            f"of container names separated by commas, e.g. `decoder.block`."
        )
        return
    for value in values:
        failures: list[str] = []
        for spec in specs:
            try:
                spec.validate(value)
            except LinesError as error:
                failures += error.problems
        if len(failures) == len(specs):
            yield failures[0].replace(f"parameters.{name}", place, 1)


def _check_counts(config: MergeConfiguration, wraps: list[str], postprocess: bool) -> Iterator[str]:
    """Check how many models the method takes, for recipes that list them in one place."""
    if config.models is None or config.base_model is None:
        return
    others = [entry.model for entry in config.models if entry.model != config.base_model]
    count = len(dict.fromkeys(others))
    if postprocess:
        if count > 1:
            yield (
                f"models: found {count} models besides base_model, wanted one: lines_postprocess "
                f"edits one model. Merge first, or write merge_method: lines."
            )
        return
    for wrap in wraps:
        contract = method_for(wrap).spec.contract
        # The base is one of the inputs.
        least = max(contract.min_inputs - 1, contract.min_non_base or 0)
        limits = [contract.max_inputs and contract.max_inputs - 1, contract.max_non_base]
        most = min((limit for limit in limits if limit is not None), default=None)
        if count and (count < least or (most is not None and count > most)):
            wanted = f"{least}" if least == most else f"at least {least}"
            wanted = wanted if most is None or least == most else f"{least} to {most}"
            yield (
                f"models: found {count} besides base_model, wanted {wanted}: that is what wrap "
                f"{wrap} takes. Change the models or the wrap."
            )
