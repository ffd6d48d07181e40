"""Singular values and vectors of one matrix: leading ones, orthonormal factors, how many count."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# Up to this smaller side every decomposition is exact. Beyond, the leading ones are sought in a
# random subspace where they are at most this share of all: for more of them that costs as much.
EXACT = 2048
SHARE = 0.25
# Of the subspace: directions beyond those wanted (a tenth of them where that is more), and how
# often it is multiplied by A·Aᵀ, for spectra that fall off slowly, as task vectors' do.
OVERSAMPLING = 16
ITERATIONS = 4
# What σ must be of the largest to be told from the rounding of its square in float64.
RESOLVED = 1e-7
# Columns that two models share up to rounding: the square of a singular value, of the largest.
SEPARATE = 1e-10


class Triples(NamedTuple):
    """Leading singular triples: A ≈ left · diag(values) · rightᵀ, in float64.

    Attributes:
        left: orthonormal columns, (m, k).
        values: σ, in falling order, (k,).
        right: orthonormal columns, (n, k).
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def leading(matrix: torch.Tensor, rank: int) -> Triples:
    """Return the ``rank`` leading singular triples of A, or as many as A has above rounding.

    They are exact, from the eigenvectors of A·Aᵀ in float64, where the smaller side is at most
    :data:`EXACT`, or ``rank`` more than :data:`SHARE` of it. Beyond they are those of torch's
    randomised subspace iteration, always from the same draws: what they leave of A,
    ‖A − U·Uᵀ·A‖, is within 1 % of the least that any of that rank can leave, even of noise.

    Args:
        matrix: A, (m, n), fp32 or float64.
        rank: k, at least 1.

    Source: Halko, Martinsson, Tropp: Finding structure with randomness, arXiv 0909.4061.
    """
    smaller = min(matrix.shape)
    if smaller > EXACT and rank <= SHARE * smaller:
        return _sought(matrix, rank)
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = leading(matrix.T, rank)
        return Triples(left, values, right)
    exact = matrix.double()
    left, values = _decomposed(exact @ exact.T, RESOLVED**2)
    left, values = left[:, :rank], values[:rank].sqrt()
    return Triples(left, values, exact.T @ left / values)


def _sought(matrix: torch.Tensor, rank: int) -> Triples:
    columns = min(rank + max(OVERSAMPLING, rank // 10), *matrix.shape)
    devices = [matrix.device] if matrix.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=columns, niter=ITERATIONS)
    count = min(rank, int((values > RESOLVED * values[0]).sum()))
    return Triples(*(part[..., :count].double() for part in (left, values, right)))


def isotropic(matrix: torch.Tensor) -> torch.Tensor:
    """Return mean(S)·U·Vᵀ of A = U·S·Vᵀ, float64: every direction of A with one singular value.

    Directions that A does not have (σ = 0 up to rounding) are not made up: neither do they count
    in the mean.

    Args:
        matrix: A, (m, n), fp32 or float64.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return isotropic(matrix.T).T
    exact = matrix.double()
    left, squares = _decomposed(exact @ exact.T, RESOLVED**2)
    values = squares.sqrt()
    return (left * (values.mean() / values)) @ (left.T @ exact) if len(values) else exact


def effective_rank(matrix: torch.Tensor) -> float:
    """Return r_eff(A) = exp(H(p)), p = σ²/Σσ² over the singular values; 0 for a matrix of zeros.

    The squares σ² are the eigenvalues of A·Aᵀ, or of Aᵀ·A where that is smaller.

    Args:
        matrix: A, [rows, columns], float64.

    Source: arXiv 2602.09413.
    """
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp_(min=0)
    total = float(values.sum())
    if not total:
        return 0.0
    shares = values / total
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Return P·Qᵀ of X = P·D·Qᵀ: the matrix of orthonormal columns that is nearest to X.

    Where columns of X depend on each other, it is orthonormal on what they span: equal columns
    of n models become 1/√n times one direction each, instead of n directions of which all but
    one are accidents of rounding.

    Args:
        columns: X, (m, p), float64.

    Source: Procrustes' problem, as TSV-M, arXiv 2412.00081, solves it.
    """
    if columns.shape[1] > columns.shape[0]:
        return orthonormal(columns.T).T
    vectors, squares = _decomposed(columns.T @ columns, SEPARATE)
    return columns @ ((vectors / squares.sqrt()) @ vectors.T)


def _decomposed(gram: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvectors and eigenvalues, falling, of those above ``least`` of the largest."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    count = int((values > least * values[:1].clamp_min(0)).sum())
    return vectors[:, :count], values[:count]
