"""Coefficients over depth: learnt ones beside those that nothing was learnt for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lines.figures.drawing import (
    fit_height,
    legend_below,
    number_ticks,
    plain_axes,
)
from mergekit_lines.figures.parts import looks_of, refuse_nothing

Depths = Mapping[str, tuple[Sequence[float], float]]


def depth_lines(figure: Any, lines: Depths, first: int = 1) -> None:
    """Draw coefficients over the blocks, as the paper's figure 5; those outside at the left.

    Args:
        figure: of :func:`~mergekit_lines.figures.parts.page`, empty.
        lines: label → (λ of each block [blocks], λ outside of them).
        first: so many lines, the first ones, are drawn above the others.

    Raises:
        LinesError: none has a value.
    """
    refuse_nothing(figure, [blocks for blocks, _ in lines.values()])
    axes, looks = figure.subplots(), looks_of(lines)
    longest = max(len(blocks) for blocks, _ in lines.values())
    side = 1 - max(1.0, 0.09 * longest)  # room for the word below it
    handles = []
    for rank, (label, (blocks, outside)) in enumerate(lines.items()):
        above = rank < first
        look = {**looks[label], "markersize": 5.5 if above else 4.5, "zorder": 3 - 0.1 * rank}
        width = 2.2 if above else 1.5
        (line,) = axes.plot(range(1, len(blocks) + 1), blocks, linewidth=width, label=label, **look)
        axes.plot([side], [outside], **{**look, "markersize": 7, "linestyle": "none"})
        handles.append(line)
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    axes.axvline((side + 1) / 2, color="#999999", linewidth=0.8, linestyle=":")
    step = -(-longest // 12)
    ticks = sorted({1, *range(step, longest - step // 2, step), longest})
    axes.set_xticks([side, *ticks], ["outside", *map(str, ticks)])
    axes.set_xlim(side - 0.05 * longest - 0.2, longest + 0.02 * longest + 0.2)
    axes.set_xlabel("residual block, first to last")
    axes.set_ylabel("coefficient λ of the task vector")
    plain_axes(axes, "y")
    number_ticks(axes.yaxis)
    legend_below(figure, handles)
    fit_height(figure, axes, 1, 3.6)
