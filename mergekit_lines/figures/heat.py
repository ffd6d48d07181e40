"""Two swept keys: a heat map of each way to merge, all in one scale of colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergekit_lines.figures.drawing import (
    INK,
    fit_height,
    legend_below,
    number_ticks,
    numbers,
    wrapped,
)
from mergekit_lines.figures.parts import (
    are_texts,
    place_ticks,
    refuse_nothing,
    ticks_step,
    turns_ticks,
    word,
)

CHARACTER = 0.087  # inches of one character of 10 points, with some room
SMALLEST, LARGEST = 6.5, 9.0  # points, of a value in its cell
UNKNOWN = "#eeeeee"


def sweep_heat(
    figure: Any,
    x_name: str,
    xs: Sequence[float | str],
    y_name: str,
    ys: Sequence[float | str],
    grids: Mapping[str, ArrayLike],
    chosen: tuple[float | str, float | str] | None,
    metric_name: str,
) -> None:
    """Draw one metric over two swept keys, a panel for each way to merge.

    All panels share one scale of colours. The best value of each stands in its title, and every
    value in its cell where there is room. Panels of few columns stand side by side, others one
    above the other.

    Args:
        figure: of :func:`~mergekit_lines.figures.parts.page`, empty.
        x_name: the key of the columns.
        xs: its values, numbers or texts.
        y_name: the key of the rows.
        ys: its values, the first at the bottom.
        grids: label → values [len(ys), len(xs)], higher is better; NaN is a point that was not
            measured. The first is the one that was chosen from.
        chosen: the (x, y) that was chosen, ringed in the first panel; ``None`` marks none.
        metric_name: name and unit of the metric.

    Raises:
        LinesError: none of the points has a value.
        ValueError: a grid is not [len(ys), len(xs)].
    """
    panels = {label: np.asarray(grid, dtype=np.float64) for label, grid in grids.items()}
    for label, values in panels.items():
        if values.shape != (len(ys), len(xs)):
            raise ValueError(f"{label}: found {list(values.shape)}, wanted {[len(ys), len(xs)]}")
    refuse_nothing(figure, panels.values())
    texts = _texts(np.stack(list(panels.values())))
    rows, room = 1, _room(figure, ys, (y_name, metric_name), texts, 1, len(panels))
    if not _fit_beside(room, xs, texts):
        rows = len(panels)
        room = _room(figure, ys, (y_name, metric_name), texts, rows, 1)
    height = _panel_height(ys, rows)
    whole = figure.subfigures()  # its names of the axes stand between the panels and the legend
    grid = whole.subplots(rows, len(panels) // rows, sharex=True, sharey=True, squeeze=False)
    image = _draw_panels(grid, panels, texts, room)
    for axes in grid[-1]:
        place_ticks(axes.xaxis, xs, room)
    _row_ticks(grid[0, 0].yaxis, ys, height)
    beside = int(11 * rows * height)  # characters that fit along the panels
    bar = whole.colorbar(image, ax=grid, pad=0.02, aspect=rows * height / 0.11)
    bar.set_label(wrapped(metric_name, beside))
    bar.outline.set_visible(False)
    number_ticks(bar.ax.yaxis)
    x_label = whole.supxlabel(wrapped(x_name, 80), fontsize=10)
    y_label = whole.supylabel(wrapped(y_name, beside), fontsize=10)
    handles: list[Any] = []
    if chosen is not None:
        ring = _ring(grid[0, 0], list(xs).index(chosen[0]), list(ys).index(chosen[1]))
        ring.set_label(_choice((x_name, y_name), chosen))
        handles.append(ring)
    if any(np.isnan(values).any() for values in panels.values()):
        handles.append(_unmeasured())
    if handles:
        legend_below(figure, handles)
    figure.get_layout_engine().set(h_pad=0.07, w_pad=0.06, hspace=0, wspace=0)
    fit_height(figure, grid[0, 0], rows, height)
    first, last = grid[0, 0].get_position(), grid[-1, -1].get_position()
    x_label.set_x((first.x0 + last.x1) / 2)
    y_label.set_y((last.y0 + first.y1) / 2)
    for axes in grid.flat:
        _write_cells(axes, texts)


def _texts(values: NDArray[np.float64]) -> dict[float, str]:
    """Return each value in as many decimals as give the greatest four digits."""
    distinct = np.unique(values[~np.isnan(values)])
    greatest = float(np.abs(distinct).max())
    decimals = max(3 - math.floor(math.log10(greatest)), 0) if greatest else 0
    if decimals > 6:
        return {float(value): f"{value:.3g}".replace("-", "−") for value in distinct}
    rounded = {float(value): round(float(value), decimals) + 0.0 for value in distinct}
    return {value: f"{near:,.{decimals}f}".replace("-", "−") for value, near in rounded.items()}


def _room(
    figure: Any,
    ys: Sequence[float | str],
    names: Sequence[str],
    texts: Mapping[float, str],
    rows: int,
    columns: int,
) -> int:
    """Return about how many characters of 10 points fit the width of each panel.

    Beside ``columns`` of panels stand the names of the rows, those of the y axis and of the bar
    (``names``), and the values along the bar.
    """
    along = int(11 * rows * _panel_height(ys, rows))
    lines = sum(wrapped(name, along).count("\n") + 1 for name in names)
    left = max(len(line) for name in _row_names(ys) for line in name.split("\n"))
    right = max(map(len, texts.values()))
    others = 0.56 + 0.17 * lines + CHARACTER * (left + right)  # inches
    return max(int(((figure.get_figwidth() - others) / columns - 0.1) / CHARACTER), 1)


def _fit_beside(room: int, xs: Sequence[float | str], texts: Mapping[float, str]) -> bool:
    """Whether panels of this room can hold the values and the names of all their columns."""
    if turns_ticks(xs, room) if are_texts(xs) else ticks_step(xs, room) > 1:
        return False
    return _cell_size(72 * CHARACTER * room / len(xs), texts) >= SMALLEST + 0.5


def _draw_panels(
    grid: Any, panels: Mapping[str, NDArray[np.float64]], texts: Mapping[float, str], room: int
) -> Any:
    """Draw the panels in one scale of colours, the best of each in its title; return an image."""
    low, high = min(texts), max(texts)
    margin = 0.0 if high > low else 0.05 * max(abs(high), 1.0)
    for axes, (label, values) in zip(grid.flat, panels.items(), strict=True):
        axes.set_facecolor(UNKNOWN)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        image = axes.imshow(
            np.ma.masked_invalid(values),
            origin="lower",
            aspect="auto",
            cmap="cividis",
            vmin=low - margin,
            vmax=high + margin,
        )
        measured = values[~np.isnan(values)]
        best = f"best {texts[float(measured.max())]}" if measured.size else "not measured"
        lines = [label, best] if len(grid) == 1 else [f"{label}  ·  {best}"]
        axes.set_title("\n".join(wrapped(line, room) for line in lines), fontsize=10.5)
    return image


def _panel_height(ys: Sequence[float | str], rows: int) -> float:
    """Return the inches of one panel: of many rows less each, but texts have their lines."""
    if are_texts(ys):
        lines = max(name.count("\n") + 1 for name in _row_names(ys))
        return max((0.17 * lines + 0.13) * len(ys), 2.0)
    return min(max((0.45 if rows == 1 else 0.3) * len(ys), 2.0), 7.0 if rows == 1 else 3.0)


def _row_names(ys: Sequence[float | str]) -> list[str]:
    """Return what the rows are called."""
    if are_texts(ys):
        return [wrapped(word(y), 24) for y in ys]
    return numbers(float(y) for y in ys)


def _row_ticks(axis: Any, ys: Sequence[float | str], height: float) -> None:
    """Name the rows; of too many numbers some are left out."""
    step = 1 if are_texts(ys) else math.ceil(0.2 * len(ys) / height)
    axis.set_ticks(range(0, len(ys), step), _row_names(ys[::step]))


def _ring(axes: Any, column: int, row: int) -> Any:
    """Ring one cell, so that it is seen on the dark and on the bright."""
    from matplotlib.patches import Rectangle

    for colour, width in (("white", 5.0), (INK, 2.2)):
        ring = Rectangle(
            (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width
        )
        axes.add_patch(ring).set_clip_on(False)
    return ring


def _unmeasured() -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=UNKNOWN, edgecolor="#999999", label="not measured")


def _choice(names: Sequence[str], chosen: Sequence[float | str]) -> str:
    """Return what was chosen, in words; a line may end between the two keys."""
    pairs = [f"{name} = {word(value)}" for name, value in zip(names, chosen, strict=True)]
    return "chosen: " + ", ".join(text.replace(" ", "\u00a0") for text in pairs)


def _cell_size(width: float, texts: Mapping[float, str]) -> float:
    """Return the points of a text of which the longest fits a cell of this width in points."""
    return min(LARGEST, width / (0.72 * max(map(len, texts.values()))))


def _write_cells(axes: Any, texts: Mapping[float, str]) -> None:
    """Write each value into its cell, if the longest fits."""
    (image,) = axes.get_images()
    values = image.get_array()
    rows, columns = values.shape
    box = axes.get_window_extent()
    point = axes.figure.dpi / 72
    size = min(_cell_size(box.width / point / columns, texts), 0.83 * box.height / point / rows)
    if size < SMALLEST:
        return
    for (row, column), value in np.ndenumerate(values.filled(np.nan)):
        if np.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        colour = "black" if bright > 0.46 else "white"
        axes.text(
            column, row, texts[float(value)], color=colour, fontsize=size, ha="center", va="center"
        )
