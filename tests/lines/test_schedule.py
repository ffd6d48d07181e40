"""Schedules: what is wrong with one is said, from Python too."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import mergekit_lines


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (("0.1", 1), "alpha: found '0.1', wanted a finite number"),
        ((1, True), "beta: found True, wanted a finite number"),
        ((np.float32("nan"), 1), "alpha: found nan, wanted a finite number"),
        ((10**400, 1), "alpha: found 1000"),
        ((None, 1), "alpha: found None"),
        ((1, 1, "sqrt"), "exponent: found 'sqrt'"),
        ((1, 1, 0), "exponent: found 0.0, wanted a number above 0"),
    ],
)
def test_schedule_refuses_what_is_no_number(values: Any, text: str) -> None:
    """What is wrong with a schedule is a ValueError that says what was found."""
    with pytest.raises(ValueError, match=re.escape(text)):
        mergekit_lines.Schedule(*values)


@pytest.mark.parametrize("index", ["0", 0.5, None])
def test_schedule_wants_whole_indexes(index: Any) -> None:
    """A block's index is a whole number."""
    with pytest.raises(ValueError, match=re.escape(f"block {index!r} of 3: wanted whole numbers")):
        mergekit_lines.Schedule(0.1, 0.2).coefficient(index, 3)
