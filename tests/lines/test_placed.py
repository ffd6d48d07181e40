"""The coefficient of one placed tensor, against the paper's formulas in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.placed import AUTO, Placed, ScheduleWords

WORDS: dict[str, Any] = {"alpha": 0.25, "beta": 0.5, "schedule": 1.0, "outside": "alpha"}


def placed(block: int | None = None, count: int = 5, **words: Any) -> Placed:
    """Return a tensor in one block of ``count``, or in none, under :data:`WORDS` changed."""
    depth = None if block is None else BlockDepth("model.layers", block, count)
    return Placed("a.weight", depth, ScheduleWords.of({"wrap": "ties", **WORDS, **words}))


@pytest.mark.parametrize("block", range(5))
def test_a_block_follows_equation_1(block: int) -> None:
    """λ(ℓ) = α + β·(ℓ−1)/(L−1): all five are exact in float64."""
    expected = Fraction(1, 4) + Fraction(1, 2) * Fraction(block, 4)
    assert Fraction(placed(block).coefficient()) == expected


@pytest.mark.parametrize("block", range(5))
def test_gamma_goes_from_gamma_to_one(block: int) -> None:
    """γ of ``lines_postprocess`` stands for α = γ and β = 1 − γ (C.1): the last block keeps all."""
    words = ScheduleWords.of({**WORDS, "alpha": None, "beta": None, "gamma": 0.25})
    expected = Fraction(1, 4) + Fraction(3, 4) * Fraction(block, 4)
    tensor = Placed("a.weight", BlockDepth("model.layers", block, 5), words)
    assert Fraction(tensor.coefficient()) == expected


def test_gamma_of_a_wrapped_method_is_no_alpha() -> None:
    """Under a wrap that has a ``gamma`` of its own, α and β are the recipe's."""
    assert placed(0, gamma=0.01) == placed(0)
    assert placed(4, gamma=0.01).coefficient() == 0.75


def test_alpha_auto_takes_the_calibrated_number() -> None:
    """What Eq. 2 gave is α, in the blocks and outside of them."""
    assert placed(4, alpha=AUTO).coefficient(0.125) == 0.625
    assert placed(None, alpha=AUTO).coefficient(0.125) == 0.125


def test_a_calibrated_number_replaces_no_other() -> None:
    """Where the recipe gives α, what Eq. 2 gave for other tensors is not taken."""
    assert placed(0).coefficient(0.125) == 0.25


def test_outside_is_alpha_or_its_own_number() -> None:
    """A tensor in no block gets α, or what ``outside`` says, whatever β is."""
    assert placed(None).coefficient() == 0.25
    assert placed(None, outside=1.5).coefficient() == 1.5
    assert placed(2, outside=1.5).coefficient() == 0.5


def test_a_container_of_one_block_gets_alpha() -> None:
    """One block is the first and the last: x = 0, and λ is α."""
    assert placed(0, count=1).coefficient() == 0.25


def test_an_exponent_bends_the_way() -> None:
    """``quadratic`` is ((ℓ−1)/(L−1))²: a quarter of the way in the middle."""
    assert placed(2, schedule=2.0).coefficient() == 0.25 + 0.5 / 4
