"""Short texts beside the points of a figure, where they cover nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Label = tuple[str, float, float, str]  # text, x, y, colour

RINGS = (7, 13, 20, 28, 38, 50)  # distances from the point to the text, in points of 1/72 inch
ANGLES = np.deg2rad([45, 135, -45, -135, 90, -90, 0, 180, 20, 160, -20, -160, 70, 110, -70, -110])


def write_beside(
    axes: Any,
    texts: Sequence[Label],
    markers: Floats,
    lines: Sequence[Floats],
    thin: Sequence[Floats],
) -> None:
    """Write each (text, x, y, colour) beside its point; leave out what finds no free place.

    The layout of the figure is settled before, and does not change afterwards.

    Args:
        axes: matplotlib axes, all else drawn.
        texts: texts in order of importance, and their points in data coordinates.
        markers: points [n, 2] that no text may cover.
        lines: lines that no text may cover, as their corners [n, 2].
        thin: lines to keep clear of if there is room, e.g. error bars.
    """
    axes.figure.set_layout_engine("none")
    scale = axes.figure.dpi / 72
    firm = np.concatenate(
        [_around(_pixels(axes, markers), 4.5 * scale)]
        + [_along(_pixels(axes, line), 1.5 * scale) for line in lines]
    )
    soft = np.concatenate([firm] + [_along(_pixels(axes, line), 0.5 * scale) for line in thin])
    for label in texts:
        drawn = _write(axes, label, (0, 0))
        extent = drawn.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + 1.5 * scale
        drawn.remove()
        (centre,) = _pixels(axes, [label[1:3]])
        place = _free(axes, centre, half, soft, scale) or _free(axes, centre, half, firm, scale)
        if place is None:
            continue
        far, offset = place
        arrow = {"arrowstyle": "-", "color": label[3], "linewidth": 0.7, "shrinkA": 0}
        _write(axes, label, offset, arrow if far else None)
        box = _box(centre + offset, half)[None]
        firm, soft = np.concatenate((firm, box)), np.concatenate((soft, box))


def _write(
    axes: Any, label: Label, offset: tuple[float, float], arrow: dict[str, Any] | None = None
) -> Any:
    """Write a text at an offset in pixels from its point; return what is drawn."""
    text, x, y, colour = label
    return axes.annotate(
        text,
        (x, y),
        textcoords="offset pixels",
        xytext=offset,
        fontsize=9,
        color=colour,
        ha="center",
        va="center",
        zorder=5,
        arrowprops=arrow,
    )


def _free(
    axes: Any, centre: Floats, half: Floats, obstacles: Floats, scale: float
) -> tuple[bool, tuple[float, float]] | None:
    """Return the nearest offset at which the text covers nothing, and whether it is a far one."""
    inside = axes.get_window_extent()
    for far, offset in _offsets(half, scale):
        left, bottom, right, top = box = _box(centre + offset, half)
        within = left >= inside.x0 and bottom >= inside.y0
        within = within and right <= inside.x1 and top <= inside.y1
        if within and not _overlaps(box, obstacles):
            return far, (float(offset[0]), float(offset[1]))
    return None


def _offsets(half: Floats, scale: float) -> Iterator[tuple[bool, Floats]]:
    """Yield where the centre of a text of this half size may lie, the nearest first."""
    for ring in RINGS:
        for angle in ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            yield ring > RINGS[1], way * ring * scale + half * np.clip(way * 1.5, -1, 1)


def _pixels(axes: Any, points: Any) -> Floats:
    places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    placed: Floats = axes.transData.transform(places[~np.isnan(places).any(axis=1)])
    return placed


def _along(corners: Floats, reach: float) -> Floats:
    """Return boxes [n, 4] that cover a line through these corners."""
    steps = [
        np.linspace(start, end, max(int(np.hypot(*(end - start)) / (2 * reach)), 2))
        for start, end in pairwise(corners)
    ]
    return _around(np.concatenate(steps) if steps else np.empty((0, 2)), reach)


def _around(centres: Floats, reach: float) -> Floats:
    """Return a box [n, 4] of left, bottom, right and top around each pixel [n, 2]."""
    return np.concatenate((centres - reach, centres + reach), axis=1)


def _box(centre: Floats, half: Floats) -> Floats:
    return np.concatenate((centre - half, centre + half))


def _overlaps(box: Floats, obstacles: Floats) -> bool:
    apart = (obstacles[:, :2] >= box[2:]).any(axis=1) | (obstacles[:, 2:] <= box[:2]).any(axis=1)
    return not bool(apart.all())
