"""Where in the magnitudes a rank must lie, judged by a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from mergekit_lines.kernels.compiled.layout import PIVOTS

_SIGMAS = 4.0  # a sample misses in about one search of ten thousand; a miss costs one more pass
_HEAVY = 256  # a value with more than this share (1/256) of the sample is counted, not gathered


@dataclass(frozen=True)
class Bracket:
    """The closed range ``low`` … ``high``, and the values in it to count instead of gather."""

    low: float = 0.0
    high: float = math.inf
    pivots: tuple[float, ...] = ()


def draw_bracket(
    sample: torch.Tensor, region: Bracket, quantile: float, spread: float = 0.0
) -> Bracket:
    """Return a range in ``region`` that holds the wanted rank, most likely.

    Args:
        sample: 1-D, magnitudes drawn evenly from ``region``, of any number; NaN has none, and is
            left out.
        region: where the rank lies for certain.
        quantile: the rank's share of the region's entries, from the largest, 0 … 1.
        spread: uncertainty of the quantile beyond that of independent draws, one sigma.
    """
    ordered = ascending(_numbers(sample))
    count = ordered.numel()
    if not count:
        return region
    error = math.sqrt(quantile * (1 - quantile) / count) + spread
    first = math.floor((quantile - _SIGMAS * error) * count) - 4
    last = math.ceil((quantile + _SIGMAS * error) * count) + 4
    high = float(ordered[count - first]) if first >= 1 else region.high
    low = float(ordered[count - last]) if last <= count else region.low
    inside = ordered[(ordered >= low) & (ordered <= high)]
    values, times = torch.unique_consecutive(inside, return_counts=True)
    heavy = times >= max(4, count // _HEAVY)
    most = torch.argsort(times[heavy], descending=True, stable=True)[:PIVOTS]
    return Bracket(low, high, tuple(sorted(values[heavy][most].tolist(), reverse=True)))


def spread_of(samples: list[torch.Tensor], quantile: float, share: float) -> float:
    """Return how much the quantile varies from piece to piece, as one sigma of their mean.

    Args:
        samples: a sample of every sampled piece, NaN left out as in :func:`draw_bracket`.
        quantile: share of the entries above the wanted value.
        share: how much of all the pieces was sampled, 0 … 1; all of them leave no doubt.
    """
    samples = [numbers for numbers in map(_numbers, samples) if len(numbers)]
    if share >= 1 or len(samples) < 2:
        return 0.0
    pooled = ascending(torch.cat(samples))
    count = pooled.numel()
    value = pooled[min(count - 1, int((1 - quantile) * count))]
    above = [
        float((part > value).double().mean() + (part == value).double().mean() / 2)
        for part in samples
    ]
    mean = sum(above) / len(above)
    variance = sum((part - mean) ** 2 for part in above) / (len(above) - 1)
    return math.sqrt(variance / len(above) * (1 - share))


def _numbers(sample: torch.Tensor) -> torch.Tensor:
    """Return what of a sample is no NaN."""
    odd = sample.isnan()
    return sample[~odd] if odd.any() else sample


def ascending(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return non-negative numbers in ascending order."""
    if magnitudes.dtype != torch.float32:
        return magnitudes.sort().values
    # As integers the patterns sort alike, which NumPy does several times faster than torch.
    words = magnitudes.contiguous().view(torch.int32)
    if words.device.type == "cpu":
        return torch.from_numpy(np.sort(words.numpy())).view(torch.float32)
    return words.sort(stable=True).values.view(torch.float32)
