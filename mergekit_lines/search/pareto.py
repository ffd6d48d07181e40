"""Fronts of two rewards: Pareto sets, hypervolumes, and what other prompts would have told.

Both rewards count upwards. A front is the points of one curve, e.g. the merges of a rewarded soup
over c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """One front on all prompts, with the spread over resampled prompts.

    Args:
        hypervolume: area that the point means dominate, in units of reward x times reward y.
        interval: its confidence interval (low, high).
        means: mean rewards of each point [points, 2].
        errors: their standard errors over prompts [points, 2].
        pareto: indices of the points that no other dominates, by their first reward.
    """

    hypervolume: float
    interval: tuple[float, float]
    means: Floats
    errors: Floats
    pareto: list[int]


@dataclass(frozen=True)
class Difference:
    """One hypervolume minus another, both on the same prompts, and its confidence interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Bootstrap:
    """What :func:`bootstrap` tells.

    Args:
        reference: the reference point [2] of every hypervolume.
        fronts: each front by its name, in the order given.
        differences: ``(a, b)`` → hypervolume of a minus that of b, for every two fronts with a
            before b in the order given.
    """

    reference: Floats
    fronts: dict[str, Front]
    differences: dict[tuple[str, str], Difference]


def pareto_set(points: ArrayLike) -> list[int]:
    """Return the indices of the points [n, 2] that no other dominates.

    A point dominates another that it is not below in either coordinate and above in at least one.
    Of equal points the first counts. The indices come in increasing first coordinate.

    Raises:
        ValueError: the points are not [n, 2] finite numbers.
    """
    values = _finite("points", points, 2)
    order = np.lexsort((np.arange(len(values)), -values[:, 1], -values[:, 0]))
    best, indices = -np.inf, []
    for index in order:  # from the right: what lies no higher than all so far is dominated
        if values[index, 1] > best:
            best = values[index, 1]
            indices.append(int(index))
    return indices[::-1]


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the area that the points [n, 2] dominate above the reference point [2].

    A point that is not above the reference in both coordinates adds nothing.

    Raises:
        ValueError: the points are not [n, 2], or the reference not [2] finite numbers.
    """
    return float(_areas(_finite("points", points, 2), _reference(reference)))


def bootstrap(
    scores: Mapping[str, ArrayLike],
    reference: ArrayLike | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Return hypervolumes and their differences, with confidence intervals over prompts.

    One set of prompts is drawn per sample, with replacement, and serves every front, point and
    reward: a difference is paired. The intervals are basic (reverse percentile) ones,
    [2v − high, 2v − low] with the quantiles low and high of the resampled values around v.
    The hypervolume of noisy means is too large on average, and that of resampled means doubly so;
    the basic interval takes this out, where plain percentiles would add it once more. So v may lie
    in the upper half of its interval, with few prompts even above it.

    The intervals are about prompts alone: not about training the policies again, nor about the
    reference, which is the same in all samples.

    Args:
        scores: front → rewards [points, 2, prompts]; the same prompts in the same order in all.
            Fronts may have different numbers of points.
        reference: the reference point [2]; ``None`` takes the lower mean of each reward over all
            points of all fronts. It then depends on which fronts are there: areas compare only
            within one call.
        samples: number of resampled sets of prompts.
        seed: of the generator that draws them.
        level: nominal coverage of the intervals.

    Raises:
        ValueError: no front or point, prompts of different number, fewer than two of them, a score
            that is not finite, samples below 1, or a level not between 0 and 1.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 12 and 13; Davison and
    Hinkley, Bootstrap Methods and their Application, section 2.4 (basic intervals).
    """
    if samples < 1:
        raise ValueError(f"samples: found {samples!r}, wanted at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: found {level!r}, wanted a number between 0 and 1")
    rewards = _checked(scores)
    prompts = next(iter(rewards.values())).shape[-1]
    means = {name: values.mean(axis=-1) for name, values in rewards.items()}
    lowest: Floats = np.concatenate(list(means.values())).min(axis=0)
    fixed = lowest if reference is None else _reference(reference)
    odds = np.full(prompts, 1 / prompts)
    draws = np.random.default_rng(seed).multinomial(prompts, odds, size=samples)
    weights = draws.T / prompts  # [prompts, samples]
    areas = {name: float(_areas(points, fixed)) for name, points in means.items()}
    drawn = {
        name: _areas(np.moveaxis(values @ weights, -1, 0), fixed)
        for name, values in rewards.items()
    }
    fronts = {
        name: Front(
            hypervolume=areas[name],
            interval=_interval(areas[name], drawn[name], level, lowest=0.0),
            means=means[name],
            errors=values.std(axis=-1, ddof=1) / np.sqrt(prompts),
            pareto=pareto_set(means[name]),
        )
        for name, values in rewards.items()
    }
    differences = {}
    for a, b in combinations(rewards, 2):
        value = areas[a] - areas[b]
        differences[a, b] = Difference(value, _interval(value, drawn[a] - drawn[b], level))
    return Bootstrap(fixed, fronts, differences)


def _areas(points: Floats, reference: Floats) -> Any:
    """Return the dominated areas [...] of sets of points [..., n, 2]."""
    gains = np.maximum(points - reference, 0)
    order = np.argsort(-gains[..., 0], axis=-1, kind="stable")
    width = np.take_along_axis(gains[..., 0], order, axis=-1)
    height = np.take_along_axis(gains[..., 1], order, axis=-1)
    steps = width - np.concatenate((width[..., 1:], np.zeros_like(width[..., :1])), axis=-1)
    return (steps * np.maximum.accumulate(height, axis=-1)).sum(axis=-1)


def _interval(
    value: float, drawn: Floats, level: float, lowest: float = -np.inf
) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return max(float(2 * value - high), lowest), max(float(2 * value - low), lowest)


def _checked(scores: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Return the scores as arrays of one number of prompts."""
    arrays = {name: _finite(f"scores of {name!r}", array, 3) for name, array in scores.items()}
    if not arrays:
        raise ValueError("scores: found no front, wanted at least one")
    for name, values in arrays.items():
        if not len(values):
            raise ValueError(f"scores of {name!r}: found no point, wanted at least one")
    counts = {name: values.shape[-1] for name, values in arrays.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise ValueError(
            f"scores: found different numbers of prompts ({listing}), wanted the same prompts "
            f"for every front: score them all on one set"
        )
    if (count := next(iter(counts.values()))) < 2:
        raise ValueError(
            f"scores: found {count} prompt{'s' * (count != 1)}, wanted at least 2: "
            f"one prompt has no spread to resample"
        )
    return arrays


def _reference(point: ArrayLike) -> Floats:
    reference = np.asarray(point, dtype=np.float64)
    if reference.shape != (2,) or not np.isfinite(reference).all():
        raise ValueError(f"reference: found {point!r:.80}, wanted two finite numbers")
    return reference


def _finite(what: str, array: ArrayLike, dimensions: int) -> Floats:
    """Return the numbers as float64 [n, 2] or [n, 2, prompts]; an empty list is no points."""
    values: Floats = np.ascontiguousarray(array, dtype=np.float64)
    form = "[n, 2]" if dimensions == 2 else "[points, 2, prompts]"
    if values.shape == (0,):
        values = values.reshape((0, 2, 0)[:dimensions])
    if values.ndim != dimensions or values.shape[1] != 2:
        raise ValueError(f"{what}: found the shape {list(values.shape)}, wanted {form}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(int(index) for index in wrong[0])
        raise ValueError(
            f"{what}: found {values[place]} at {list(place)} of {form}, wanted a finite number"
        )
    return values
