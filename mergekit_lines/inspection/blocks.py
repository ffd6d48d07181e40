"""Blocks and coefficients of a plan, as far as they are known before weights are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.console import short
from mergekit_lines.errors import LinesError
from mergekit_lines.inspection.findings import Block, Coefficient, Container, Inspection, Outside
from mergekit_lines.lines.alpha import NormCollector, find_alpha
from mergekit_lines.lines.depth import BlockDepth, block_depths, natural_key
from mergekit_lines.lines.placed import AUTO, BLOCK, LARV
from mergekit_lines.lines.readings import Calibration, Readings
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.plan.prepare import Prepared
from mergekit_lines.plan.sizes import Sized, Sizes

WEIGHTS = {
    AUTO: "Eq. 2, found when the weights are read",
    BLOCK: "Eq. 2, found for each block when the weights are read",
}
ZERO = Readings(Calibration(alpha=0.0, models=0, norm=""))  # what comes on top of α then


class _WeightsNeededError(Exception):
    """Eq. 2 has no closed form here."""


def with_coefficients(
    inspection: Inspection, prepared: Prepared, sizes: Sizes
) -> tuple[Inspection, set[str]]:
    """Fill in blocks, coefficients and α; return also the names of the tensors Eq. 2 needs.

    Raises:
        LinesError: ``alpha: auto`` for tensors that are merged from different models.
    """
    planned = prepared.planned
    calibration, calibrated = None, set()
    try:
        calibration = _find_alpha(planned)
    except _WeightsNeededError:
        names = [item.weight.name for item in planned]
        calibrated = set(names) - tied_names(prepared.out_config, names)
    alpha, source = _alpha(planned, calibration)
    inspection = with_blocks(inspection, sizes, lambda item: _coefficient(item, calibration))
    wraps = sorted({item.wrap for item in planned if item.wrap})
    inspection = replace(inspection, wraps=tuple(wraps), alpha=alpha, alpha_source=source)
    return inspection, calibrated


def sampled_note(sizes: Sizes) -> str | None:
    """Return what ``schedule: larv`` reads before the merge, in words; None without it."""
    sampled = sum(sum(sized.sampled.values()) for sized in sizes.tensors)
    if not sampled:
        return None
    return (
        f"schedule: larv reads {short(sampled)} of the matrices before the merge, and multiplies "
        f"alpha by a level for each block"
    )


def weight_notes(planned: Sequence[PlannedTensor]) -> list[str]:
    """Return what is told of models whose weight is not the same in all tensors."""
    inside: dict[str, set[float]] = defaultdict(set)
    outside: dict[str, set[float]] = defaultdict(set)
    for item in planned:
        chosen = outside if item.placed.depth is None else inside
        for model, values in item.task.input_parameters.items():
            weight = dict(values.items()).get("weight")
            if isinstance(weight, (int, float)):
                chosen[str(model)].add(weight)
    notes = []
    for model in sorted(inside):
        if len(inside[model] | outside[model]) > 1:
            beside = f", {_span(outside[model])} outside" if outside[model] else ""
            notes.append(
                f"model {model}: its weight is {_span(inside[model])} in the blocks{beside}; λ "
                f"multiplies what the models come to by their weights"
            )
    return notes


def _span(values: Collection[float]) -> str:
    least, most = f"{min(values):.4g}", f"{max(values):.4g}"
    return least if least == most else f"{least} to {most}"


def depths_and_coefficients(
    planned: list[PlannedTensor], *, alone: bool
) -> tuple[dict[str, BlockDepth | None], dict[str, float | None]]:
    """Return every tensor's block, and its λ, None where it hangs on weights not yet read.

    Args:
        planned: the output tensors.
        alone: whether nothing is scaled by depth: the models have blocks all the same, and no λ.
    """
    if alone:
        names = [item.weight.name for item in planned]
        try:
            return block_depths(names), dict.fromkeys(names)
        except LinesError:  # what is in no order counts as outside
            return dict.fromkeys(names), dict.fromkeys(names)
    try:
        calibration = _find_alpha(planned)
    except _WeightsNeededError:
        calibration = None
    values = {item.weight.name: _coefficient(item, calibration) for item in planned}
    return {item.weight.name: item.placed.depth for item in planned}, {
        name: None if one is None or one.plus_alpha else one.value for name, one in values.items()
    }


def with_blocks(
    inspection: Inspection,
    sizes: Sizes,
    coefficient: Callable[[PlannedTensor], Coefficient | None] | None = None,
) -> Inspection:
    """Fill in the blocks and what lies outside; without ``coefficient`` none are told."""
    blocks: dict[str, dict[int, list[Sized]]] = defaultdict(lambda: defaultdict(list))
    outside = []
    for sized in sizes.tensors:
        depth = sized.item.placed.depth
        if depth is not None:
            blocks[depth.container][depth.index].append(sized)
        else:
            value = coefficient(sized.item) if coefficient else None
            outside.append(Outside(sized.item.weight.name, value, sized.entries, sized.bytes))
    containers = tuple(
        Container(name, tuple(_block(n, inside[n], coefficient) for n in sorted(inside)))
        for name, inside in sorted(blocks.items(), key=lambda entry: natural_key(entry[0]))
    )
    return replace(inspection, containers=containers, outside=tuple(outside))


def _block(
    index: int,
    inside: list[Sized],
    coefficient: Callable[[PlannedTensor], Coefficient | None] | None,
) -> Block:
    values = [coefficient(sized.item) for sized in inside] if coefficient else []
    coefficients = {value for value in values if value is not None}
    return Block(
        index=index + 1,
        coefficients=tuple(sorted(coefficients)),
        tensors=len(inside),
        parameters=sum(sized.entries for sized in inside),
        bytes=sum(sized.bytes for sized in inside),
    )


def _find_alpha(planned: list[PlannedTensor]) -> Calibration | None:
    if not any(item.placed.words.from_norms for item in planned):
        return None
    contributions = [item.contribution() for item in planned]
    return find_alpha(contributions, planned[0].norm, _needs_weights)


def _needs_weights(_collector: NormCollector) -> None:
    raise _WeightsNeededError


def _alpha(
    planned: list[PlannedTensor], calibration: Calibration | None
) -> tuple[float | None, str]:
    """Return α and where it comes from; gamma is an α too."""
    if calibration is not None:
        models = f"{calibration.models} model{'s' if calibration.models != 1 else ''}"
        return calibration.alpha, f"Eq. 2 in closed form, {models}"
    alphas = {item.placed.words.alpha for item in planned}
    for word in (BLOCK, AUTO):
        if word in alphas:
            return None, WEIGHTS[word]
    if len(alphas) > 1:
        return None, "the recipe: it differs between tensors"
    return float(alphas.pop()), "the recipe"


def _coefficient(item: PlannedTensor, calibration: Calibration | None) -> Coefficient | None:
    """Return λ; of ``alpha: auto`` and ``block`` without a closed form what comes on top of α.

    None in a block of ``schedule: larv``: only the weights tell its level.
    """
    placed = item.placed
    if placed.words.shape == LARV and placed.depth is not None:
        return None
    if calibration is not None:
        return Coefficient(placed.coefficient(Readings(calibration)))
    absolute = placed.depth is None and placed.words.outside != "alpha"
    if not placed.words.from_norms or absolute:
        return Coefficient(placed.coefficient())
    return Coefficient(placed.coefficient(ZERO), plus_alpha=True)
