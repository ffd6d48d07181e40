"""What every picture of ours shares: colours, an empty figure, numbers, the legend, the file.

matplotlib is an extra, and imported only where a figure is made.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError, reason

# Dark on white, and told apart by the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
INK = "#222222"


def new_figure(where: str, width: float, height: float, dpi: int) -> Any:
    """Return an empty matplotlib figure of this size in inches; ``where`` opens an error.

    Raises:
        LinesError: matplotlib is not there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LinesError(
            f"{where}: matplotlib is not installed ({reason(error)}). Install it with "
            f"`pip install 'mergekit-lines[plot]'`."
        ) from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_label(where)  # it stands in no picture
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file, in one piece once it is drawn.

    Raises:
        LinesError: the file cannot be made.
    """
    from PIL import Image  # matplotlib brings it

    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:  # 256 colours look alike, in a third of the bytes
        small_image = image.convert("RGB").quantize(256)
        small_image.save(small, "PNG", optimize=True, dpi=image.info["dpi"])
    try:
        path.write_bytes(small.getvalue())
    except OSError as error:
        raise LinesError(
            f"{figure.get_label()}: cannot be written ({error.strerror}). Choose another file."
        ) from error


def plain_axes(axes: Any, grid: str) -> None:
    """Draw no box around the axes, and a faint grid along ``x``, ``y`` or ``both``."""
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def number(value: float) -> str:
    """Return a number of a legend or a tick: thousands parted, no trailing zeros."""
    return f"{value:,.6g}".replace("-", "−")


def numbers(values: Iterable[float]) -> list[str]:
    """Return the numbers of one axis, with as many decimals on each as the longest needs."""
    listed = list(values)
    texts = [f"{value:.6g}" for value in listed]
    if any("e" in text for text in texts if float(text)):
        return [number(value) for value in listed]
    decimals = max((len(text.partition(".")[2]) for text in texts if "e" not in text), default=0)
    return [f"{value + 0.0:,.{decimals}f}".replace("-", "−") for value in listed]


def number_ticks(axis: Any) -> None:
    """Write an axis' numbers in full, never as an offset or a power."""

    def text(value: float, _: int) -> str:
        ticks = [float(tick) for tick in axis.get_majorticklocs()]
        step = min((b - a for a, b in pairwise(ticks)), default=0.0)
        near_zero = [0.0 if abs(tick) < step / 1e6 else tick for tick in (value, *ticks)]
        return numbers(near_zero)[0]

    axis.set_major_formatter(text)


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of at most ``width`` characters: at spaces, else within a name.

    A dollar sign is a dollar sign, and begins no formula.
    """
    lines: list[str] = []
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        lines.append("")
        for part in [line] if len(line) <= width else re.split(r"(?<=[ _./-])", line):
            pieces = [part[n : n + width] for n in range(0, len(part), width)]
            for piece in pieces:
                if len(lines[-1]) + len(piece.rstrip()) > width:
                    lines.append("")
                lines[-1] += piece
    return "\n".join(line.strip() for line in lines).replace("$", r"\$")


def fit_height(figure: Any, axes: Any, rows: float, height: float) -> None:
    """Make the figure as high as ``rows`` of axes of this height, in inches, and its texts need.

    Long names then take their own room, and none of the drawing's.
    """
    layout = figure.get_layout_engine()
    layout.execute(figure)
    texts = figure.get_figheight() - rows * axes.get_window_extent().height / figure.dpi
    figure.set_figheight(texts + rows * height)
    for _ in range(2):  # a layout goes by the ticks of the one before
        layout.execute(figure)


def legend_below(figure: Any, handles: Sequence[Any]) -> None:
    """Write the legend beneath the figure, in as many even columns as fit its width."""
    for handle in handles:
        handle.set_label(wrapped(handle.get_label(), 60))
    for columns in range(len(handles), 0, -1):
        if columns > 1 and -(-len(handles) // -(-len(handles) // columns)) != columns:
            continue  # fewer columns need no more rows
        legend = figure.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=10,
            handlelength=2.6,
            columnspacing=1.6,
        )
        if legend.get_window_extent().width <= 0.97 * figure.bbox.width:
            return
        if columns > 1:
            legend.remove()
