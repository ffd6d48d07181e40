"""How many directions a model's change of a matrix has, from a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekit_lines.checkpoint.sources import Source
from mergekit_lines.kernels.spectra import effective_rank

ROWS, RUNS = 64, 8  # of a matrix, read in so many runs


def sampled_ranks(base: Source, tuned: Sequence[Source]) -> list[list[float]]:
    """Return per model the effective rank of a matrix's sampled rows, as a share of them.

    There is none of what is no matrix, and of a model that does not change the rows.

    Args:
        base: the tensor of the base.
        tuned: that of each model, of the same shape.
    """
    shape = base.shape
    if len(shape) != 2 or min(shape) < 2:
        return [[] for _ in tuned]
    rows, columns = shape
    runs = min(RUNS, *shape)
    height = min(ROWS, rows, columns) // runs
    starts = [run * rows // runs for run in range(runs)]
    origin, result = _rows(base, starts, height, columns), []
    for source in tuned:
        delta = _rows(source, starts, height, columns).sub_(origin).double()
        # Squares of what is not finite, or nearly so, tell nothing of directions.
        rank = effective_rank(delta) if bool(delta.square().sum().isfinite()) else 0.0
        result.append([rank / len(delta)] if rank else [])
    return result


def _rows(source: Source, starts: Sequence[int], height: int, columns: int) -> torch.Tensor:
    """Return ``height`` rows from each start on, (rows, columns), fp32."""
    picked = torch.empty(len(starts), height * columns)
    for run, start in zip(picked, starts, strict=True):
        source.read_into(start * columns, (start + height) * columns, run)
    return picked.view(-1, columns)
