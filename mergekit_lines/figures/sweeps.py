"""One swept key: a curve, or a panel of curves for each metric."""

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
    numbers,
    plain_axes,
    wrapped,
)
from mergekit_lines.figures.parts import are_texts, looks_of, place_ticks, refuse_nothing, word

Lines = Mapping[str, tuple[ArrayLike, ArrayLike | None]]

LEVELS = ((0, (1, 1.2)), (0, (6, 2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)))


def sweep_panels(
    figure: Any,
    axis_name: str,
    xs: Sequence[float | str],
    panels: Mapping[str, Lines],
    chosen_x: float | str | None,
    baselines: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw metrics over one swept key, a panel for each in the order given.

    Put the objective first: of an odd number of panels the first has the whole width.

    Args:
        figure: of :func:`~mergekit_lines.figures.parts.page`, empty.
        axis_name: the key, e.g. ``parameters.beta``.
        xs: its values, numbers or texts [points].
        panels: name and unit of a metric → label → (values [points], their standard errors
            [points] or ``None``). NaN is a point that was not measured. The first line is the
            one that was chosen from.
        chosen_x: the value that was chosen; ``None`` marks none.
        baselines: name and unit → label → value that does not depend on the key.

    Raises:
        LinesError: none of the points has a value.
    """
    refuse_nothing(figure, [ys for lines in panels.values() for ys, _ in lines.values()])
    looks = looks_of(label for lines in panels.values() for label in lines)
    levels = list(dict.fromkeys(label for named in baselines.values() for label in named))
    handles: dict[str, Any] = {}
    height = 3.3 if len(panels) == 1 else 2.4
    grid = _grid(figure, len(panels))
    for axes, (metric, lines) in zip(grid, panels.items(), strict=True):
        wide = len(panels) == 1 or (axes is grid[0] and len(panels) % 2 == 1)
        places = _set_ticks(axes, xs, 92 if wide else 44)
        shifts = _draw_lines(axes, xs, places, lines, looks, handles)
        for label, value in baselines.get(metric, {}).items():
            level = axes.axhline(value, color="#555555", linewidth=1.6, zorder=1.5)
            level.set_linestyle(LEVELS[levels.index(label) % len(LEVELS)])
            level.set_label(f"{label}: {number(value)}" if len(panels) == 1 else label)
            handles.setdefault(f"level {label}", level)
        if chosen_x is not None:
            index = list(xs).index(chosen_x)
            first = np.asarray(next(iter(lines.values()))[0], dtype=np.float64)
            _mark_chosen(axes, places[index] + shifts[0], first[index], chosen_x, handles)
        plain_axes(axes, "y")
        number_ticks(axes.yaxis)
        axes.set_ylabel(wrapped(metric, int(11 * height)))
    for axes in grid if len(grid) < 3 else grid[-2:]:
        axes.set_xlabel(wrapped(axis_name, 80 if len(grid) == 1 else 38))
    for label in looks:
        named = [lines[label][0] for lines in panels.values() if label in lines]
        if not np.isfinite(np.concatenate([np.asarray(ys, float) for ys in named])).any():
            handles[f"line {label}"].set_label(f"{label} (not measured)")
    if "chosen" in handles:
        handles["chosen"] = handles.pop("chosen")  # the last of the legend
    legend_below(figure, list(handles.values()))
    if len(panels) > 1:
        figure.get_layout_engine().set(h_pad=0.07, w_pad=0.06, hspace=0, wspace=0.03)
    fit_height(figure, grid[0], -(-len(panels) // 2), height)


def _grid(figure: Any, count: int) -> list[Any]:
    """Return the axes of the panels: two in a row, the first alone if their number is odd."""
    if count == 1:
        return [figure.subplots()]
    spec = figure.add_gridspec((count + 1) // 2, 2)
    odd = count % 2
    wide = [figure.add_subplot(spec[0, :])] if odd else []
    rest = [divmod(place, 2) for place in range(2 * odd, count + odd)]
    return wide + [figure.add_subplot(spec[row, column]) for row, column in rest]


def _set_ticks(axes: Any, xs: Sequence[float | str], room: int) -> NDArray[np.float64]:
    """Return the place of each value on the x axis, and name them: texts stand evenly."""
    if are_texts(xs):
        place_ticks(axes.xaxis, xs, room)
        axes.set_xlim(-0.5, len(xs) - 0.5)
        return np.arange(len(xs), dtype=np.float64)
    places = np.asarray(xs, dtype=np.float64)
    shown = np.unique(places)
    names = numbers(shown)
    span = float(shown[-1] - shown[0])
    margin = 0.04 * span or 0.5
    axes.set_xlim(shown[0] - margin, shown[-1] + margin)
    gap = float(np.diff(shown).min()) / span if span else 1.0
    if gap * room > max(map(len, names)) + 1:
        axes.set_xticks(shown, names)
    else:
        number_ticks(axes.xaxis)
    return places


def _draw_lines(
    axes: Any,
    xs: Sequence[float | str],
    places: NDArray[np.float64],
    lines: Lines,
    looks: Mapping[str, dict[str, Any]],
    handles: dict[str, Any],
) -> list[float]:
    """Draw each line with its error bars, the first above the others; return their shifts.

    Numbers are joined in their order. Choices have none: their points stand side by side.
    """
    apart = are_texts(xs)
    order = np.argsort(places, kind="stable")
    shifts = []
    for rank, (label, (ys, errors)) in enumerate(lines.items()):
        values = np.asarray(ys, dtype=np.float64)
        shifts.append(0.12 * (rank - (len(lines) - 1) / 2) if apart else 0.0)
        drawn = axes.errorbar(
            places[order] + shifts[-1],
            values[order],
            yerr=None if errors is None else np.asarray(errors, dtype=np.float64)[order],
            linewidth=1.6 if rank else 2.2,
            markersize=5.5 if rank else 6.5,
            elinewidth=1.0,
            capsize=2.5,
            zorder=3 - 0.1 * rank,
            label=label,
            **looks[label] | ({"linestyle": "none"} if apart else {}),
        )
        handles.setdefault(f"line {label}", drawn)
    return shifts


def _mark_chosen(
    axes: Any, x: float, y: float, chosen_x: float | str, handles: dict[str, Any]
) -> None:
    """Ring the chosen point of the first line, with a line down to its value."""
    axes.axvline(x, color="#999999", linewidth=1.0, linestyle=":", zorder=1)
    (ring,) = axes.plot(
        [x],
        [y],
        "o",
        markersize=14,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.6,
        zorder=4,
        label=f"chosen: {word(chosen_x)}",
    )
    handles.setdefault("chosen", ring)
