"""One tensor of base and models as a run of pieces: what the streaming kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Pieces(Protocol):
    """One tensor of base and models, in pieces: runs of entries in C order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""

    @property
    def bounds(self) -> Sequence[tuple[int, int]]:
        """First entry and end of every piece: contiguous, ascending, covering the tensor.

        Where whole rows were asked for, every bound is a multiple of ``prod(shape[1:])``.
        """

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the arithmetic: fp32 or float64."""

    @property
    def models(self) -> int:
        """N, the number of fine-tuned models."""

    def load(self, index: int, model: int | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the base's piece and the models' pieces, 1-D, in the dtype of the arithmetic.

        The models' tensors are the caller's to overwrite, the base's is not; both are valid
        until the same thread's next load.

        Args:
            index: number of the piece.
            model: the one model wanted; None for all N.
        """

    def map(self, function: Callable[[int], T]) -> list[T]:
        """Return ``function(index)`` of every piece, in the order of the pieces.

        The calls may run on several threads.
        """
