"""What the figures of sweeps and soups share: the look of each line, words on an axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mergekit_lines.errors import LinesError
from mergekit_lines.figures.drawing import (
    COLOURS,
    MARKERS,
    new_figure,
    number,
    numbers,
    save,
    wrapped,
)

# One line has one look in every figure, whatever stands beside it.
PLACES = {"LiNeS": 0, "unscaled": 1, "uniform, equal mean": 2}
DASHES = ("-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1.2)), (0, (7, 2, 2, 2)), (0, (3, 3)))

WIDTH, TALL, DPI = 8.0, 30.0, 200  # inches; the height until it is known what is in the figure


@contextmanager
def page(path: Path) -> Iterator[Any]:
    """Yield an empty figure, and write it to a PNG file when it was drawn.

    It is 1,600 pixels wide, twice the width of a page, and as high as what is in it needs.

    Raises:
        LinesError: matplotlib is not there, or the file cannot be made.
    """
    figure = new_figure(str(path), WIDTH, TALL, DPI)
    yield figure
    save(figure, path)


def looks_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and dashes of each line: a known name's own, then what is free."""
    distinct = list(dict.fromkeys(labels))
    taken = {PLACES[label] for label in distinct if label in PLACES}
    free = iter(place for place in range(len(distinct) + len(PLACES)) if place not in taken)
    looks = {}
    for label in distinct:
        place = (PLACES[label] if label in PLACES else next(free)) % len(COLOURS)
        looks[label] = {
            "color": COLOURS[place],
            "marker": MARKERS[place],
            "linestyle": DASHES[place],
        }
    return looks


def are_texts(values: Iterable[float | str]) -> bool:
    """Whether an axis has words on it: choices, or truth values."""
    return any(isinstance(value, (str, bool, np.bool_)) for value in values)


def word(value: float | str) -> str:
    """Return one value of a swept key as the legend has it."""
    return str(value) if are_texts([value]) else number(float(value))


def place_ticks(axis: Any, values: Sequence[float | str], room: int) -> None:
    """Name the places 0, 1, … of an axis on which ``room`` characters fit.

    Texts that are too long are broken, then turned; of too many numbers some are left out.
    """
    places = range(len(values))
    if not are_texts(values):
        step = ticks_step(values, room)
        axis.set_ticks(places[::step], numbers(float(value) for value in values[::step]))
        return
    turned = turns_ticks(values, room)
    each = 30 if turned else room // len(values) - 1
    axis.set_ticks(places, [wrapped(word(value), each) for value in values])
    if turned:
        axis.set_tick_params(rotation=90)


def ticks_step(values: Sequence[float | str], room: int) -> int:
    """Return the step by which numbers stand on an axis of this room: 1 names every one."""
    names = numbers(float(value) for value in values)
    return -(-(max(map(len, names)) + 1) * len(names) // room)


def turns_ticks(texts: Sequence[float | str], room: int) -> bool:
    """Whether texts are too long to stand side by side, broken, on an axis of this room."""
    each = room // len(texts) - 1
    words = [word(text) for text in texts]
    if each < 8:
        return max(map(len, words)) > each
    return max(wrapped(text, each).count("\n") for text in words) >= 4


def refuse_nothing(figure: Any, values: Iterable[ArrayLike]) -> None:
    """Refuse a figure without any point.

    Raises:
        LinesError: none of the arrays has a finite number.
    """
    if not any(np.isfinite(np.asarray(array, dtype=np.float64)).any() for array in values):
        raise LinesError(
            f"{figure.get_label()}: there is nothing to draw: no point has a value yet."
        )
