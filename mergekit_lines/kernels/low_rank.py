"""CART, TSV-M, Iso-C, Iso-CTS: merges of whole matrices by their singular vectors.

Each takes one tensor of base and models and returns M − θ_0. Which tensors are matrices is
decided by the caller; the plain mean of the others is :func:`mean`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekit_lines.kernels.spectra import RESOLVED, Triples, isotropic, leading, orthonormal


def mean(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the task vectors.

    Args:
        deltas: τ_t of T models, one shape and dtype.
    """
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total / len(deltas)


def cart(deltas: Sequence[torch.Tensor], rank: float, scale: float) -> torch.Tensor:
    """Return (θ_avg − θ_0) + scale·Σ_t SVD_k(θ_t − θ_avg), in the dtype of the deltas.

    The centred task vectors θ_t − θ_avg do not hang on θ_0.

    Args:
        deltas: τ_t = θ_t − θ_0 of T models, matrices (m, n).
        rank: k as a share of min(m, n).
        scale: mergekit's `lambda`, of the sum alone.

    Source: CART, arXiv 2412.12153.
    """
    centre = mean(deltas)
    total = torch.zeros_like(centre)
    for delta in deltas:
        centred = delta - centre
        left = leading(centred, _count(rank, centred)).left.to(centred.dtype)
        total += left @ (left.T @ centred)
    return centre + scale * total


def tsv_m(deltas: Sequence[torch.Tensor], rank: float | None, scale: float) -> torch.Tensor:
    """Return scale·U⊥·S·V⊥ᵀ, of the models' leading singular triples side by side.

    U⊥ and V⊥ are the orthonormal matrices nearest to the singular vectors side by side.

    Args:
        deltas: τ_t of T models, matrices (m, n).
        rank: how many triples of each, as a share of min(m, n); None for 1/T.
        scale: mergekit's `lambda`.

    Source: TSV-Merge, arXiv 2412.00081.
    """
    count = _count(rank or 1 / len(deltas), deltas[0])
    triples = [leading(delta, count) for delta in deltas]
    values = torch.cat([one.values for one in triples])
    left = orthonormal(torch.cat([one.left for one in triples], dim=1))
    right = orthonormal(torch.cat([one.right for one in triples], dim=1))
    return (scale * ((left * values) @ right.T)).to(deltas[0].dtype)


def iso_c(deltas: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """Return scale·mean(S)·U·Vᵀ of Σ τ_t = U·S·Vᵀ.

    Args:
        deltas: τ_t of T models, matrices (m, n).
        scale: mergekit's `lambda`.

    Source: Isotropic merging, arXiv 2502.04959.
    """
    total = mean(deltas) * len(deltas)
    return (scale * isotropic(total)).to(deltas[0].dtype)


def iso_cts(deltas: Sequence[torch.Tensor], rank: float, scale: float) -> torch.Tensor:
    """Return scale·s·U⊥·V⊥ᵀ of common directions and of such as one model alone has.

    The common ones are the leading triples of Σ τ_t; what is left beside their span of each τ_t
    gives as many of its own triples as fill min(m, n) up, or as many as are above the rounding
    of τ_t. s is the mean of all singular values.

    Args:
        deltas: τ_t of T models, matrices (m, n).
        rank: the common directions, as a share of min(m, n); rounded so that every model has
            the same number of its own.
        scale: mergekit's `lambda`.

    Source: Isotropic merging, arXiv 2502.04959.
    """
    smaller = min(deltas[0].shape)
    own = round((smaller - int(rank * smaller)) / len(deltas))
    common = smaller - own * len(deltas)
    total = mean(deltas) * len(deltas)
    if not own:
        return (scale * isotropic(total)).to(total.dtype)
    triples = []
    shared = leading(total, common) if common > 0 else None
    for delta in deltas:
        rest = delta.double()
        if shared is not None:
            rest = rest - shared.left @ (shared.left.T @ rest)
        triples.append(_above(leading(rest, own), RESOLVED * float(delta.double().norm())))
    triples += [] if shared is None else [shared]
    values = torch.cat([one.values for one in triples])
    if not len(values):
        return torch.zeros_like(total)
    left = orthonormal(torch.cat([one.left for one in triples], dim=1))
    right = orthonormal(torch.cat([one.right for one in triples], dim=1))
    return (scale * values.mean() * (left @ right.T)).to(total.dtype)


def _above(triples: Triples, least: float) -> Triples:
    """Return the triples whose σ is more than this: of a rest of τ_t that may be rounding alone."""
    count = int((triples.values > least).sum())
    return Triples(*(part[..., :count] for part in triples))


def _count(share: float, matrix: torch.Tensor) -> int:
    return max(1, int(share * min(matrix.shape)))
