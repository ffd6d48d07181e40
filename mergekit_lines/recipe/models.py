"""A walk over a recipe: its models, and its sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration


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


def models_in_order(config: MergeConfiguration) -> list[ModelReference]:
    """Return the recipe's models, the base first, in the order it names them."""
    models = [config.base_model] if config.base_model else []
    definitions = [config, *(config.modules or {}).values()]
    for definition in definitions:
        for entry in definition.models or []:
            models.append(entry.model)
        for output_slice in definition.slices or []:
            if output_slice.base_model:
                models.append(output_slice.base_model)
            models.extend(source.model for source in output_slice.sources)
    return list(dict.fromkeys(models))


def base_listed(config: MergeConfiguration) -> dict[str | None, bool]:
    """Return, per module (None: all), whether the recipe itself lists the base as an input.

    mergekit adds a base that ``models`` does not list; a wrap that ignores the base, such
    as ``linear``, must not take it for one of the models.
    """
    base = config.base_model
    if config.models is not None:
        return {None: any(entry.model == base for entry in config.models)}
    # In slices the base has to be listed to be measured from; see recipe/checks for those wraps.
    result: dict[str | None, bool] = {None: False}
    for name, module in (config.modules or {}).items():
        if module.models is not None:
            result[name] = any(entry.model == base for entry in module.models)
    return result


def carried(config: MergeConfiguration) -> ModelReference:
    """Return the model whose tokenizer, chat template and generation settings OUT carries.

    Of an edit that is the model that is edited, and of a merge the base, as in mergekit; where
    `tokenizer` names one of the models, it is that one.
    """
    models = models_in_order(config)
    source = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    if source is None and config.merge_method == "lines_postprocess":
        slices = [
            one for part in (config, *(config.modules or {}).values()) for one in part.slices or []
        ]
        bases = {config.base_model, *(one.base_model for one in slices)}
        return next((model for model in models if model not in bases), models[0])
    return next((model for model in models if model == source), models[0])
