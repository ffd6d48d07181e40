"""Figures of sweeps and soups, after the paper's figures 1, 4, 14 and 15.

Beside LiNeS stand the merges that tell size from depth: unscaled, and uniformly scaled by LiNeS's
mean coefficient. Every figure is 1,600 pixels wide, twice the width of a page, and as high as what
is in it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from mergekit_lines.figures.drawing import new_figure, save
from mergekit_lines.figures.fronts import Fronts, build_front
from mergekit_lines.figures.heat import build_heat
from mergekit_lines.figures.sweeps import Lines, build_sweep

__all__ = ["Fronts", "Lines", "soup_front", "sweep_curve", "sweep_heat", "sweep_panels"]

WIDTH, TALL, DPI = 8.0, 30.0, 200  # inches; the height until it is known what is in the figure


def sweep_curve(
    path: Path,
    axis_name: str,
    xs: Sequence[float | str],
    lines: Lines,
    chosen_x: float | str | None,
    baselines: Mapping[str, float],
    ylabel: str,
    title: str | None = None,
) -> None:
    """Draw one metric over one swept key.

    Args:
        path: the PNG file to write.
        axis_name: the key, e.g. ``parameters.beta``.
        xs: its values, numbers or texts [points].
        lines: label → (values [points], their standard errors [points] or ``None``). NaN is a
            point that was not measured. The first line is the one that was chosen from.
        chosen_x: the value that was chosen; ``None`` marks none.
        baselines: label → value that does not depend on the key.
        ylabel: name and unit of the metric.
        title: written above.

    Raises:
        LinesError: matplotlib is not there, nothing is known to draw, or the file cannot be made.
    """
    figure = new_figure(str(path), WIDTH, TALL, DPI)
    panels = {ylabel: lines}
    build_sweep(figure, path, axis_name, xs, panels, chosen_x, {ylabel: baselines}, title)
    save(figure, path, str(path))


def sweep_panels(
    path: Path,
    axis_name: str,
    xs: Sequence[float | str],
    panels: Mapping[str, Lines],
    chosen_x: float | str | None,
    baselines: Mapping[str, Mapping[str, float]],
    title: str | None = None,
) -> None:
    """Draw several metrics over one swept key, a panel for each in the order given.

    Put the objective first: of an odd number of panels the first has the whole width. ``panels``
    and ``baselines`` go by the metric's name and unit; all else is as in :func:`sweep_curve`.

    Raises:
        LinesError: as :func:`sweep_curve`.
    """
    figure = new_figure(str(path), WIDTH, TALL, DPI)
    build_sweep(figure, path, axis_name, xs, panels, chosen_x, baselines, title)
    save(figure, path, str(path))


def sweep_heat(
    path: Path,
    x_name: str,
    xs: Sequence[float | str],
    y_name: str,
    ys: Sequence[float | str],
    grids: Mapping[str, ArrayLike],
    chosen: tuple[float | str, float | str] | None,
    metric_name: str,
    title: str | None = None,
) -> None:
    """Draw one metric over two swept keys, a panel for each way to merge.

    All panels share one scale of colours. The best value of each stands in its title, and every
    value in its cell where there is room. Panels of few columns stand side by side, others one
    above the other.

    Args:
        path: the PNG file to write.
        x_name: the key of the columns.
        xs: its values, numbers or texts.
        y_name: the key of the rows.
        ys: its values, the first at the bottom.
        grids: label → values [len(ys), len(xs)], higher is better; NaN is a point that was not
            measured. The first is the one that was chosen from.
        chosen: the (x, y) that was chosen, ringed in the first panel; ``None`` marks none.
        metric_name: name and unit of the metric.
        title: written above.

    Raises:
        LinesError: as :func:`sweep_curve`.
        ValueError: a grid is not [len(ys), len(xs)].
    """
    figure = new_figure(str(path), WIDTH, TALL, DPI)
    build_heat(figure, path, x_name, xs, y_name, ys, grids, chosen, metric_name, title)
    save(figure, path, str(path))


def soup_front(
    path: Path,
    names: tuple[str, str],
    fronts: Fronts,
    marks: Mapping[str, tuple[float, float]] | None = None,
    title: str | None = None,
) -> None:
    """Draw the fronts of a rewarded soup over two rewards, as the paper's figure 4.

    Every point is drawn; the Pareto set of each front is filled and joined, the rest hollow. The
    value of c is written at both ends and in the middle, where it has room.

    Args:
        path: the PNG file to write.
        names: names and units of the rewards along x and y, both higher is better.
        fronts: label → (c [points], x [points], y [points], standard errors of x and of y
            [points] or ``None``, indices of the Pareto set).
        marks: label → (x, y) of single points, e.g. the base model.
        title: written above.

    Raises:
        LinesError: as :func:`sweep_curve`.
    """
    figure = new_figure(str(path), WIDTH, TALL, DPI)
    build_front(figure, path, names, fronts, marks or {}, title)
    save(figure, path, str(path))
