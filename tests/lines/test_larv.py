"""LARV's tiers, against the documented rule written out again in numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.larv import MatrixTerms, tiers

Array = np.ndarray[Any, np.dtype[np.float64]]


def rank_of(matrix: Array) -> float:
    """Return exp of the entropy of σ²/Σσ², from numpy's singular values."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    if not squares.sum():
        return 0.0
    shares = squares[squares > 0] / squares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def model(blocks: int, seed: int, scale: float = 1.0) -> list[list[Array]]:
    """Return two matrices of odd shapes for every block; deeper ones are of lower rank."""
    rng = np.random.default_rng(seed)
    result = []
    for block in range(blocks):
        thin = rng.normal(size=(7, 1)) @ rng.normal(size=(1, 5))
        noise = rng.normal(size=(7, 5)) * (1 - block / max(blocks, 2))
        result.append([scale * (thin + noise), scale * rng.normal(size=(3, 9))])
    return result


def terms_of(base: list[list[Array]], updates: list[list[list[Array]]]) -> dict[str, MatrixTerms]:
    terms = {}
    for block, matrices in enumerate(base):
        for number, origin in enumerate(matrices):
            own = [update[block][number] for update in updates]
            ranks = [rank_of(update) for update in own]
            terms[f"layers.{block}.{number}"] = MatrixTerms(
                contrasts=[rank_of(origin) / rank for rank in ranks if rank],
                products=[[float((one * other).sum()) for other in own] for one in own],
            )
    return terms


def depths_of(blocks: int, container: str = "layers") -> dict[str, BlockDepth]:
    return {
        f"{container}.{block}.{number}": BlockDepth(container, block, blocks)
        for block in range(blocks)
        for number in (0, 1)
    }


def expected(base: list[list[Array]], updates: list[list[list[Array]]]) -> list[float]:
    """Return the levels by the rule: z of contrast less z of conflict, cut at half a deviation."""
    contrasts, conflicts = [], []
    for block, matrices in enumerate(base):
        contrasts.append(
            np.mean(
                [
                    rank_of(origin) / rank_of(update[block][number])
                    for number, origin in enumerate(matrices)
                    for update in updates
                ]
            )
        )
        flat = [np.concatenate([m.ravel() for m in update[block]]) for update in updates]
        cosines = [
            one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            for one, other in itertools.combinations(flat, 2)
        ]
        conflicts.append(np.mean([(1 - cosine) / 2 for cosine in cosines]) if cosines else 0.0)

    def z(values: list[Any]) -> Array:
        array = np.asarray(values, dtype=np.float64)
        spread = array.std()
        return (array - array.mean()) / spread if spread > 1e-9 else np.zeros_like(array)

    score = z(contrasts) - z(conflicts)
    return [0.75 if s <= -0.5 else 1.25 if s >= 0.5 else 1.0 for s in score]


@pytest.mark.parametrize("models", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 2, 3, 8, 13])
def test_levels_follow_the_rule(blocks: int, models: int) -> None:
    """Contrast and conflict, standardised over the blocks, give one of three levels."""
    base = model(blocks, 0)
    updates = [model(blocks, seed, 0.01) for seed in range(1, models + 1)]
    (own,) = tiers(terms_of(base, updates), depths_of(blocks)).values()
    assert [tier.level for tier in own] == expected(base, updates)
    if blocks == 1:
        assert own[0].level == 1.0  # nothing to compare it with
    if blocks == 13:
        assert {tier.level for tier in own} == {0.75, 1.0, 1.25}


def test_models_that_are_equal_do_not_conflict() -> None:
    """Of equal updates the conflict is zero in every block, to rounding, and decides nothing."""
    base, update = model(6, 0), model(6, 1, 0.01)
    (own,) = tiers(terms_of(base, [update, update]), depths_of(6)).values()
    assert [tier.conflict for tier in own] == pytest.approx([0.0] * 6, abs=1e-15)
    (alone,) = tiers(terms_of(base, [update]), depths_of(6)).values()
    assert [tier.level for tier in own] == [tier.level for tier in alone]


def test_opposite_models_conflict_wholly() -> None:
    """τ and −τ conflict by 1 in every block."""
    base, update = model(3, 0), model(3, 1, 0.01)
    opposite = [[-matrix for matrix in matrices] for matrices in update]
    (own,) = tiers(terms_of(base, [update, opposite]), depths_of(3)).values()
    assert [tier.conflict for tier in own] == pytest.approx([1.0] * 3, rel=1e-12)


def test_a_block_that_nothing_changed_has_level_one() -> None:
    """Frozen blocks divide by no zero, have the middle level, and count for no other block."""
    base, updates = model(7, 0), [model(7, seed, 0.01) for seed in (1, 2)]
    for update in updates:
        update[3] = [np.zeros_like(matrix) for matrix in update[3]]
    (own,) = tiers(terms_of(base, updates), depths_of(7)).values()
    assert (own[3].contrast, own[3].conflict, own[3].level) == (0.0, 0.0, 1.0)
    rest = [block for block in range(7) if block != 3]
    without = expected([base[n] for n in rest], [[update[n] for n in rest] for update in updates])
    assert [own[n].level for n in rest] == without


def test_each_container_is_standardised_by_itself() -> None:
    """A second tower with other contrasts changes nothing in the first; order changes nothing."""
    base, updates = model(5, 0), [model(5, seed, 0.01) for seed in (1, 2)]
    terms, depths = terms_of(base, updates), depths_of(5)
    both = {**terms, **{f"tower{name[6:]}": terms["layers.0.0"] for name in terms}}
    turned = dict(reversed(both.items()))
    place = {**depths, **depths_of(5, "tower")}
    assert tiers(turned, place)["layers"] == tiers(terms, depths)["layers"]
    assert [tier.level for tier in tiers(both, place)["tower"]] == [1.0] * 5
