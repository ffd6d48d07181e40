"""``lines`` on a whole model in memory: what the planner does for files, for tensor groups.

mergekit's ``merge_state_dicts`` and ``merge_tensors`` hand all groups of a model to one call
of our recipe method; the words, the depths and the coefficients come from the same places as
a recipe's, and the same methods merge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mergekit.merge_methods.base import PerGroupValues, TensorGroup

from mergekit_lines.checkpoint.sources import HeldTensor
from mergekit_lines.engine.cuts import Count, find, majority
from mergekit_lines.engine.jobs import Job
from mergekit_lines.engine.norms import tensor_norms
from mergekit_lines.engine.pieces import HeldResult, TensorPieces, merge_tensor
from mergekit_lines.engine.ranks import spectrum_terms
from mergekit_lines.engine.workers import Workers
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.host.process import one_thread
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.lines.alpha import Contribution, NormCollector, find_alpha
from mergekit_lines.lines.larv import MatrixTerms, tiers
from mergekit_lines.lines.outside import NO_BLOCKS, checked_depths, described
from mergekit_lines.lines.placed import LARV, Placed, ScheduleWords
from mergekit_lines.lines.readings import Readings, Tier
from mergekit_lines.lines.schedule import plain
from mergekit_lines.merges.groups import (
    bind,
    check_groups,
    lone_depth,
    storage,
    with_weights,
)
from mergekit_lines.methods.registry import method_for, postprocess_method
from mergekit_lines.methods.trim import SETTLED, Settled, cuts_whole_model
from mergekit_lines.methods.words import WRAP, plain_sum_factors
from mergekit_lines.methods.wrapped import SCALING, LinesMethod, Scaling

LOG = logging.getLogger(__name__)


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
    words = {key: _plain(value) for key, value in parameters.items() if value is not None}
    check_groups(name, groups, dtype, out_dtype)
    method = _method(name, words)
    values = bind(method, groups, words)
    ties = _ties(groups)
    contributions = _place(method, groups, values, names)
    placed = [contribution.placed for contribution in contributions]
    values = [with_weights(own, one.depth) for own, one in zip(values, placed, strict=True)]
    seed = values[0]["seed"] or 0 if values and "seed" in values[0] else 0

    if any(map(cuts_whole_model, values)):
        settled = _settled(method, groups, values, sorted(set(ties)), dtype)
        values = [{**own, SETTLED: settled} for own in values]

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
    larv = _tiers(groups, contributions, dtype)
    readings = Readings(calibration, larv)
    coefficients = [each.coefficient(readings) for each in placed]
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
    kernel: Kernel,
    dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    job, pieces = _streamed(method, group, values, scaling, kernel, dtype)
    base = next(entry.tensor for entry in group.entries if entry.is_base)
    with one_thread(), torch.no_grad():
        if scaling.collector is not None:
            power = scaling.collector.power
            scaling.collector.terms[group.metadata.name] = tensor_norms(job, pieces, power)
            return base
        result_dtype = out_dtype or pieces.aligned
        result = torch.empty(base.shape, dtype=result_dtype, device=base.device)
        merge_tensor(job, pieces, result_dtype, HeldResult(result))
    return result


def _streamed(
    method: LinesMethod,
    group: TensorGroup,
    values: dict[str, Any],
    scaling: Scaling,
    kernel: Kernel,
    dtype: torch.dtype | None,
) -> tuple[Job, TensorPieces]:
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
    return job, pieces


def _settled(
    method: LinesMethod,
    groups: Sequence[TensorGroup],
    values: Sequence[dict[str, Any]],
    numbers: Sequence[int],
    dtype: torch.dtype | None,
) -> Settled:
    """Return the cuts of ``trim: model`` over all tensors.

    Raises:
        LinesError: a density or ``trim`` itself differs between tensors.
    """
    densities: dict[str, float] = {}
    for own in values:
        for model, density in own["density"].items():
            if not cuts_whole_model(own) or densities.setdefault(str(model), density) != density:
                raise LinesError(
                    "parameters.trim: found 'model' with a trim or a density per tensor, wanted "
                    "one of each: the cut is over all tensors."
                )
    settled: Settled | None = None

    def walk(count: Count, _text: str) -> None:
        with one_thread(), torch.no_grad():
            for number in numbers:
                group, own = groups[number], {**values[number], SETTLED: settled}
                models = [entry.id for entry in group.non_base]
                if models and group.base is not None and group.base.tensor.numel():
                    kernel = method.kernel(own, models)
                    if kernel is not None:
                        count(*_streamed(method, group, own, Scaling(1.0), kernel, dtype))

    settled = Settled(tuple(find(densities, walk).items()))
    return replace(settled, zero_sign=majority(walk))


def _method(name: str, words: Mapping[str, Any]) -> LinesMethod:
    if name == "lines_postprocess":
        return postprocess_method()
    wrap = words.get("wrap", WRAP.default)
    if isinstance(wrap, PerGroupValues):
        raise LinesError("parameters.wrap: found a value per tensor, wanted one wrap.")
    return method_for(WRAP.validate(wrap))


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
        depths = {names[0]: lone_depth(names[0], blocks, num_blocks)}
        words = ScheduleWords.of(values[0])
        if words.from_norms:
            raise LinesError(
                f"parameters.alpha: found {words.alpha!r} for one tensor alone, wanted a finite "
                f"number: Eq. 2 compares norms over the whole model. Give alpha, or use "
                f"merge_state_dicts."
            )
        if words.shape == LARV:
            raise LinesError(
                "parameters.schedule: found 'larv' for one tensor alone, wanted a schedule that "
                "compares no blocks. Name another, or use merge_state_dicts."
            )
    else:
        entries = [group.tensors[0].numel() for group in groups]
        sizes = {**dict.fromkeys(every, 0), **dict(zip(names, entries, strict=True))}
        depths = checked_depths(sizes, blocks, num_blocks)
        for line in described(depths):
            LOG.log(logging.WARNING if line == NO_BLOCKS else logging.INFO, line)
    wrap = method.wrapped.spec.name
    contributions = []
    for name, group, own in zip(names, groups, values, strict=True):
        models = [entry.id for entry in group.non_base]
        factors = plain_sum_factors(wrap, with_weights(own, depths[name]), models)
        placed = Placed(name, depths[name], ScheduleWords.of(own))
        contributions.append(Contribution(placed, frozenset(models), factors))
    return contributions


def _tiers(
    groups: Sequence[TensorGroup], contributions: Sequence[Contribution], dtype: torch.dtype | None
) -> dict[str, list[Tier]] | None:
    """Return LARV's tiers of all blocks, or None where no tensor asks for them."""
    if not any(tensor.placed.words.shape == LARV for tensor in contributions):
        return None
    terms, depths = {}, {}
    for group, tensor in zip(groups, contributions, strict=True):
        depth, name = tensor.placed.depth, tensor.placed.name
        if tensor.placed.words.shape == LARV and depth is not None:
            depths[name] = depth
            if (own := group_spectrum(group, dtype)) is not None:
                terms[name] = own
    return tiers(terms, depths)


