"""Pieces of tensors in memory, and the merges of this folder in plain float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from mergekit_lines.kernels.compiled.library import Library
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.kernels.sparsity import Sparsity

T = TypeVar("T")


class InMemory:
    """Pieces of whole tensors; counts the loads of every piece."""

    def __init__(
        self,
        base: torch.Tensor,
        models: Sequence[torch.Tensor],
        piece: int,
        threads: int = 1,
        library: Library | None = None,
    ) -> None:
        self.shape = tuple(base.shape)
        self.dtype = work_dtype(base.dtype)
        self.models = len(models)
        count = base.numel()
        self.bounds = [(start, min(count, start + piece)) for start in range(0, count, piece)]
        self.loads = [0] * len(self.bounds)
        self._base = base.to(self.dtype).reshape(-1)
        self._models = [model.to(self.dtype).reshape(-1) for model in models]
        self._stored = [tensor.reshape(-1) for tensor in (base, *models)]
        self._threads = threads
        self.library = library

    def load(self, index: int, model: int | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.loads[index] += 1
        start, end = self.bounds[index]
        models = self._models if model is None else [self._models[model]]
        return self._base[start:end], [tensor[start:end].clone() for tensor in models]

    def stored(
        self, index: int, model: int | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.loads[index] += 1
        start, end = self.bounds[index]
        base, *models = (tensor[start:end] for tensor in self._stored)
        return base, models if model is None else [models[model]]

    def map(self, function: Callable[[int], T]) -> list[T]:
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(function, range(len(self.bounds))))


def keys(models: int) -> list[bytes]:
    return [bytes([number]) * 16 for number in range(1, models + 1)]


def run(merge: Merge, pieces: InMemory) -> torch.Tensor:
    """M − θ_0 of the whole tensor."""
    state = merge.prepare(pieces, keys(pieces.models))
    found = []
    for index in range(len(pieces.bounds)):
        found.append(merge.task_vector(pieces, state, index, *pieces.load(index)))
    return torch.cat(found).view(pieces.shape)


def kept(sparsity: Sparsity, delta: torch.Tensor, piece: int = 1 << 30) -> torch.Tensor:
    """One model's sparsified task vector."""
    pieces = InMemory(torch.zeros_like(delta), [delta], piece)
    return run(Merge((sparsity,), (1.0,)), pieces)


def by_sorting(delta: torch.Tensor, drop: int, keep: int) -> torch.Tensor:
    """Where the ``keep`` largest magnitudes after the ``drop`` largest are; first come first."""
    order = delta.reshape(-1).abs().sort(descending=True, stable=True).indices
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[order[drop : drop + keep]] = True
    return mask.view(delta.shape)


def combine(
    tasks: torch.Tensor,
    weights: Sequence[float],
    consensus: str | None,
    normalize: bool,
    scale: float,
) -> torch.Tensor:
    """Merge sparsified task vectors (N × shape), in float64."""
    factors = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (tasks.dim() - 1))
    weighted = tasks.double() * factors
    if consensus is None:
        divisor = sum(weights) if abs(sum(weights)) >= 1e-8 else 1.0
        result = weighted.sum(0) / (divisor if normalize else 1.0)
    else:
        votes = weighted if consensus == "sum" else weighted.sign()
        majority = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
        agree = weighted.sign() == majority
        divisor = (factors * agree).sum(0)
        divisor[divisor == 0] = 1
        result = (weighted * agree).sum(0) / (divisor if normalize else 1.0)
    return result * scale
