"""DELLA's probabilities: every row's entries are kept the likelier, the larger they are."""

from __future__ import annotations

import math

import torch

from mergekit_lines.kernels.draws import bound, bounds


def row_bounds(
    magnitudes: torch.Tensor, shape: tuple[int, ...], density: float, epsilon: float
) -> torch.Tensor:
    """Return per entry the bound a draw must be below for the entry to stay.

    The probability rises linearly with the rank of the magnitude along dimension 1, from
    density − epsilon (smallest) to density + epsilon (largest). A 1-D tensor is one row.
    Equal magnitudes rank by index. A row of one entry, for which mergekit divides 0 by 0,
    is kept with probability ``density``.

    Args:
        magnitudes: 1-D, fp32 or float64, no NaN: whole slices along the first dimension, or
            all of a 1-D tensor.
        shape: of the whole tensor.
        density: mean probability, 0 … 1.
        epsilon: half the range of the probabilities.

    Returns:
        1-D int32, to compare with :meth:`Draws.draw`.

    Source: DELLA, arXiv 2406.11617, §3.1 (MagPrune).
    """
    if len(shape) < 3:
        length = shape[-1] if shape else 1
        return _bounds(magnitudes, length, density, epsilon)
    width = math.prod(shape[2:])
    blocks = magnitudes.view(-1, shape[1], width).transpose(1, 2).contiguous()
    limits = _bounds(blocks.view(-1), shape[1], density, epsilon)
    return limits.view(-1, width, shape[1]).transpose(1, 2).reshape(-1)


def _bounds(magnitudes: torch.Tensor, length: int, density: float, epsilon: float) -> torch.Tensor:
    count = magnitudes.numel()
    if length == 1:
        return magnitudes.new_full((count,), bound(density), dtype=torch.int32)
    ranks = torch.arange(length, dtype=torch.float64, device=magnitudes.device)
    odds = ranks.mul_(2 * epsilon / (length - 1)).add_(density - epsilon)
    table = bounds(odds).expand(count // length, length)
    order = _order(magnitudes, length)
    return torch.empty_like(magnitudes, dtype=torch.int32).scatter_(0, order, table.reshape(-1))


def _order(magnitudes: torch.Tensor, length: int) -> torch.Tensor:
    """Return the flat positions, row by row, in ascending order of magnitude."""
    rows = magnitudes.view(-1, length)
    count = rows.shape[0]
    if magnitudes.dtype == torch.float64:
        start = torch.arange(count, device=magnitudes.device).mul_(length).unsqueeze(1)
        return rows.sort(dim=1, stable=True).indices.add_(start).view(-1)
    # Bit patterns of non-negative fp32 sort as the numbers do. With the row number above them
    # all rows are one sort of integers, for which PyTorch has a radix sort (5 times faster).
    keys = torch.arange(count, device=magnitudes.device).bitwise_left_shift_(31).unsqueeze(1)
    return keys.add(rows.view(torch.int32)).view(-1).sort(stable=True).indices
