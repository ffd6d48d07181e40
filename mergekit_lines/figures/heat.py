"""Two swept keys: a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergekit_lines.drawing import (
    INK,
    fit_height,
    legend_below,
    number,
    number_ticks,
    numbers,
    wrapped,
)
from mergekit_lines.figures.parts import are_texts, place_ticks, refuse_nothing, word


def build_heat(
    figure: Any,
    path: Path,
    x_name: str,
    xs: Sequence[float | str],
    y_name: str,
    ys: Sequence[float | str],
    grid: ArrayLike,
    chosen: tuple[float | str, float | str] | None,
    best: Mapping[str, float],
    metric_name: str,
    title: str | None,
) -> None:
    """Draw what :func:`mergekit_lines.figures.sweep_heat` tells into an empty figure."""
    from matplotlib.patches import Patch, Rectangle

    values = np.asarray(grid, dtype=np.float64)
    if values.shape != (len(ys), len(xs)):
        raise ValueError(f"grid: found {list(values.shape)}, wanted {[len(ys), len(xs)]}")
    refuse_nothing(path, [values])
    axes = figure.subplots()
    height = min(max(0.45 * len(ys), 2.0), 7.0)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    spread = (high - low) or max(abs(high), 1.0) * 0.1
    image = axes.imshow(
        np.ma.masked_invalid(values),
        origin="lower",
        aspect="auto",
        cmap="cividis",
        vmin=low if high > low else low - spread / 2,
        vmax=high if high > low else high + spread / 2,
    )
    axes.set_facecolor("#eeeeee")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(wrapped(metric_name, int(11 * height)))
    bar.outline.set_visible(False)
    number_ticks(bar.ax.yaxis)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    place_ticks(axes.xaxis, xs, 78)
    _row_ticks(axes.yaxis, ys, height)
    axes.set_xlabel(wrapped(x_name, 80))
    axes.set_ylabel(wrapped(y_name, int(11 * height)))
    _write_cells(axes, image, values, height)
    handles: list[Any] = []
    if chosen is not None:
        column, row = list(xs).index(chosen[0]), list(ys).index(chosen[1])
        for colour, width in (("white", 5.0), (INK, 2.2)):  # seen on the dark and on the bright
            ring = Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width
            )
            axes.add_patch(ring).set_clip_on(False)
        ring.set_label(f"chosen: {x_name} = {word(chosen[0])}, {y_name} = {word(chosen[1])}")
        handles.append(ring)
    if np.isnan(values).any():
        handles.append(Patch(facecolor="#eeeeee", edgecolor="#999999", label="not measured"))
    told = "  ·  ".join(f"best {label}: {number(value)}" for label, value in best.items())
    over = [wrapped(text, 84) for text in (title, told) if text]
    if over:
        figure.suptitle("\n".join(over), fontsize=11)
    if handles:
        legend_below(figure, handles)
    fit_height(figure, axes, 1, height)


def _row_ticks(axis: Any, ys: Sequence[float | str], height: float) -> None:
    """Name the rows; of too many numbers some are left out."""
    if are_texts(ys):
        axis.set_ticks(range(len(ys)), [wrapped(word(y), 24) for y in ys])
        return
    step = math.ceil(0.2 * len(ys) / height)
    axis.set_ticks(range(0, len(ys), step), numbers(float(y) for y in ys[::step]))


def _write_cells(axes: Any, image: Any, values: NDArray[np.float64], height: float) -> None:
    """Write each value into its cell, if the longest fits."""
    known = values[~np.isnan(values)]
    digits = 4 - len(f"{np.abs(known).max():.0f}")
    texts = {float(v): f"{v:,.{max(digits, 0)}f}".replace("-", "−") for v in known}
    longest = max(map(len, texts.values()))
    rows, columns = values.shape
    size = min(9.0, 420 / columns / (0.64 * longest), 60 * height / rows)  # points of 1/72 inch
    if size < 6.5:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        colour = "black" if bright > 0.5 else "white"
        axes.text(
            column, row, texts[float(value)], color=colour, fontsize=size, ha="center", va="center"
        )
