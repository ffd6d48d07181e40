"""One tensor of base and models as a run of pieces, and the kernels that read it so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from mergekit_lines.kernels.compiled.library import Library

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

    @property
    def library(self) -> Library | None:
        """The compiled kernels that may take the pieces as they are stored; None for torch's."""

    def stored(
        self, index: int, model: int | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what :meth:`load` does as it is stored: bf16, fp16 or fp32, to be read alone.

        Where there is a :attr:`library` only.
        """

    def map(self, function: Callable[[int], T]) -> list[T]:
        """Return ``function(index)`` of every piece, in the order of the pieces.

        The calls may run on several threads.
        """


class Kernel(Protocol):
    """What a merge computes of one tensor, piece by piece: M − θ_0."""

    @property
    def linear(self) -> bool:
        """Whether the result is a weighted sum of whole task vectors, had as fast as read."""

    @property
    def row_aligned(self) -> bool:
        """Whether the pieces have to be whole slices along the first dimension."""

    def supports(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape can be in several pieces; else it comes as one."""

    def beside(self, shape: tuple[int, ...], width: int) -> int:
        """Return the bytes that it holds of a tensor beside the pieces of every thread.

        Args:
            shape: of the tensor.
            width: bytes of an entry, in the dtype of the arithmetic.
        """

    def prepare(self, pieces: Pieces, keys: Sequence[bytes]) -> Any:
        """Read what has to be known of the whole tensor before one piece can be merged.

        Args:
            pieces: the tensor.
            keys: per model, 16 or more bytes that the model's draws for this tensor depend on.
        """

    def task_vector(
        self,
        pieces: Pieces,
        state: Any,
        index: int,
        base: torch.Tensor,
        models: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return M − θ_0 of one piece, 1-D, in the dtype of the arithmetic.

        Args:
            pieces: the tensor.
            state: what :meth:`prepare` returned for it.
            index: number of the piece.
            base: θ_0's piece, 1-D.
            models: the models' pieces, 1-D; overwritten, and one may become the result.
        """


@dataclass(frozen=True)
class Held:
    """A tensor in memory as one piece: see :class:`Pieces`."""

    base: torch.Tensor
    tuned: Sequence[torch.Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Pieces`."""
        return tuple(self.base.shape)

    @property
    def bounds(self) -> Sequence[tuple[int, int]]:
        """See :class:`Pieces`."""
        return [(0, self.base.numel())]

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`Pieces`."""
        return self.base.dtype

    @property
    def models(self) -> int:
        """See :class:`Pieces`."""
        return len(self.tuned)

    def load(self, index: int, model: int | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See :class:`Pieces`."""
        chosen = self.tuned if model is None else [self.tuned[model]]
        return self.base.reshape(-1), [one.clone().reshape(-1) for one in chosen]

    @property
    def library(self) -> Library | None:
        """See :class:`Pieces`: a tensor that is held is small."""
        return None

    def stored(
        self, index: int, model: int | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See :class:`Pieces`."""
        return self.load(index, model)

    def map(self, function: Callable[[int], T]) -> list[T]:
        """See :class:`Pieces`."""
        return [function(0)]
