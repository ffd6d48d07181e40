"""Merges by singular vectors, held against the papers' formulas written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mergekit_lines.kernels import low_rank, spectra
from mergekit_lines.kernels.spectra import isotropic, leading, orthonormal
from mergekit_lines.verify.spectral import spectral_vector
from tests.singular import cart, iso_c, iso_cts, procrustes, truncated, tsv_m

SHAPES = [(7, 5), (5, 7), (8, 8), (33, 20), (2, 9), (12, 2)]


def drawn(shape: tuple[int, ...], models: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(models)]


ORACLES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., Any], dict[str, Any]]] = {
    "cart": (low_rank.cart, cart, {"rank": 0.4}),
    "cart of one direction": (low_rank.cart, cart, {"rank": 0.01}),
    "tsv_m": (low_rank.tsv_m, tsv_m, {"rank": None}),
    "tsv_m of a third": (low_rank.tsv_m, tsv_m, {"rank": 1 / 3}),
    "iso_c": (low_rank.iso_c, iso_c, {}),
    "iso_cts": (low_rank.iso_cts, iso_cts, {"rank": 0.8}),
    "iso_cts of a half": (low_rank.iso_cts, iso_cts, {"rank": 0.5}),
    "iso_cts without own directions": (low_rank.iso_cts, iso_cts, {"rank": 1.0}),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("models", [1, 2, 3])
def test_the_papers_formula(name: str, shape: tuple[int, int], models: int) -> None:
    """Tall, wide, square and narrow matrices of one to three models, λ other than 1."""
    rule, oracle, words = ORACLES[name]
    deltas = drawn(shape, models)
    expected = oracle([d.numpy() for d in deltas], scale=1.7, **words)
    result = rule(deltas, scale=1.7, **words)
    # Gram matrices have the square of the condition: half of float64's digits, at worst.
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=2e-6 * abs(expected).max())


def test_fp32_is_rounded_float64() -> None:
    """Inputs in fp32 are decomposed in float64, and the result comes back in fp32."""
    deltas = [delta.float() for delta in drawn((30, 21), 3)]
    doubled = [delta.double().numpy() for delta in deltas]
    for rule, oracle, words in (ORACLES[name] for name in ("tsv_m", "iso_c", "iso_cts")):
        result = rule(deltas, scale=1.0, **words)
        assert result.dtype == torch.float32
        expected = oracle(doubled, scale=1.0, **words)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6 * abs(expected).max())


def test_equal_models() -> None:
    """Two equal models: CART gives the model, TSV-M its leading triples once, all finite."""
    (delta,) = drawn((9, 6), 1)
    u, s, vt = truncated(delta.numpy(), 3)
    torch.testing.assert_close(low_rank.cart([delta, delta], 0.5, 1.0), delta)
    result = low_rank.tsv_m([delta, delta], 0.5, 1.0).numpy()
    np.testing.assert_allclose(result, u @ np.diag(s) @ vt, atol=1e-6)
    expected = iso_c([2 * delta.numpy()], 1.0)
    np.testing.assert_allclose(low_rank.iso_c([delta, delta], 1.0).numpy(), expected, atol=1e-6)
    assert torch.isfinite(low_rank.iso_cts([delta, delta], 0.5, 1.0)).all()


def test_opposite_and_unchanged_models() -> None:
    """Task vectors that cancel, or are zero, give zero; no direction is made up."""
    (delta,) = drawn((6, 9), 1)
    zero = torch.zeros_like(delta)
    for rule, _, words in ORACLES.values():
        assert torch.equal(rule([zero, zero], scale=1.0, **words), zero)
    assert torch.equal(low_rank.iso_c([delta, -delta], 1.0), zero)
    torch.testing.assert_close(low_rank.cart([delta, -delta], 1.0, 1.0), zero)


def test_a_change_of_low_rank_stays_one() -> None:
    """Iso-C of a rank-2 change has two equal singular values, not as many as there are rows."""
    left, right = drawn((40, 2), 1)[0], drawn((2, 30), 1, seed=1)[0]
    change = left @ right
    values = np.linalg.svd(low_rank.iso_c([change], 1.0).numpy(), compute_uv=False)
    expected = np.linalg.svd(change.numpy(), compute_uv=False)[:2].mean()
    np.testing.assert_allclose(values[:2], [expected] * 2, rtol=1e-6)
    assert values[2:].max() < 1e-6 * expected


def test_own_directions_are_not_made_up() -> None:
    """Iso-CTS of two rank-2 changes, all of them common, has four equal singular values."""
    left, right = drawn((40, 2), 2), drawn((2, 30), 2, seed=1)
    changes = [(a @ b).float() for a, b in zip(left, right, strict=True)]
    values = np.linalg.svd(low_rank.iso_cts(changes, 0.8, 1.0).numpy(), compute_uv=False)
    expected = np.linalg.svd(sum(changes).numpy(), compute_uv=False)[:4].mean()
    np.testing.assert_allclose(values[:4], [expected] * 4, rtol=1e-5)
    assert values[4:].max() < 1e-5 * expected


def test_own_directions_alone() -> None:
    """Iso-CTS with no room for common ones has two of each model, in a merge and in verify."""
    deltas = drawn((5, 9), 3)
    parts = [truncated(delta.numpy(), 2) for delta in deltas]
    left = procrustes(np.concatenate([part[0] for part in parts], axis=1))
    right = procrustes(np.concatenate([part[2] for part in parts], axis=0))
    expected = np.concatenate([part[1] for part in parts]).mean() * (left @ right)
    np.testing.assert_allclose(low_rank.iso_cts(deltas, 0.1, 1.0), expected, atol=1e-6)
    words = {"rank": 0.1, "lambda": 1.0}
    again = spectral_vector("iso_cts", "layers.0.up.weight", deltas, words, vocabulary=False)
    np.testing.assert_allclose(again, expected, atol=1e-9)


def test_leading_triples() -> None:
    """They are orthonormal, fall, and are no more than the matrix has."""
    (matrix,) = drawn((15, 11), 1)
    triples = leading(matrix, 4)
    for part in (triples.left, triples.right):
        torch.testing.assert_close(part.T @ part, torch.eye(4, dtype=torch.float64))
    np.testing.assert_allclose(triples.values, truncated(matrix.numpy(), 4)[1], rtol=1e-9)
    assert leading(matrix[:, :1] @ matrix[:1], 4).values.shape == (1,)
    assert leading(torch.zeros(3, 5), 2).values.shape == (0,)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.02, 0.08, 0.25])
def test_the_stated_error_of_the_random_subspace(
    decay: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spectra from flat (noise) to steep: at most 1 % more is left than the best leaves."""
    monkeypatch.setattr(spectra, "EXACT", 100)
    rows, columns = 400, 600
    (noise,) = drawn((rows, columns), 1)
    u, s, vt = np.linalg.svd(noise.numpy(), full_matrices=False)
    s = s if decay == 0 else np.arange(1, rows + 1) ** -decay
    matrix = torch.from_numpy(u @ np.diag(s) @ vt).float()
    count = int(share * rows)
    triples = leading(matrix, count)
    exact = matrix.double()
    rest = exact - triples.left @ (triples.left.T @ exact)
    least = np.sqrt((s[count:] ** 2).sum())
    assert least * (1 - 1e-6) <= float(rest.norm()) <= 1.01 * least
    again = leading(matrix, count)
    assert all(torch.equal(one, other) for one, other in zip(triples, again, strict=True))


def test_the_random_subspace_leaves_the_users_draws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's generator goes on where it was."""
    monkeypatch.setattr(spectra, "EXACT", 10)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    leading(torch.randn(40, 50, generator=torch.Generator().manual_seed(1)), 2)
    assert torch.equal(torch.rand(3), expected)


def test_the_nearest_orthonormal_matrix() -> None:
    """X·(XᵀX)^-½ for independent columns, tall and wide; equal columns become one direction."""
    (matrix,) = drawn((9, 4), 1)
    np.testing.assert_allclose(orthonormal(matrix), procrustes(matrix.numpy()), atol=1e-9)
    np.testing.assert_allclose(orthonormal(matrix.T), procrustes(matrix.numpy()).T, atol=1e-9)
    twice = torch.cat([matrix[:, :1], matrix[:, :1]], dim=1)
    unit = matrix[:, :1] / matrix[:, :1].norm()
    np.testing.assert_allclose(orthonormal(twice), torch.cat([unit, unit], 1) / 2**0.5, atol=1e-9)
    np.testing.assert_allclose(isotropic(matrix), iso_c([matrix.numpy()], 1.0), atol=1e-9)
