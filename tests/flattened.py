"""Merges as their papers have them, in numpy float64 on task vectors that are flattened whole.

Written from the formulas and the authors' descriptions; nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from tests import models

Flat = np.ndarray  # [models, entries], float64


def task_vectors(base: Path, tuned: Sequence[Path]) -> Flat:
    """Return the models' task vectors, all tensors one after the other by name."""
    rows = [_flat(models.read(path)) for path in (base, *tuned)]
    return np.stack([row - rows[0] for row in rows[1:]])


def _flat(tensors: Mapping[str, torch.Tensor]) -> Flat:
    parts = [tensors[name].double().reshape(-1).numpy() for name in sorted(tensors)]
    return np.concatenate(parts)


def tensors_of(base: Path, vector: Flat) -> dict[str, torch.Tensor]:
    """Return θ_0 plus a flat task vector, tensor by tensor, in float64."""
    result, start = {}, 0
    for name, tensor in sorted(models.read(base).items()):
        part = torch.from_numpy(vector[start : start + tensor.numel()]).view(tensor.shape)
        result[name] = tensor.double() + part
        start += tensor.numel()
    return result


def total(deltas: Flat) -> Flat:
    """Return the plain sum of task vectors."""
    return np.sum(deltas, axis=0)


def ties(deltas: Flat, density: float, *, mean: bool = True) -> Flat:
    """TIES (arXiv 2306.01708) as its authors' code has it, on whole flattened task vectors.

    Of d entries those are kept whose magnitude reaches the (d − int(density·d))-th smallest. The
    sign of an entry is that of the sum, and where that is 0 the sign of the sum of all signs.
    """
    count = deltas.shape[1]
    kept = np.zeros_like(deltas)
    for row, delta in zip(kept, deltas, strict=True):
        limit = np.sort(np.abs(delta))[count - int(count * density) - 1]
        row[:] = np.where(np.abs(delta) >= limit, delta, 0.0)
    signs = np.sign(kept.sum(axis=0))
    signs[signs == 0] = np.sign(signs.sum())
    agreeing = np.where(np.where(signs > 0, kept > 0, kept < 0), kept, 0.0)
    counts = np.maximum((agreeing != 0).sum(axis=0), 1)
    return agreeing.sum(axis=0) / (counts if mean else 1)


def consensus(
    deltas: Flat,
    tall_lambdas: Sequence[float],
    min_agree: int,
    merge: Callable[[Flat], Flat] = total,
) -> Flat:
    """TALL masks and consensus (arXiv 2405.07813): τ_MTL where enough tasks' masks are set."""
    merged = merge(deltas)
    masks = [
        np.abs(delta) > tall_lambda * np.abs(merged - delta)
        for delta, tall_lambda in zip(deltas, tall_lambdas, strict=True)
    ]
    return np.where(np.sum(masks, axis=0) >= min_agree, merged, 0.0)
