"""``lines`` on a whole model in memory: what the planner does for files, for tensor groups.

mergekit's ``merge_state_dicts`` and ``merge_tensors`` hand all groups of a model to one call
of our recipe method; the words, the depths and the coefficients come from the same places as
a recipe's, and the same methods merge.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import ParameterScope, PerGroupValues, TensorGroup

from mergekit_lines.checkpoint.sources import HeldTensor
from mergekit_lines.engine.pieces import HeldResult, Job, TensorPieces, merge_tensor, tensor_norms
from mergekit_lines.engine.workers import Workers
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.host.process import one_thread
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.lines.alpha import Contribution, NormCollector, find_alpha
from mergekit_lines.lines.depth import BlockDepth, block_depths
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.lines.schedule import plain
from mergekit_lines.methods.registry import method_for, postprocess_method
from mergekit_lines.methods.words import WHOLE_RECIPE, WRAP, incomplete, plain_sum_factors
from mergekit_lines.methods.wrapped import SCALING, LinesMethod, Scaling
from mergekit_lines.recipe.parameters import hint

LOG = logging.getLogger(__name__)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def merge_groups(
    name: str,
    groups: Sequence[TensorGroup],
    parameters: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    names: Iterable[str] = (),
) -> tuple[torch.Tensor, ...]:
    """Merge the tensors of one model, each scaled by its depth.

    Tensors that share their storage in every model but the base are merged once and come
    back as one object. The base is only what the change is measured from: a wrap that ignores
    the base does not see it.

    Args:
        name: ``lines`` or ``lines_postprocess``.
        groups: the inputs of every output tensor, named, the base marked.
        parameters: the recipe's words and the wrapped method's own parameters.
        dtype: inputs are cast to it first; None promotes them tensor by tensor.
        out_dtype: dtype of the results; None keeps that of the inputs.
        names: names of the model that no group has (its buffers); they count for the depth.

    Raises:
        LinesError: a word, a name, a dtype or a tensor is at fault.
    """
    given = {key: _plain(value) for key, value in parameters.items() if value is not None}
    check_groups(name, groups, dtype, out_dtype)
    method = _method(name, given)
    values = bind(method, groups, given)
    ties = _ties(groups)
    contributions = _place(method, groups, values, names)
    seed = values[0]["seed"] or 0 if values and "seed" in values[0] else 0

    def merged(number: int, scaling: Scaling) -> torch.Tensor:
        return merge_group(method, groups[number], values[number], scaling, dtype, out_dtype)

    def collect(collector: NormCollector) -> None:
        with torch.no_grad():
            for number in sorted(set(ties)):
                merged(number, Scaling(1.0, seed, collector=collector))

    norm = values[0].get("norm", "l1") if values else "l1"
    calibration = find_alpha(contributions, norm, collect)
    if calibration:
        alpha, models = calibration.alpha, calibration.models
        LOG.info("alpha %s (Eq. 2, %s norm, %s models)", alpha, calibration.norm, models)
    placed = [contribution.placed for contribution in contributions]
    auto = calibration.alpha if calibration else None
    coefficients = [each.coefficient(auto) for each in placed]
    results: list[torch.Tensor] = []
    for number, first in enumerate(ties):
        if coefficients[number] != coefficients[first]:
            raise LinesError(
                f"tensors {placed[first].name} and {placed[number].name}: found "
                f"one tensor under two names with the coefficients {coefficients[first]:g} and "
                f"{coefficients[number]:g}, wanted one. Name the containers in blocks so that "
                f"both get the same, or pass copies to untie them."
            )
        tied = number != first
        scaling = Scaling(coefficients[number], seed)
        results.append(results[first] if tied else merged(number, scaling))
    return tuple(results)


def _plain(value: Any) -> Any:
    """Return a value, or values per model or tensor, with numbers as Python has them."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, PerGroupValues):
        return PerGroupValues([_plain(one) for one in value.values])
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else plain(value)


