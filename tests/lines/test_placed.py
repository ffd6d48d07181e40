"""The coefficient of one placed tensor, against the paper's formulas in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.placed import AUTO, BLOCK, LARV, Placed, ScheduleWords
from mergekit_lines.lines.readings import Calibration, Readings, Tier

WORDS: dict[str, Any] = {"alpha": 0.25, "beta": 0.5, "schedule": 1.0, "outside": "alpha"}
EIGHTH = Readings(Calibration(0.125, 2, "l1"))


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
    assert placed(4, alpha=AUTO).coefficient(EIGHTH) == 0.625
    assert placed(None, alpha=AUTO).coefficient(EIGHTH) == 0.125
    assert placed(4, alpha=None).coefficient(EIGHTH) == 0.625  # what the recipe leaves out


def test_a_calibrated_number_replaces_no_other() -> None:
    """Where the recipe gives α, what Eq. 2 gave for other tensors is not taken."""
    assert placed(0).coefficient(EIGHTH) == 0.25


def test_alpha_block_takes_its_own_number() -> None:
    """Each block has its α, with β's ramp on top; outside has that of the whole model."""
    alphas = [0.5, 0.25, 0.75, 1.5, 0.0]
    read = Readings(Calibration(0.125, 2, "l1", 1.0, 1.0, {"model.layers": alphas}))
    for block, alpha in enumerate(alphas):
        expected = Fraction(alpha) + Fraction(1, 2) * Fraction(block, 4)
        assert Fraction(placed(block, alpha=BLOCK).coefficient(read)) == expected
        assert placed(block, alpha=AUTO).coefficient(read) == 0.125 + 0.125 * block
    assert placed(None, alpha=BLOCK).coefficient(read) == 0.125
    assert placed(None, alpha=BLOCK, outside=0.4).coefficient(read) == 0.4
    assert placed(4, alpha=BLOCK).coefficient(EIGHTH) == 0.625  # the closed form: one for all


def test_larv_multiplies_alpha_by_a_level() -> None:
    """λ = α·s(ℓ) in a block, α outside; α may be Eq. 2's."""
    tiers = [Tier(1.0, 0.0, level) for level in (0.75, 1.0, 1.25, 1.0, 1.0)]
    read = Readings(EIGHTH.calibration, {"model.layers": tiers})
    words = {"schedule": LARV, "beta": None}
    assert [placed(n, **words).coefficient(read) for n in range(3)] == [0.1875, 0.25, 0.3125]
    assert placed(None, **words).coefficient(read) == 0.25
    assert placed(2, **words, alpha=AUTO).coefficient(read) == 0.15625
    with pytest.raises(ValueError, match="before the weights are read"):
        placed(2, **words).coefficient()


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
