"""A picture of λ over depth: one line per container, what lies outside marked at the side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.drawing import COLOURS, INK, MARKERS, new_figure, plain_axes, save
from mergekit_lines.errors import LinesError
from mergekit_lines.findings import Inspection

SPAN = 0.2  # of the y axis at least: a constant λ has no range of its own


def draw(inspections: Sequence[Inspection], path: Path) -> None:
    """Draw the coefficients of every document into one PNG file, a panel for each.

    Raises:
        LinesError: matplotlib is not there, nothing is known to draw, or the file cannot be made.
    """
    known = [told for told in inspections if _drawable(told)]
    if not known:
        raise LinesError(
            f"--plot {path}: there are no coefficients to draw: see the problems of the recipe."
        )
    figure = new_figure(f"--plot {path}", 7.2, 4.2 * len(known), dpi=150)
    for axes, told in zip(figure.subplots(len(known), squeeze=False)[:, 0], known, strict=True):
        _panel(axes, told)
    save(figure, path, f"--plot {path}")


def _drawable(told: Inspection) -> bool:
    return any(container.blocks[0].coefficients for container in told.containers) or any(
        tensor.coefficient for tensor in told.outside
    )


def _panel(axes: Any, told: Inspection) -> None:
    """Draw one document: x is the block's index, y its λ, or λ − α where α is not known yet."""
    relative = any(
        value.plus_alpha
        for container in told.containers
        for block in container.blocks
        for value in block.coefficients
    )
    longest = 0
    drawn: Counter[tuple[Any, ...]] = Counter()
    for number, container in enumerate(told.containers):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        points = [(b.index, value.value) for b in container.blocks for value in b.coefficients]
        alone = len(points) == len(container.blocks)
        beneath = drawn[tuple(points)]  # towers of one length: the one below shows around
        drawn[tuple(points)] += 1
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=4.5 + 2.5 * beneath,
            linewidth=1.4 + 2.5 * beneath if alone else 0,  # several per block have no one order
            label=container.name,
            zorder=3 - number * 0.1,
        )
        longest = max(longest, len(container.blocks))
    side = 1 - max(1.0, 0.09 * longest)  # room for the word below it
    _mark_outside(axes, told, side, relative=relative)
    axes.set_xlim(side - 0.05 * longest - 0.4, max(longest, 1) + 0.02 * longest + 0.4)
    step = next(s for s in (1, 2, 4, 5, 8, 10, 20, 50, 100) if longest <= 12 * s)
    ticks = sorted({1, *range(step, longest - step // 2, step), longest}) if longest else []
    low, high = axes.get_ylim()
    if high - low < SPAN:
        axes.set_ylim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
    axes.set_xticks([side, *ticks], ["outside", *map(str, ticks)])
    axes.axvline((side + 1) / 2, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("residual block, first to last")
    axes.set_ylabel("λ − α   (α: once the weights are read)" if relative else "coefficient λ")
    wraps = f" around {', '.join(told.wraps)}" if told.wraps else ""
    name = f"{told.name}: " if told.name else ""
    axes.set_title(f"{name}{told.merge_method}{wraps}", fontsize=11)
    plain_axes(axes, "y")
    axes.legend(frameon=False, fontsize=9)


def _mark_outside(axes: Any, told: Inspection, side: float, *, relative: bool) -> None:
    """Mark each coefficient outside at the left, with the number of tensors that have it."""
    counts = Counter(tensor.coefficient for tensor in told.outside if tensor.coefficient)
    for value, count in sorted(counts.items()):
        tensors = f"{count} tensor{'s' if count > 1 else ''}"
        if relative and not value.plus_alpha:  # a number of its own has no place on this axis
            axes.plot([], [], " ", label=f"outside: λ = {value}, {tensors}")
            continue
        label = f"outside: {tensors}" if len(counts) == 1 else f"outside: {value}, {tensors}"
        axes.plot(
            [side],
            [value.value],
            "X",
            color=INK,
            markersize=8,
            zorder=4,
            label=label,
        )