def merge_group(
    method: LinesMethod,
    group: TensorGroup,
    values: dict[str, Any],
    scaling: Scaling,
    dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """Merge one tensor, with the kernel that a recipe's merge uses where there is one.

    Raises:
        LinesError: a check of ours or the wrapped method refused it.
    """
    models = [entry.id for entry in group.non_base]
    whole = not models or group.base is None or not group.base.tensor.numel()
    kernel = None if whole else method.kernel(values, models)
    try:
        if kernel is not None:
            return _in_pieces(method, group, values, scaling, kernel, dtype, out_dtype)
        (result,) = method._execute_resolved(
            (group,), [{**values, SCALING: scaling}], dtype=dtype, out_dtype=out_dtype
        )
    except (ValueError, RuntimeError, IndexError) as error:
        raise LinesError(
            f"tensor {group.metadata.name}: {method.spec.name} failed: {reason(error)}. Check the "
            f"parameters and the models' tensors of that name."
        ) from error
    return result


def _in_pieces(
    method: LinesMethod,
    group: TensorGroup,
    values: dict[str, Any],
    scaling: Scaling,
    kernel: Merge,
    dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    base = next(entry for entry in group.entries if entry.is_base)
    pieces = TensorPieces(
        HeldTensor(base.tensor.contiguous()),
        [HeldTensor(entry.tensor.contiguous()) for entry in group.non_base],
        dtype,
        base.tensor.device,
        Workers(1),
        kernel,
    )
    job = Job(
        name=group.metadata.name or "",
        models=[base.id, *(entry.id for entry in group.non_base)],
        wrap=method.wrapped.spec.name,
        merge=kernel,
        coefficient=scaling.coefficient,
        seed=scaling.seed,
        allow_nonfinite=values["allow_nonfinite"],
    )
    with one_thread(), torch.no_grad():
        if scaling.collector is not None:
            power = scaling.collector.power
            scaling.collector.terms[group.metadata.name] = tensor_norms(job, pieces, power)
            return base.tensor
        result_dtype = out_dtype or pieces.aligned
        result = torch.empty(base.tensor.shape, dtype=result_dtype, device=base.tensor.device)
        merge_tensor(job, pieces, result_dtype, HeldResult(result))
    return result


def bind(
    method: LinesMethod, groups: Sequence[TensorGroup], given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Bind and check all values of every group, with the wrapped method's defaults.

    Raises:
        LinesError: a name is unknown, or a value is missing, doubled or wrong.
    """
    specs = {parameter.name: parameter for parameter in method.spec.parameters}
    problems = []
    for key, value in given.items():
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
        if parameter.required and key not in given:
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
        for value in [given.get(key, parameter.default)]
    }
    try:
        values = [
            method._bind_group_parameters(group, given, number, len(groups))
            for number, group in enumerate(groups)
        ]
    except (ValueError, TypeError) as error:
        raise LinesError(f"parameters: {error}.") from error
    wrap = method.wrapped.spec.name
    # A model without a floating-point tensor has no groups: the words are checked all the same.
    problems = [text for found in values or [shared] if (text := incomplete(found, wrap))]
    if problems:
        raise LinesError(list(dict.fromkeys(problems)))
    return values


def _method(name: str, given: Mapping[str, Any]) -> LinesMethod:
    if name == "lines_postprocess":
        return postprocess_method()
    wrap = given.get("wrap", WRAP.default)
    if isinstance(wrap, PerGroupValues):
        raise LinesError("parameters.wrap: found a value per tensor, wanted one wrap.")
    return method_for(WRAP.validate(wrap))


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
            wanted = ", ".join(map(str, DTYPES))
            problems.append(
                f"{key}: found {kind}, wanted one of {wanted}. Merge to one of these, and convert "
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
        found = {str(t.dtype) for t in group.tensors if t.dtype not in DTYPES}
        if found:
            problems.append(
                f"tensor {group.metadata.name}: found dtype {', '.join(sorted(found))}, wanted "
                f"fp16, bf16, fp32 or fp64. Convert the model first."
            )
        models = len(group.non_base)
        if name == "lines_postprocess" and models != 1:
            problems.append(
                f"models: found {models} models besides the base, wanted one: lines_postprocess "
                f"edits one model. Merge first, or use lines."
            )
    if problems:
        raise LinesError(list(dict.fromkeys(problems)))


def _place(
    method: LinesMethod,
    groups: Sequence[TensorGroup],
    values: Sequence[dict[str, Any]],
    others: Iterable[str] = (),
) -> list[Contribution]:
    """Return every tensor with its place, and what Eq. 2 asks of it."""
    if not groups:
        return []
    blocks, num_blocks = values[0]["blocks"], values[0]["num_blocks"]
    names = [str(group.metadata.name) for group in groups]
    every = [*names, *others]
    if len(every) == 1:
        depths = {names[0]: _lone_depth(names[0], blocks, num_blocks)}
        if values[0]["alpha"] == "auto":
            raise LinesError(
                "parameters.alpha: found 'auto' for one tensor alone, wanted a finite number: "
                "Eq. 2 compares norms over the whole model. Give alpha, or use merge_state_dicts."
            )
    else:
        chosen = blocks.split(",") if blocks else None
        depths = block_depths(every, blocks=chosen, num_blocks=num_blocks)
    wrap = method.wrapped.spec.name
    contributions = []
    for name, group, own in zip(names, groups, values, strict=True):
        models = [entry.id for entry in group.non_base]
        factors = plain_sum_factors(wrap, own, models)
        placed = Placed(name, depths[name], ScheduleWords.of(own))
        contributions.append(Contribution(placed, frozenset(models), factors))
    return contributions


def _lone_depth(name: str, blocks: str | None, num_blocks: int | None) -> BlockDepth | None:
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


def _ties(groups: Sequence[TensorGroup]) -> list[int]:
    """Return per group the first group that holds the same tensors in every model."""
    first: dict[Any, int] = {}
    result = []
    for number, group in enumerate(groups):
        key = tuple((entry.id, storage(entry.tensor)) for entry in group.non_base)
        if not key or any(place is None for _, place in key):
            result.append(number)
            continue
        known = first.setdefault(key, number)
        bases = [each.base.tensor for each in (groups[known], group) if each.base]
        one = len({storage(base) for base in bases}) < 2 or torch.equal(*bases)
        if not one:
            raise LinesError(
                f"tensors {groups[known].metadata.name} and {group.metadata.name}: found one "
                f"tensor under two names in the models, but two that differ in the base, wanted "
                f"them tied in both. Check that the base is the one you mean."
            )
        result.append(known)
    return result


def storage(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Return what two tensors have in common that are one, or None for one without data."""
    if not tensor.numel() or not tensor.data_ptr():
        return None
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)
