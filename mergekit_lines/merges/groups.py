"""Tensor groups of mergekit, held in memory: their parameters, dtypes and names checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import (
    ParameterScope,
    PerGroupValues,
    PerInputValues,
    TensorGroup,
)

from mergekit_lines.errors import LinesError, some
from mergekit_lines.lines.depth import BlockDepth, block_depths
from mergekit_lines.lines.rules import weight_at
from mergekit_lines.methods.complete import incomplete
from mergekit_lines.methods.weights import WEIGHT, WEIGHT_OUTSIDE
from mergekit_lines.methods.words import WHOLE_RECIPE
from mergekit_lines.methods.wrapped import LinesMethod
from mergekit_lines.recipe.parameters import hint

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def bind(
    method: LinesMethod, groups: Sequence[TensorGroup], parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Bind and check all values of every group, with the wrapped method's defaults.

    Raises:
        LinesError: a name is unknown, or a value is missing, doubled or wrong.
    """
    specs = {parameter.name: parameter for parameter in method.spec.parameters}
    problems = []
    for key, value in parameters.items():
        if key not in specs:
            problems.append(f"parameters.{key}: nobody declares this name.{hint(key, specs)}")
        elif key in WHOLE_RECIPE and isinstance(value, PerGroupValues):
            problems.append(f"parameters.{key}: found a value per tensor, wanted one value.")
        elif specs[key].scope != ParameterScope.SHARED and isinstance(value, Mapping):
            ids = {entry.id for group in groups for entry in group.entries}
            for unknown in value.keys() - ids:
                problems.append(
                    f"parameters.{key}: found {unknown!r}, wanted ids of the models "
                    f"({some(map(str, ids))})."
                )
    for key, parameter in specs.items():
        if parameter.required and key not in parameters:
            problems.append(
                f"parameters.{key}: found nothing, wanted a value: {method.wrapped.spec.name} has "
                f"no default for it. Add {key} to the parameters."
            )
    if problems:
        raise LinesError(problems)
    shared = {
        key: value if isinstance(value, PerGroupValues) else parameter.validate(value)
        for key, parameter in specs.items()
        if parameter.scope == ParameterScope.SHARED
        for value in [parameters.get(key, parameter.default)]
    }
    try:
        values = [
            method._bind_group_parameters(group, parameters, number, len(groups))
            for number, group in enumerate(groups)
        ]
    except (ValueError, TypeError) as error:
        raise LinesError(f"parameters: {error}.") from error
    wrap = method.wrapped.spec.name
    # A model without a floating-point tensor has no groups: the words are checked all the same.
    missing = [one for words in values or [shared] if (one := incomplete(words, wrap))]
    if missing:
        raise LinesError(missing)
    return values


def with_weights(values: dict[str, Any], depth: BlockDepth | None) -> dict[str, Any]:
    """Return the values of a group whose models have the weights of its depth."""
    if WEIGHT_OUTSIDE not in values:
        return values
    outside = values[WEIGHT_OUTSIDE]
    own = [
        (model, weight_at(weight, outside[model], depth))
        for model, weight in values[WEIGHT].items()
    ]
    return {**values, WEIGHT: PerInputValues(own)}


def check_groups(
    name: str,
    groups: Sequence[TensorGroup],
    dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> None:
    """Check names, dtypes and the number of models.

    Raises:
        LinesError: one of them is at fault.
    """
    problems = []
    for key, kind in {"dtype": dtype, "out_dtype": out_dtype}.items():
        if kind is not None and kind not in DTYPES:
            listed = ", ".join(map(str, DTYPES))
            problems.append(
                f"{key}: found {kind}, wanted one of {listed}. Merge to one of these, and convert "
                f"the result."
            )
    names = [group.metadata.name for group in groups]
    if None in names:
        problems.append(
            f"merge_method {name}: found a tensor without a name, wanted its name in the model, by "
            f"which its depth is known. Give `name=` (and num_blocks) to merge_tensors, or use "
            f"merge_state_dicts."
        )
    doubled = {text for text, count in Counter(names).items() if text and count > 1}
    if doubled:
        problems.append(f"tensors {some(doubled)}: found twice, wanted each name once.")
    for group in groups:
        dtypes = {str(t.dtype) for t in group.tensors if t.dtype not in DTYPES}
        if dtypes:
            problems.append(
                f"tensor {group.metadata.name}: found dtype {', '.join(sorted(dtypes))}, wanted "
                f"fp16, bf16, fp32 or fp64. Convert the model first."
            )
        models = len(group.non_base)
        if name == "lines_postprocess" and models != 1:
            problems.append(
                f"models: found {models} models besides the base, wanted one: lines_postprocess "
                f"edits one model. Merge first, or use lines."
            )
    if problems:
        raise LinesError(problems)


def lone_depth(name: str, blocks: str | None, num_blocks: int | None) -> BlockDepth | None:
    """Return the place of a tensor that comes without the model's other names."""
    parts = name.split(".")
    numbered = [place for place, part in enumerate(parts) if part.isdecimal()]
    if not numbered:
        return None
    if len(numbered) > 1:
        raise LinesError(
            f"tensor {name}: found numbers in {len(numbered)} places, of which one name alone "
            f"cannot tell the block's. Merge all tensors together with merge_state_dicts."
        )
    if num_blocks is None:
        raise LinesError(
            f"tensor {name}: found one tensor alone, wanted parameters.num_blocks beside it: its "
            f"name does not tell how many blocks there are. Give it, or use merge_state_dicts."
        )
    container = ".".join(parts[: numbered[0]])
    ends = [entry for entry in (blocks or "").split(",") if f".{container}".endswith(f".{entry}")]
    if blocks and not ends:
        return None
    return block_depths([name], blocks=[container], num_blocks=num_blocks)[name]


def storage(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Return what two tensors have in common that are one, or None for one without data."""
    if not tensor.numel() or not tensor.data_ptr():
        return None
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)
