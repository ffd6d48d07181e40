"""What one tensor tells of its block's update: effective ranks of a sample, read row by row."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mergekit_lines.checkpoint.sources import Source
from mergekit_lines.errors import LinesError
from mergekit_lines.host.process import one_thread
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.kernels.spectra import effective_rank

SAMPLE = 256  # rows, and columns, of a matrix that are looked at
SEED = 0  # of the choice: matrices of one shape give the same rows and columns


def as_matrix(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the rows and columns of a tensor taken as a matrix, or None for one that is none.

    Of a convolution's or of stacked experts' dimensions the first ones are rows and the others
    columns, so that the matrix is as square as may be; entries stay in C order.
    """
    if len(shape) < 2 or 0 in shape:
        return None
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(1, len(shape))]
    return min(cuts, key=lambda cut: abs(math.log(cut[0] / cut[1])))


def sampled(count: int) -> list[int]:
    """Return which of ``count`` rows or columns are looked at, ascending: all, or SAMPLE."""
    if count <= SAMPLE:
        return list(range(count))
    # The positions of a head, or of a gate, repeat: evenly spaced ones would be alike.
    chance = random.Random(SEED)  # noqa: S311 - a sample, and no secret
    return sorted(chance.sample(range(count), SAMPLE))


def sampled_entries(shape: Sequence[int]) -> int:
    """Return how many entries of a tensor are read: its sampled rows, whole."""
    matrix = as_matrix(shape)
    return len(sampled(matrix[0])) * matrix[1] if matrix else 0


def spectrum_terms(
    name: str, base: Source, tuned: Mapping[Any, Source], cast: torch.dtype | None
) -> tuple[list[float], list[list[float]]] | None:
    """Return a matrix's contrasts and products, see :class:`mergekit_lines.lines.larv.MatrixTerms`.

    256 rows and columns at most of every model are read, always the same ones of one shape, and
    computed in float64. None for a tensor that is no matrix, or no weight.

    Args:
        name: of the tensor.
        base: θ_0.
        tuned: the fine-tuned models' tensors, of the same shape.
        cast: the recipe's ``dtype``, to which inputs are rounded first; or None.

    Raises:
        LinesError: an entry is NaN or infinite, or cannot be read.
    """
    sources = [base, *tuned.values()]
    matrix = as_matrix(base.shape)
    if matrix is None or not all(source.dtype.is_floating_point for source in sources):
        return None
    if any(source.shape != base.shape for source in sources):
        return None
    with one_thread(), torch.no_grad():  # sums have one order
        origin, *models = (_sample(source, matrix, cast) for source in sources)
        for model, sample in zip(["the base", *tuned], (origin, *models), strict=True):
            if not bool(torch.isfinite(sample).all()):
                raise LinesError(
                    f"parameters.schedule: larv found NaN or infinity in tensor {name} of {model}, "
                    f"wanted finite values, of which it takes ranks. Repair the model, or write "
                    f"the coefficients out."
                )
        updates = [sample.sub_(origin) for sample in models]
        rank = effective_rank(origin)
        ranks = [effective_rank(update) for update in updates]
        products = [[float((one * other).sum()) for other in updates] for one in updates]
    return [rank / each for each in ranks if each], products


def _sample(source: Source, matrix: tuple[int, int], cast: torch.dtype | None) -> torch.Tensor:
    """Return the sampled rows and columns of a tensor, float64, rounded to ``cast`` first."""
    rows, columns = (sampled(count) for count in matrix)
    chosen = torch.tensor(columns)
    work = work_dtype(source.dtype)
    row = torch.empty(matrix[1], dtype=work)
    result = torch.empty(len(rows), len(columns), dtype=torch.float64)
    for place, number in enumerate(rows):
        source.read_into(number * matrix[1], (number + 1) * matrix[1], row)
        part = row[chosen]
        result[place] = part.to(cast) if cast is not None else part
    return result
