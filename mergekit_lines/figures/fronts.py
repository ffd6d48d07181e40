"""Two rewards: the fronts of a soup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergekit_lines.figures.drawing import (
    INK,
    fit_height,
    legend_below,
    number,
    number_ticks,
    plain_axes,
    wrapped,
)
from mergekit_lines.figures.parts import looks_of, refuse_nothing
from mergekit_lines.figures.placing import write_beside

Floats = NDArray[np.float64]
Front = tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike | None, ArrayLike | None, Sequence[int]]
Fronts = Mapping[str, Front]

HOLLOW: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 1.3}


def soup_front(
    figure: Any,
    names: tuple[str, str],
    fronts: Fronts,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draw the fronts of a rewarded soup over two rewards, as the paper's figure 4.

    Every point is drawn; the Pareto set of each front is filled and joined, the rest hollow. The
    value of c is written at both ends and in the middle, where it has room.

    Args:
        figure: of :func:`~mergekit_lines.figures.parts.page`, empty.
        names: names and units of the rewards along x and y, both higher is better.
        fronts: label → (c [points], x [points], y [points], standard errors of x and of y
            [points] or ``None``, indices of the Pareto set).
        marks: label → (x, y) of single points, e.g. the base model.

    Raises:
        LinesError: none of the points has a value.
    """
    from matplotlib.lines import Line2D

    refuse_nothing(figure, [values for front in fronts.values() for values in front[1:3]])
    axes, looks, marks = figure.subplots(), looks_of(fronts), marks or {}
    points = {
        label: np.column_stack([_floats(x), _floats(y)]) for label, (_, x, y, *_) in fronts.items()
    }
    handles: list[Any] = []
    bars: list[Floats] = []
    for rank, (label, front) in enumerate(fronts.items()):
        line, errors = _draw_front(axes, points[label], front, looks[label], rank)
        line.set_label(label)
        handles.append(line)
        bars += errors
    for n, (label, (x, y)) in enumerate(marks.items()):
        handles += axes.plot([x], [y], "X*P"[n % 3], color=INK, markersize=9, zorder=4, label=label)
    dominated = [np.delete(points[label], front[-1], axis=0) for label, front in fronts.items()]
    if not np.isnan(np.vstack(dominated)).any(axis=1).all():
        look = {"marker": "o", "markersize": 6, "markeredgecolor": "#555555", **HOLLOW}
        handles.append(Line2D([], [], label="dominated", **look))
    plain_axes(axes, "both")
    axes.margins(0.08)
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)
    axes.set_xlabel(wrapped(names[0], 80))
    axes.set_ylabel(wrapped(names[1], 50))
    legend_below(figure, handles)
    fit_height(figure, axes, 1, 4.4)
    shares = [
        text
        for label, front in fronts.items()
        for text in _shares(front[0], points[label], looks[label]["color"])
    ]
    joined = [points[label][list(front[-1])] for label, front in fronts.items()]
    write_beside(axes, shares, np.vstack([*points.values(), *marks.values()]), joined, bars)


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _draw_front(
    axes: Any, points: Floats, front: Front, look: Mapping[str, Any], rank: int
) -> tuple[Any, list[Floats]]:
    """Draw one front, the first above the others; return its line and its error bars."""
    *_, x_errors, y_errors, pareto = front
    colour, above, size = look["color"], 3 - 0.1 * rank, 6 if rank else 7
    drawn = axes.errorbar(
        *points.T,
        xerr=x_errors,
        yerr=y_errors,
        fmt="none",
        ecolor=colour,
        elinewidth=0.7,
        alpha=0.55,
        zorder=above - 0.5,
    )
    best, others = points[list(pareto)], np.delete(points, pareto, axis=0)
    width = 1.6 if rank else 2.2
    (line,) = axes.plot(*best.T, linewidth=width, markersize=size, zorder=above, **look)
    hollow = {"marker": look["marker"], "markersize": size, "markeredgecolor": colour, **HOLLOW}
    axes.plot(*others.T, zorder=above, **hollow)
    return line, [bar for part in drawn[2] for bar in part.get_segments() if len(bar)]


def _shares(
    shares: ArrayLike, points: Floats, colour: str
) -> Iterator[tuple[str, float, float, str]]:
    """Yield what is written beside a front's ends and its middle, where they were measured."""
    c = _floats(shares)
    for index in dict.fromkeys((0, len(c) - 1, len(c) // 2)):
        if not np.isnan(points[index]).any():
            yield (f"c = {number(c[index])}", *points[index], colour)
