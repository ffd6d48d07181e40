"""Runs of bytes of an open file, read and written whole: a call may do less than it is asked."""

from __future__ import annotations

import ctypes
import os

import torch

MOST = 1 << 30  # bytes of one call: macOS refuses 2 GiB


def read_run(descriptor: int, offset: int, into: torch.Tensor) -> int:
    """Fill a tensor from a file, and return how many of its bytes the file is short of.

    Args:
        descriptor: of the file, open for reading.
        offset: bytes from the start of the file.
        into: a contiguous 1-D CPU tensor.
    """
    left = _bytes(into)
    while left:
        count = os.preadv(descriptor, [left[:MOST]], offset)
        if not count:
            break
        left, offset = left[count:], offset + count
    return len(left)


def write_run(descriptor: int, offset: int, piece: torch.Tensor) -> None:
    """Store a contiguous 1-D CPU tensor in a file from byte ``offset`` on."""
    left = _bytes(piece)
    while left:
        count = os.pwrite(descriptor, left[:MOST], offset)
        left, offset = left[count:], offset + count


def _bytes(tensor: torch.Tensor) -> memoryview:
    # By its address: a view and an array of it take longer than the call that follows.
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr()))
