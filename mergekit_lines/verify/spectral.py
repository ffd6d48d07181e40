"""The merges by singular vectors written out again, by the whole decomposition in float64.

Source: CART, arXiv 2412.12153; TSV-Merge, arXiv 2412.00081; isotropic merging, arXiv 2502.04959.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

METHODS = ("cart", "tsv_m", "iso_c", "iso_cts")
# Beyond this smaller side the merge itself may take a random subspace: nothing to hold against.
LARGEST = 2048
TABLES = ("wte", "wpe", "shared", "lm_head", "score", "classifier", "head")
NOTHING = 1e-7  # of the largest σ: directions that a matrix does not have
DEPENDENT = 1e-5  # likewise, of singular vectors side by side

Triples = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def spectral_vector(
    method: str,
    name: str,
    deltas: Sequence[torch.Tensor],
    values: Mapping[str, Any],
    *,
    vocabulary: bool,
) -> torch.Tensor | None:
    """Return M − θ_0 of one tensor, or None where only the method itself can tell.

    Args:
        method: one of :data:`METHODS`.
        name: of the tensor.
        deltas: the task vectors, float64.
        values: the method's words.
        vocabulary: whether one of its sides is a vocabulary.
    """
    shape = deltas[0].shape
    looked_up = vocabulary or any(
        part in TABLES or "embed" in part or part.endswith(("_projection", "bias"))
        for part in name.split(".")
    )
    stacked = len(shape) == 3 and any(
        part == "experts" or part.endswith("moe") for part in name.split(".")
    )
    if looked_up or not (len(shape) == 2 or stacked) or min(shape[-2:]) < 2:
        average = torch.stack(list(deltas)).mean(dim=0)
        return average if method == "cart" else values["lambda"] * average
    if min(shape[-2:]) > LARGEST:
        return None
    if len(shape) == 2:
        return _of_matrix(method, deltas, values)
    experts = zip(*(delta.unbind() for delta in deltas), strict=True)
    return torch.stack([_of_matrix(method, expert, values) for expert in experts])


def _of_matrix(
    method: str, deltas: Sequence[torch.Tensor], values: Mapping[str, Any]
) -> torch.Tensor:
    scale, rank = values["lambda"], values.get("rank") or 1 / len(deltas)
    smaller, total = min(deltas[0].shape), torch.stack(list(deltas)).sum(dim=0)
    if method == "cart":
        average = total / len(deltas)
        kept = [_product(_first(d - average, max(1, int(rank * smaller)))) for d in deltas]
        return average + scale * torch.stack(kept).sum(dim=0)
    if method == "tsv_m":
        count = max(1, int(rank * smaller))
        return scale * _side_by_side([_first(delta, count) for delta in deltas], even=False)
    if method == "iso_c":
        return scale * _product(_evened(_first(total, smaller)))
    own = round((smaller - int(rank * smaller)) / len(deltas))
    common = smaller - own * len(deltas)
    if not own:
        return scale * _product(_evened(_first(total, smaller)))
    shared = _first(total, max(0, common))  # where own ones alone fill it up, there may be none
    left = shared[0]
    parts = []
    for delta in deltas:
        rest = _first(delta - left @ (left.T @ delta), own)
        count = int((rest[1] > NOTHING * delta.norm()).sum())
        parts.append((rest[0][:, :count], rest[1][:count], rest[2][:count]))
    return scale * _side_by_side([*parts, shared], even=True)


def _first(matrix: torch.Tensor, count: int) -> Triples:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = min(count, int((values > NOTHING * values[0]).sum()))
    return left[:, :count], values[:count], right[:count]


def _product(triples: Triples) -> torch.Tensor:
    left, values, right = triples
    return left * values @ right


def _evened(triples: Triples) -> Triples:
    left, values, right = triples
    return left, values.mean().expand(len(values)) if len(values) else values, right


def _side_by_side(parts: Sequence[Triples], *, even: bool) -> torch.Tensor:
    left = _nearest(torch.cat([part[0] for part in parts], dim=1))
    right = _nearest(torch.cat([part[2] for part in parts], dim=0))
    triples = left, torch.cat([part[1] for part in parts]), right
    return _product(_evened(triples) if even else triples)


def _nearest(matrix: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal factor, of what the columns or rows span."""
    if 0 in matrix.shape:
        return matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = int((values > DEPENDENT * values[0]).sum())
    return left[:, :count] @ right[:count]
