"""A picture of λ over depth: one line per container, what lies outside marked at the side."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.figures.drawing import COLOURS, INK, MARKERS, new_figure, plain_axes, save
from mergekit_lines.inspection.findings import Coefficient, Container, Inspection

SPAN = 0.2  # of the y axis at least: a constant λ has no range of its own
MARKS = 4  # coefficients outside that are told one by one in the legend
TITLE = 72  # letters of a line


def draw(inspections: Sequence[Inspection], path: Path) -> None:
    """Draw the coefficients of every document into one PNG file, a panel for each.

    Raises:
        LinesError: matplotlib is not there, nothing is known to draw, or the file cannot be made.
    """
    drawable = [inspection for inspection in inspections if _drawable(inspection)]
    if not drawable:
        raise LinesError(
            f"--plot {path}: there are no coefficients to draw: see the problems of the recipe."
        )
    figure = new_figure(f"--plot {path}", 7.2, 4.2 * len(drawable), dpi=150)
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a name with $ in it is no formula
        panels = figure.subplots(len(drawable), squeeze=False)[:, 0]
        for axes, inspection in zip(panels, drawable, strict=True):
            _panel(axes, inspection)
    save(figure, path)


def _drawable(inspection: Inspection) -> bool:
    return any(container.blocks[0].coefficients for container in inspection.containers) or any(
        tensor.coefficient for tensor in inspection.outside
    )


def _panel(axes: Any, inspection: Inspection) -> None:
    """Draw one document: x is the block's index, y its λ, or λ − α where α is not known yet."""
    inside = {v for c in inspection.containers for b in c.blocks for v in b.coefficients}
    outside = Counter(tensor.coefficient for tensor in inspection.outside if tensor.coefficient)
    relative = any(value.plus_alpha for value in inside or outside)
    drawn: Counter[tuple[Any, ...]] = Counter()
    for number, container in enumerate(inspection.containers):
        _draw_container(axes, number, container, drawn, relative=relative)
    longest = max((len(container.blocks) for container in inspection.containers), default=0)
    side = 1 - max(1.0, 0.09 * longest)  # room for the word below it
    marked = _mark_outside(axes, outside, side, relative=relative)
    left, right = side if marked else 1, longest if longest else side
    axes.set_xlim(left - 0.05 * longest - 0.4, right + 0.02 * longest + 0.4)
    step = next(s * 10**e for e in range(9) for s in (1, 2, 4, 5, 8) if longest <= 12 * s * 10**e)
    ticks = sorted({1, *range(step, longest - step // 2, step), longest}) if longest else []
    low, high = axes.get_ylim()
    if high - low < SPAN:
        axes.set_ylim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
    word = ["outside"] if marked else []
    axes.set_xticks([side] * marked + ticks, [*word, *map(str, ticks)])
    if marked and longest:
        axes.axvline((side + 1) / 2, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("residual block, first to last" if longest else "no residual blocks were found")
    axes.set_ylabel("λ − α   (α: once the weights are read)" if relative else "coefficient λ")
    wraps = f" around {', '.join(inspection.wraps)}" if inspection.wraps else ""
    name = f"{inspection.name}: " if inspection.name else ""
    title = textwrap.fill(f"{name}{inspection.merge_method}{wraps}", TITLE)
    axes.set_title(title, fontsize=11)
    plain_axes(axes, "y")
    axes.legend(frameon=False, fontsize=9)


def _draw_container(
    axes: Any,
    number: int,
    container: Container,
    drawn: Counter[tuple[Any, ...]],
    *,
    relative: bool,
) -> None:
    """Draw a container's line; ``drawn`` counts those that lie on each other."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    values = [(block.index, value) for block in container.blocks for value in block.coefficients]
    points = [(index, value.value) for index, value in values if value.plus_alpha == relative]
    # matplotlib leaves names that begin with an underscore out of the legend.
    name = f" {container.name}" if container.name.startswith("_") else container.name
    alone = len(values) == len(container.blocks)  # several per block have no one order
    beneath = drawn[tuple(points)]  # towers of one length: the one below shows around
    drawn[tuple(points)] += 1
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=4.5 + 2.5 * beneath,
            linewidth=1.4 + 2.5 * beneath if alone else 0,
            label=name if alone else f"{name} (several λ in a block)",
            zorder=3 - number * 0.1,
        )
    if elsewhere := {value for _, value in values if value.plus_alpha != relative}:
        _only_name(axes, f"{name}: {_range(elsewhere)}{' too' if points else ''}")


def _mark_outside(axes: Any, outside: Counter[Coefficient], side: float, *, relative: bool) -> bool:
    """Mark each coefficient outside at the left, with the number of tensors that have it."""
    shown = sorted(value for value in outside if value.plus_alpha == relative)
    elsewhere = sorted(value for value in outside if value.plus_alpha != relative)
    parts = [[value] for value in shown] if len(shown) <= MARKS else [shown]
    for values in parts:
        tensors = _tensors(sum(outside[value] for value in values))
        alone = len(outside) == 1
        axes.plot(
            [side] * len(values),
            [value.value for value in values],
            "X",
            color=INK,
            markersize=8,
            zorder=4,
            label=f"outside: {tensors}" if alone else f"outside: {_range(values)} ({tensors})",
        )
    for value in elsewhere:
        _only_name(axes, f"outside: {_range([value])} ({_tensors(outside[value])})")
    return bool(shown)


def _only_name(axes: Any, text: str) -> None:
    """Tell in the legend of coefficients that have no place on this axis."""
    axes.plot([], [], " ", label=text)


def _range(values: Collection[Coefficient]) -> str:
    low, high = min(values), max(values)
    return f"λ = {low}" if low == high else f"λ = {low} to {high}"


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count > 1 else ''}"
