"""What a plan will do, for people and for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a finished plan will do, for the report, the card and the console."""

    wraps: tuple[str, ...]
    seed: int
    alpha: Any  # a Calibration, a number, or None where it differs between tensors
    containers: dict[str, list[list[float]]]  # container -> per block, its distinct coefficients
    outside: dict[str, float]
