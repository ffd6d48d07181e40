"""Coefficients that are written out, against an interpolation in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.lines.readings import Calibration, Readings
from mergekit_lines.lines.rules import at_depth

VALUES = (0.1, 0.7, -0.4, 1.3, 0.2)


def interpolated(values: tuple[float, ...], index: int, count: int) -> Fraction:
    """Return Σ v_i · max(0, 1 − |x·(n−1) − i|): the hats of linear interpolation, x in [0, 1]."""
    x = Fraction(index, count - 1) if count > 1 else Fraction(0)
    place = x * (len(values) - 1)
    hats = (max(Fraction(0), 1 - abs(place - number)) for number in range(len(values)))
    return sum((Fraction(v) * hat for v, hat in zip(values, hats, strict=True)), Fraction(0))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 13, 32])
@pytest.mark.parametrize("number", [2, 3, 5])
def test_values_are_spread_evenly_over_depth(number: int, count: int) -> None:
    """Any number of values gives every block what lies at its depth, linearly between two."""
    values = VALUES[:number]
    for index in range(count):
        want = float(interpolated(values, index, count))
        assert at_depth(values, index, count) == pytest.approx(want, rel=1e-15, abs=1e-16)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_one_value_for_each_block_is_taken_to_the_bit(number: int) -> None:
    """As many values as blocks are the coefficients themselves."""
    values = VALUES[:number]
    assert tuple(at_depth(values, index, number) for index in range(number)) == values


def test_values_of_two_ends_are_the_linear_schedule() -> None:
    """Two values are α and α + β of Eq. 1; the blocks between lie on the line."""
    for index in range(9):
        assert at_depth((0.25, 0.75), index, 9) == pytest.approx(0.25 + 0.5 * index / 8, rel=1e-15)


def words(**values: Any) -> ScheduleWords:
    plain = {"wrap": "ties", "alpha": None, "beta": None, "outside": "alpha"}
    return ScheduleWords.of({**plain, "schedule": VALUES, **values})


def test_outside_gets_the_first_value() -> None:
    """α is the first block's coefficient, and outside gets α, or a number of its own."""
    assert Placed("w", None, words()).coefficient() == 0.1
    assert Placed("w", None, words(outside=0.5)).coefficient() == 0.5
    assert Placed("w", BlockDepth("layers", 1, 5), words(outside=0.5)).coefficient() == 0.7


def test_values_need_no_calibration() -> None:
    """Values stand in the place of α: what Eq. 2 found for other tensors is not taken."""
    read = Readings(Calibration(0.125, 2, "l1"))
    assert Placed("w", BlockDepth("layers", 0, 5), words()).coefficient(read) == 0.1
    assert Placed("w", None, words()).coefficient(read) == 0.1
