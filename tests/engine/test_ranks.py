"""The effective rank, against numpy's singular values; and what of a tensor is looked at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mergekit_lines.checkpoint.sources import HeldTensor
from mergekit_lines.engine.ranks import SAMPLE, as_matrix, sampled, sampled_entries, spectrum_terms
from mergekit_lines.errors import LinesError
from mergekit_lines.kernels.spectra import effective_rank


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (3, 7), (31, 31), (64, 5)])
def test_effective_rank_is_the_exponential_of_the_entropy(shape: tuple[int, int]) -> None:
    """exp(−Σ p·log p), p = σ²/Σσ², of numpy's own singular values."""
    matrix = np.random.default_rng(sum(shape)).normal(size=shape)
    shares = np.linalg.svd(matrix, compute_uv=False) ** 2
    shares /= shares.sum()
    want = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.from_numpy(matrix)) == pytest.approx(want, rel=1e-10)


def test_known_ranks() -> None:
    """k equal singular values have rank k; one of rank 1 has 1; zeros have none."""
    for k in (1, 2, 5):
        projection = torch.zeros(6, 8, dtype=torch.float64)
        projection[range(k), range(k)] = 3.0
        assert effective_rank(projection) == pytest.approx(k, rel=1e-12)
    thin = torch.ones(9, 1, dtype=torch.float64) @ torch.ones(1, 4, dtype=torch.float64)
    assert effective_rank(thin) == pytest.approx(1.0, abs=1e-12)
    assert effective_rank(torch.zeros(3, 2, dtype=torch.float64)) == 0.0


def test_the_scale_of_a_matrix_does_not_matter() -> None:
    """The shares are what counts, down to the smallest update."""
    matrix = torch.from_numpy(np.random.default_rng(5).normal(size=(12, 20)))
    want = effective_rank(matrix)
    assert effective_rank(matrix * 2.0**-60) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((4096, 11008), (4096, 11008)),
        ((64, 32, 3, 3), (64, 288)),  # a convolution: filters by what each sees
        ((512, 80, 3), (512, 240)),
        ((8, 64, 96), (512, 96)),  # stacked experts: their rows
        ((5,), None),
        ((), None),
        ((0, 4), None),
    ],
)
def test_what_counts_as_a_matrix(shape: tuple[int, ...], matrix: tuple[int, int] | None) -> None:
    """Tensors are cut into rows and columns where they are most nearly square."""
    assert as_matrix(shape) == matrix


def test_a_sample_is_fixed_and_bounded() -> None:
    """Small sides are whole; of large ones always the same 256, each once and in order."""
    assert sampled(200) == list(range(200))
    assert sampled(SAMPLE) == list(range(SAMPLE))
    chosen = sampled(11008)
    assert chosen == sampled(11008) == sorted(set(chosen))
    assert (len(chosen), SAMPLE) == (256, 256) and 0 <= chosen[0] and chosen[-1] < 11008
    assert chosen[:3] == [18, 24, 203]  # whatever machine and process


def rank_of(matrix: np.ndarray[Any, Any]) -> float:
    shares = np.linalg.svd(matrix, compute_uv=False) ** 2
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [((7, 3), (7, 3)), ((5, 3, 2, 2), (5, 12)), ((4, 6, 9), (24, 9)), ((300, 700), (300, 700))],
)
@pytest.mark.parametrize("cast", [None, torch.bfloat16])
def test_terms_of_a_tensor(
    shape: tuple[int, ...], matrix: tuple[int, int], cast: torch.dtype | None
) -> None:
    """Contrasts and products of the sampled rows and columns, of inputs that are rounded first."""
    generator = torch.Generator().manual_seed(1)
    base, one, other = (torch.randn(shape, generator=generator) for _ in range(3))
    inputs = [base, base + 0.1 * one, base + 0.1 * other, base.clone()]
    own = spectrum_terms(
        "w", HeldTensor(base), {n: HeldTensor(x) for n, x in enumerate(inputs[1:])}, cast
    )
    assert own is not None
    rounded = [each if cast is None else each.to(cast).float() for each in inputs]
    rows, columns = (sampled(count) for count in matrix)
    zero, *tuned = (each.double().numpy().reshape(matrix)[rows][:, columns] for each in rounded)
    updates = [each - zero for each in tuned]
    want = [rank_of(zero) / rank_of(update) for update in updates[:2]]
    contrasts, products = own
    assert contrasts == pytest.approx(want, rel=1e-9)  # the third model changed nothing
    expected = [[float((a * b).sum()) for b in updates] for a in updates]
    assert np.allclose(products, expected, rtol=1e-9, atol=0)
    assert sampled_entries(shape) == min(matrix[0], 256) * matrix[1]


def test_what_is_no_weight_matrix_tells_nothing() -> None:
    """Vectors, integers, and tensors of other shapes are left out."""
    vector, counts = HeldTensor(torch.ones(4)), HeldTensor(torch.ones(4, 4, dtype=torch.int64))
    square, wide = HeldTensor(torch.ones(4, 4)), HeldTensor(torch.ones(4, 5))
    assert spectrum_terms("w", vector, {"a": vector}, None) is None
    assert spectrum_terms("w", counts, {"a": counts}, None) is None
    assert spectrum_terms("w", square, {"a": wide}, None) is None


def test_infinity_is_refused_by_tensor_and_model() -> None:
    """No rank is taken of what is not finite."""
    broken = torch.ones(3, 3)
    broken[1, 2] = math.inf
    base = HeldTensor(torch.ones(3, 3))
    with pytest.raises(LinesError, match="larv found NaN or infinity in tensor w of math, wanted"):
        spectrum_terms("w", base, {"math": HeldTensor(broken)}, None)
