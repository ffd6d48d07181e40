"""Pieces that a merge reads before it merges them, kept from the first time to the second."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.pieces import Kernel

HOLD = 60 << 20  # bytes of the first pieces of a tensor; the others are read again
_ALIGNED = 64  # bytes; no entry of any dtype lies across such a border


class HeldPieces:
    """The first pieces of a tensor's inputs, as they are stored.

    Args:
        bounds: of the tensor's pieces.
        widths: bytes of an entry of every input.
        arena: returns room for so many bytes, which no other tensor uses meanwhile.
    """

    def __init__(
        self,
        bounds: Sequence[tuple[int, int]],
        widths: Sequence[int],
        arena: Callable[[int], torch.Tensor],
    ) -> None:
        largest = max(stop - start for start, stop in bounds)
        self._offsets, self._stride = [], 0
        for width in widths:
            self._offsets.append(self._stride)
            self._stride += -(-largest * width // _ALIGNED) * _ALIGNED
        self._pieces = min(len(bounds), HOLD // max(1, self._stride))
        self._arena = arena(self._pieces * self._stride)
        self._filled: set[tuple[int, int]] = set()

    def piece(
        self,
        place: int,
        index: int,
        room: Callable[[], torch.Tensor],
        count: int,
        dtype: torch.dtype,
        read: Callable[[torch.Tensor], object],
    ) -> torch.Tensor:
        """Return an input's piece, which is read unless it was read before and kept.

        Args:
            place: of the input.
            index: of the piece; a thread has it for itself.
            room: gives a tensor for a piece that is not kept.
            count: entries of the piece.
            dtype: in which they are stored.
            read: fills a tensor with them.
        """
        if index >= self._pieces:
            tensor = room()
            read(tensor)
            return tensor
        start = index * self._stride + self._offsets[place]
        tensor = self._arena[start : start + count * dtype.itemsize].view(dtype)
        if (place, index) not in self._filled:
            read(tensor)
            self._filled.add((place, index))
        return tensor


def reads_twice(merge: Kernel) -> bool:
    """Return whether compiled kernels read a tensor before they merge it."""
    if isinstance(merge, Agreement):
        merge = merge.merge
    return isinstance(merge, Merge) and not merge.row_aligned and merge.seeks


def searches(merge: Kernel, entries: int) -> int:
    """Return for how many ranks a merge gathers magnitudes of each piece of so many entries."""
    if isinstance(merge, Agreement):
        merge = merge.merge
    if not isinstance(merge, Merge) or merge.row_aligned:
        return 0
    ranks = [one.ranks(entries) or (0, 0) for one in merge.sparsities]
    return sum(rank > 0 for pair in ranks for rank in pair)


def held_bytes(entries: int, widths: Sequence[int]) -> int:
    """Return what is kept at most of a tensor of so many entries."""
    return min(HOLD, entries * sum(widths))
