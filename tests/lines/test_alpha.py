"""α of Eq. 2 from norms given by hand, and from its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergekit_lines.errors import LinesError
from mergekit_lines.lines.alpha import Contribution, NormCollector, find_alpha
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.placed import AUTO, BLOCK, Placed, ScheduleWords

WORDS = ScheduleWords(AUTO, 0.5, 1.0, "alpha")
# |x| of τ_sum and of τ_MTL, tensor by tensor.
SUMS, MERGED = [[1.0, 2.0], [3.0, 6.0]], [[0.5, 0.5], [1.0, 2.0]]


def tensor(
    name: str,
    models: str = "ab",
    factors: frozenset[float] | None = None,
    words: ScheduleWords = WORDS,
) -> Contribution:
    return Contribution(Placed(name, None, words), frozenset(models), factors)


def collected(sums: list[list[float]], merged: list[list[float]], collector: NormCollector) -> None:
    for number, (one, other) in enumerate(zip(sums, merged, strict=True)):
        terms = [sum(abs(x) ** collector.power for x in values) for values in (one, other)]
        collector.terms[f"t{number}"] = (terms[0], terms[1])


@pytest.mark.parametrize(
    ("norm", "tau_sum", "tau_mtl"),
    [("l1", 12.0, 4.0), ("l2", math.sqrt(50), math.sqrt(5.5))],
)
def test_alpha_is_the_ratio_of_two_norms(norm: str, tau_sum: float, tau_mtl: float) -> None:
    """α = ‖τ_sum‖ / ‖τ_MTL‖ / N, each norm over the whole model."""
    found = find_alpha([tensor("t0"), tensor("t1")], norm, lambda to: collected(SUMS, MERGED, to))
    assert found is not None
    assert found.alpha == pytest.approx(tau_sum / tau_mtl / 2, rel=1e-15)
    assert (found.tau_sum, found.tau_mtl) == pytest.approx((tau_sum, tau_mtl), rel=1e-15)
    assert found.models == 2 and found.norm == norm


@pytest.mark.parametrize(("models", "factor", "alpha"), [("ab", 0.5, 1.0), ("abcd", -0.25, 1.0)])
def test_the_closed_form_reads_nothing(models: str, factor: float, alpha: float) -> None:
    """Where the merge is factor·τ_sum everywhere, α is 1/(N·|factor|) and no norm is asked for."""

    def never(collector: NormCollector) -> None:
        raise AssertionError(collector)

    tensors = [tensor(name, models, frozenset({factor})) for name in ("t0", "t1")]
    found = find_alpha(tensors, "l1", never)
    assert found is not None and found.alpha == alpha
    assert found.tau_sum is None and found.tau_mtl is None


@pytest.mark.parametrize("factors", [(0.5, 0.25), (0.0, 0.0), (0.5, None)])
def test_without_one_factor_the_norms_are_read(factors: tuple[float | None, ...]) -> None:
    """Two factors, none, or zero: there is no closed form."""
    tensors = [
        tensor(f"t{n}", factors=None if factor is None else frozenset({factor}))
        for n, factor in enumerate(factors)
    ]
    found = find_alpha(tensors, "l1", lambda to: collected(SUMS, MERGED, to))
    assert found is not None and found.alpha == 1.5


def test_a_number_needs_no_calibration() -> None:
    """Where no tensor says `auto` there is nothing to find."""
    words = ScheduleWords(0.3, 0.5, 1.0, "alpha")
    assert find_alpha([tensor("t0", words=words)], "l1", lambda to: None) is None


@pytest.mark.parametrize(
    ("sums", "merged", "text"),
    [
        ([[0.0]], [[1.0]], "a norm of zero for τ_sum"),
        ([[1.0]], [[0.0]], "a norm of zero for τ_MTL"),
        ([[math.inf]], [[1.0]], "a norm of inf for τ_sum"),
        ([[1.0]], [[math.nan]], "a norm of nan for τ_MTL"),
    ],
)
def test_norms_that_give_no_alpha(
    sums: list[list[float]], merged: list[list[float]], text: str
) -> None:
    """A zero or endless norm is refused by its name in Eq. 2."""
    with pytest.raises(LinesError, match=text):
        find_alpha([tensor("t0")], "l1", lambda to: collected(sums, merged, to))


def test_other_models_in_one_tensor() -> None:
    """N has to be one number: tensors of different models are named."""
    with pytest.raises(LinesError, match="from the same models") as caught:
        find_alpha([tensor("t0", "ab"), tensor("t1", "a")], "l1", lambda to: None)
    assert "t0" in str(caught.value) and "t1" in str(caught.value)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_alpha_of_each_block(norm: str) -> None:
    """`block` is Eq. 2 over the tensors of one block; a ratio of zero leaves the whole one."""
    values = {  # of τ_sum and of τ_MTL, by block
        ("layers", 0): ([[3.0, -4.0], [12.0]], [[1.0, 2.0], [2.0]]),
        ("layers", 1): ([[0.0, 0.0]], [[1.0, 1.0]]),  # the task vectors cancel
        ("layers", 2): ([[5.0]], [[0.0]]),  # the merge leaves it as it was
        ("tower", 0): ([[6.0]], [[2.0]]),
        ("embed", None): ([[1.0]], [[0.5]]),
    }
    counts = {"layers": 4, "tower": 1}  # block 3 of the first has no tensor
    words = ScheduleWords(BLOCK, 0.5, 1.0, "alpha")
    tensors, vectors = [], {}
    for (place, index), (sums, merged) in values.items():
        depth = None if index is None else BlockDepth(place, index, counts[place])
        for number, pair in enumerate(zip(sums, merged, strict=True)):
            name = f"{place}.{index}.{number}"
            tensors.append(Contribution(Placed(name, depth, words), frozenset("ab"), None))
            vectors[name] = pair

    def collect(collector: NormCollector) -> None:
        for name, pair in vectors.items():
            one, other = (sum(abs(x) ** collector.power for x in values) for values in pair)
            collector.terms[name] = (one, other)

    def ratio(place: str) -> float:
        chosen = [pair for name, pair in vectors.items() if name.startswith(place)]
        order = 1 if norm == "l1" else 2
        up, down = (
            np.linalg.norm(np.concatenate([pair[which] for pair in chosen]), order)
            for which in (0, 1)
        )
        return float(up / down / 2)

    calibration = find_alpha(tensors, norm, collect)
    assert calibration is not None and calibration.blocks is not None
    assert calibration.alpha == pytest.approx(ratio(""), rel=1e-14)
    whole = calibration.alpha
    assert calibration.blocks["layers"] == pytest.approx(
        [ratio("layers.0"), whole, whole, whole], rel=1e-14
    )
    assert calibration.blocks["tower"] == pytest.approx([ratio("tower.0")], rel=1e-14)


def test_the_order_of_tensors_does_not_matter() -> None:
    """Sums are exact: terms that would swallow each other count in any order."""
    terms = {"a": (1e16, 1.0), "b": (1.0, 1.0), "c": (-1e16, 1.0)}
    turned = dict(reversed(terms.items()))
    assert NormCollector(1, terms).total(0) == NormCollector(1, turned).total(0) == 1.0
