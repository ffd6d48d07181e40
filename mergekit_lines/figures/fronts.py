"""Two rewards: the fronts of a soup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

Fronts = Mapping[
    str,
    tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike | None, ArrayLike | None, Sequence[int]],
]


def soup_front(
    figure: Any,
    names: tuple[str, str],
    fronts: Fronts,
    marks: Mapping[str, tuple[float, float]] | None = None,
    title: str | None = None,
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
        title: written above.

    Raises:
        LinesError: none of the points has a value.
    """
    from matplotlib.lines import Line2D

    refuse_nothing(figure, [values for front in fronts.values() for values in front[1:3]])
    axes = figure.subplots()
    looks = looks_of(fronts)
    handles: list[Any] = []
    points: list[tuple[float, float]] = []
    joined: list[NDArray[np.float64]] = []
    bars: list[NDArray[np.float64]] = []
    dominated = False
    for rank, (label, (_, xs, ys, x_errors, y_errors, pareto)) in enumerate(fronts.items()):
        look, above = looks[label], 3 - 0.1 * rank
        x, y = (np.asarray(values, dtype=np.float64) for values in (xs, ys))
        best = np.isin(np.arange(len(x)), pareto)
        drawn = axes.errorbar(
            x,
            y,
            xerr=x_errors,
            yerr=y_errors,
            fmt="none",
            ecolor=look["color"],
            elinewidth=0.7,
            alpha=0.55,
            zorder=above - 0.5,
        )
        bars += [bar for collection in drawn[2] for bar in collection.get_segments() if len(bar)]
        (line,) = axes.plot(
            x[list(pareto)],
            y[list(pareto)],
            linewidth=1.6 if rank else 2.2,
            markersize=6 if rank else 7,
            zorder=above,
            label=label,
            **look,
        )
        handles.append(line)
        axes.plot(
            x[~best],
            y[~best],
            linestyle="none",
            marker=look["marker"],
            markersize=6 if rank else 7,
            markerfacecolor="white",
            markeredgecolor=look["color"],
            markeredgewidth=1.3,
            zorder=above,
        )
        dominated = dominated or bool((~best & ~np.isnan(x + y)).any())
        points += list(zip(x.tolist(), y.tolist(), strict=True))
        joined.append(np.column_stack((x[list(pareto)], y[list(pareto)])))
    for n, (label, (u, v)) in enumerate((marks or {}).items()):
        mark = axes.plot([u], [v], "X*P"[n % 3], color=INK, markersize=9, zorder=4, label=label)
        handles += mark
        points.append((u, v))
    if dominated:
        handles.append(
            Line2D([], [], linestyle="none", marker="o", markersize=6, label="dominated",
                   markerfacecolor="white", markeredgecolor="#555555", markeredgewidth=1.3)
        )  # fmt: skip
    plain_axes(axes, "both")
    axes.margins(0.08)
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)
    axes.set_xlabel(wrapped(names[0], 80))
    axes.set_ylabel(wrapped(names[1], 50))
    if title:
        figure.suptitle(wrapped(title, 80), fontsize=12)
    legend_below(figure, handles)
    labels = []
    for label, (cs, xs, ys, *_) in fronts.items():
        c, x, y = (np.asarray(values, dtype=np.float64) for values in (cs, xs, ys))
        for index in dict.fromkeys((0, len(c) - 1, len(c) // 2)):
            if not np.isnan(x[index] + y[index]):
                text = f"c = {number(c[index])}"
                labels.append((text, x[index], y[index], looks[label]["color"]))
    fit_height(figure, axes, 1, 4.4)
    write_beside(axes, labels, points, joined, bars)
