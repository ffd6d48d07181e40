"""Merges by singular vectors as their papers' formulas have them, in numpy float64.

Nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import models

Arrays = Sequence[np.ndarray[Any, Any]]


def truncated(matrix: np.ndarray[Any, Any], count: int) -> tuple[Any, Any, Any]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :count], s[:count], vt[:count]


def procrustes(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u @ vt)


def cart(deltas: Arrays, rank: float, scale: float) -> Any:
    """The papers' loop over models: θ_avg, then the centred ones truncated, then their sum."""
    average = np.mean(deltas, axis=0)
    total = np.zeros_like(average)
    for delta in deltas:
        u, s, vt = truncated(delta - average, max(1, int(rank * min(delta.shape))))
        total += u @ np.diag(s) @ vt
    return average + scale * total


def tsv_m(deltas: Arrays, rank: float | None, scale: float) -> Any:
    share = 1 / len(deltas) if rank is None else rank
    parts = [truncated(d, max(1, int(share * min(d.shape)))) for d in deltas]
    u = procrustes(np.concatenate([u for u, _, _ in parts], axis=1))
    s = np.concatenate([s for _, s, _ in parts])
    vt = procrustes(np.concatenate([vt for _, _, vt in parts], axis=0))
    return scale * (u @ np.diag(s) @ vt)


def iso_c(deltas: Arrays, scale: float) -> Any:
    u, s, vt = np.linalg.svd(np.sum(deltas, axis=0), full_matrices=False)
    return scale * s.mean() * (u @ vt)


def iso_cts(deltas: Arrays, rank: float, scale: float) -> Any:
    count, smaller = len(deltas), min(deltas[0].shape)
    total_own = round((smaller - int(smaller * rank)) / count) * count
    common = smaller - total_own
    u, s, vt = truncated(np.sum(deltas, axis=0), common)
    lefts, values, rights = [], [], []
    for delta in deltas:
        own = truncated(delta - u @ u.T @ delta, total_own // count)
        lefts.append(own[0])
        values.append(own[1])
        rights.append(own[2])
    left = procrustes(np.concatenate([*lefts, u], axis=1))
    right = procrustes(np.concatenate([*rights, vt], axis=0))
    return scale * np.concatenate([*values, s]).mean() * (left @ right)


def merged(
    base: Path, tuned: Sequence[Path], rule: Callable[..., Any], scale: float, averaged: float
) -> dict[str, torch.Tensor]:
    """Return M − θ_0 of every tensor of LLaMA-like models, in float64.

    Args:
        base: θ_0's folder.
        tuned: the models' folders.
        rule: of the linear maps in the blocks.
        scale: λ, for the rule.
        averaged: what the plain mean of all else is multiplied by.
    """
    origin, others = models.read(base), [models.read(path) for path in tuned]
    result = {}
    for name, tensor in origin.items():
        deltas = [(other[name].double() - tensor.double()).numpy() for other in others]
        is_map = name.endswith("proj.weight")  # LLaMA's: attention and feed-forward
        vector = rule(deltas, scale=scale) if is_map else averaged * np.mean(deltas, axis=0)
        result[name] = torch.from_numpy(np.asarray(vector))
    return result
