"""A search by proposals: how it came to its best, its front, and which keys mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mergekit_lines.figures.drawing import (
    INK,
    fit_height,
    legend_below,
    number,
    number_ticks,
    plain_axes,
    wrapped,
)
from mergekit_lines.figures.parts import PLACES, looks_of, refuse_nothing

Trials = Mapping[str, tuple[Sequence[int], ArrayLike]]
LEVELS = ((0, (1, 1.2)), (0, (6, 2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)))


def search_panels(
    figure: Any,
    objectives: Sequence[str],
    trials: Trials,
    chosen: Sequence[int],
    baselines: Mapping[str, Sequence[float]],
    importances: Sequence[Mapping[str, float]],
) -> None:
    """Draw the trials of a search, and below each objective what it hung on.

    Of two objectives the scores over each other with the chosen ones joined, else each
    objective over the trials with the best until then.

    Args:
        figure: of :func:`~mergekit_lines.figures.parts.page`, empty.
        objectives: what they are called.
        trials: label → (numbers, scores [trials, objectives]); the first line is the one that
            was chosen from.
        chosen: places in the first line of what was chosen.
        baselines: label → scores [objectives] of what stands beside.
        importances: of each objective, the share of each key; empty where none is known.

    Raises:
        LinesError: there is no trial.
    """
    lines = {label: (list(n), np.asarray(y, float)) for label, (n, y) in trials.items()}
    refuse_nothing(figure, [scores for _, scores in lines.values()])
    looks = looks_of([*lines, *baselines])
    count = len(objectives)
    bars = [shares for shares in importances if shares]
    upper = 1 if count == 2 else count
    most = max((len(shares) for shares in bars), default=0)
    heights = [1.0] * upper + ([min(1.0, 0.1 + 0.12 * most)] if bars else [])
    grid = figure.add_gridspec(len(heights), max(len(bars), 1), height_ratios=heights)
    handles: dict[str, Any] = {}
    axes = [figure.add_subplot(grid[row, :]) for row in range(upper)]
    if count == 2:
        _draw_front(axes[0], objectives, lines, chosen, baselines, looks, handles)
    else:
        for goal, (each, name) in enumerate(zip(axes, objectives, strict=True)):
            levels = {label: scores[goal] for label, scores in baselines.items()}
            of_goal = {label: (n, scores[:, goal]) for label, (n, scores) in lines.items()}
            _draw_history(each, name, of_goal, chosen, levels, looks, handles)
    if bars:
        named = [name for name, shares in zip(objectives, importances, strict=True) if shares]
        below = [figure.add_subplot(grid[-1, column]) for column in range(len(bars))]
        for each, name, shares in zip(below, named, bars, strict=True):
            _draw_importances(each, name if count > 1 else "", shares)
    legend_below(figure, list(handles.values()))
    fit_height(figure, axes[0], sum(heights), 3.3)


def _draw_history(
    axes: Any,
    name: str,
    lines: Mapping[str, tuple[Sequence[int], Any]],
    chosen: Sequence[int],
    levels: Mapping[str, float],
    looks: Mapping[str, dict[str, Any]],
    handles: dict[str, Any],
) -> None:
    """Draw one objective over the trials: each trial, and the best so far as a line."""
    for rank, (label, (numbers, scores)) in enumerate(lines.items()):
        look = looks[label]
        (points,) = axes.plot(
            numbers, scores, color=look["color"], marker=look["marker"], linestyle="none",
            markersize=5, alpha=0.75, zorder=3 - 0.1 * rank, label=label,
        )  # fmt: skip
        best = np.maximum.accumulate(scores)
        axes.step(numbers, best, where="post", color=look["color"], linewidth=1.8)
        handles.setdefault(label, points)
    for number_, (label, level) in enumerate(levels.items()):
        colour = looks[label]["color"] if label in PLACES else "#555555"
        line = axes.axhline(level, color=colour, linewidth=1.4, zorder=1.5)
        line.set_linestyle(LEVELS[number_ % len(LEVELS)])
        line.set_label(label)
        handles.setdefault(label, line)
    numbers, scores = next(iter(lines.values()))
    _ring(axes, [numbers[n] for n in chosen], [scores[n] for n in chosen], handles)
    axes.set_xlabel("trial (the line is the best until then)")
    axes.set_ylabel(wrapped(name, 36))
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain_axes(axes, "y")
    number_ticks(axes.yaxis)


def _draw_front(
    axes: Any,
    objectives: Sequence[str],
    lines: Mapping[str, tuple[Sequence[int], Any]],
    chosen: Sequence[int],
    baselines: Mapping[str, Sequence[float]],
    looks: Mapping[str, dict[str, Any]],
    handles: dict[str, Any],
) -> None:
    """Draw one objective over the other, what was chosen joined."""
    for rank, (label, (_, scores)) in enumerate(lines.items()):
        look = {**looks[label], "linestyle": "none", "zorder": 3 - 0.1 * rank}
        (points,) = axes.plot(*scores.T, markersize=5, alpha=0.75, label=label, **look)
        handles.setdefault(label, points)
    for label, scores in baselines.items():
        look = {**looks[label], "linestyle": "none", "markersize": 9, "zorder": 4}
        handles.setdefault(label, axes.plot(*([value] for value in scores), label=label, **look)[0])
    label, (_, scores) = next(iter(lines.items()))
    best = scores[list(chosen)]
    best = best[np.argsort(best[:, 0])]
    axes.plot(*best.T, color=looks[label]["color"], linewidth=1.8, zorder=2)
    _ring(axes, best[:, 0], best[:, 1], handles)
    axes.set_xlabel(wrapped(objectives[0], 80))
    axes.set_ylabel(wrapped(objectives[1], 36))
    axes.margins(0.08)
    plain_axes(axes, "both")
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)


def _ring(axes: Any, x: ArrayLike, y: ArrayLike, handles: dict[str, Any]) -> None:
    """Ring what was chosen."""
    look = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.5}
    (ring,) = axes.plot(
        x, y, "o", markersize=12, linestyle="none", zorder=5, label="chosen", **look
    )
    handles.setdefault("chosen", ring)


def _draw_importances(axes: Any, name: str, shares: Mapping[str, float]) -> None:
    """Draw what share each key has in how an objective varies, the largest at the top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])[-12:]
    keys, values = zip(*ordered, strict=True)
    drawn = axes.barh([wrapped(key, 24) for key in keys], values, height=0.6)
    for bar, (_, share) in zip(drawn, ordered, strict=True):
        bar.set_color("#56B4E9")
        axes.annotate(
            f" {number(round(share, 2))}",
            (share, bar.get_y() + bar.get_height() / 2),
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max(0.01, 1.1 * ordered[-1][1]))
    what = f"importance for {name}" if name else "importance"
    axes.set_xlabel(wrapped(what, 40))
    plain_axes(axes, "x")
    number_ticks(axes.xaxis)