def group_spectrum(group: TensorGroup, dtype: torch.dtype | None) -> MatrixTerms | None:
    """Return what a tensor in memory tells of its block's update, or None for no matrix.

    Args:
        group: base and models.
        dtype: to which inputs are rounded first; or None.
    """
    if group.base is None:
        return None
    held = {entry.id: HeldTensor(entry.tensor.contiguous().cpu()) for entry in group.entries}
    base = held.pop(group.base.id)
    own = spectrum_terms(group.metadata.name or "", base, held, dtype)
    return None if own is None else MatrixTerms(*own)


def _ties(groups: Sequence[TensorGroup]) -> list[int]:
    """Return per group the first group that holds the same tensors in every model."""
    first: dict[Any, int] = {}
    result = []
    for number, group in enumerate(groups):
        key = tuple((entry.id, storage(entry.tensor)) for entry in group.non_base)
        if not key or any(place is None for _, place in key):
            result.append(number)
            continue
        earlier = first.setdefault(key, number)
        bases = [each.base.tensor for each in (groups[earlier], group) if each.base]
        one = len({storage(base) for base in bases}) < 2 or torch.equal(*bases)
        if not one:
            raise LinesError(
                f"tensors {groups[earlier].metadata.name} and {group.metadata.name}: found one "
                f"tensor under two names in the models, but two that differ in the base, wanted "
                f"them tied in both. Check that the base is the one you mean."
            )
        result.append(earlier)
    return result
