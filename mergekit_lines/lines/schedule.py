"""The schedule of LiNeS: from a block's depth to its coefficient."""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

EXPONENTS = {"linear": 1.0, "sqrt": 0.5, "quadratic": 2.0}


def plain(value: Any) -> Any:
    """Return a number of another library, e.g. numpy, as Python's own; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


@dataclass(frozen=True)
class Schedule:
    """λ(ℓ) = α + β·x^p with x = (ℓ−1)/(L−1): LiNeS, Eq. 1, and its ablation C.3 (p ≠ 1).

    Args:
        alpha: coefficient of the first block.
        beta: coefficient gained from the first block to the last.
        exponent: p > 0; 1 is the paper's linear schedule.

    Raises:
        ValueError: a value is not finite, or the exponent is not positive.

    Source: arXiv 2410.17146.
    """

    alpha: float
    beta: float
    exponent: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "exponent"):
            value = plain(getattr(self, name))
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not abs(value) <= sys.float_info.max:
                raise ValueError(f"{name}: found {value!r:.80}, wanted a finite number")
            object.__setattr__(self, name, float(value))
        if self.exponent <= 0:
            raise ValueError(f"exponent: found {self.exponent!r}, wanted a number above 0")

    def coefficient(self, index: int, count: int) -> float:
        """Return λ of the block with 0-based ``index`` among ``count`` blocks.

        A container of one block has x = 0, hence λ = α.

        Raises:
            ValueError: the index lies outside the container, or is no whole number.
        """
        try:
            index, count = operator.index(index), operator.index(count)
        except TypeError:
            raise ValueError(f"block {index!r} of {count!r}: wanted whole numbers") from None
        if not 0 <= index < count:
            raise ValueError(f"block {index} is not one of {count} blocks")
        if count == 1:
            return self.alpha
        return self.alpha + self.beta * (index / (count - 1)) ** self.exponent
