"""Sums of many fp32 numbers, of which float64 is the larger part."""

from __future__ import annotations

import torch

_RUN = 256  # entries; a float64 copy of all of them would cost more than the rest of a pass


def total(tensor: torch.Tensor) -> float:
    """Return the sum of a 1-D tensor: of runs in its own dtype, of those in float64.

    Runs of fp32 overflow where 256 entries do, as mergekit's sums do where all entries do.

    Args:
        tensor: 1-D, contiguous, fp32 or float64.
    """
    whole = tensor.numel() // _RUN * _RUN
    runs = tensor[:whole].view(-1, _RUN).sum(dim=1)
    return float(runs.sum(dtype=torch.float64) + tensor[whole:].sum(dtype=torch.float64))
