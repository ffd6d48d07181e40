"""What a plan will do, for people and for the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lines.lines.depth import natural_key
from mergekit_lines.lines.placed import Placed
from mergekit_lines.lines.readings import UNREAD, Readings, Tier


@dataclass(frozen=True)
class Summary:
    """What a finished plan will do, for the report, the card and the console."""

    wraps: tuple[str, ...]
    seed: int
    alpha: Any  # a Calibration, a number, or None where it differs between tensors
    containers: dict[str, list[list[float]]]  # container -> per block, its distinct coefficients
    outside: dict[str, float]
    by_depth: bool = True  # False: a merge alone, of which nothing is scaled
    trim: dict[str, Any] | None = None  # the cuts of `trim: model`, as the report has them
    larv: Mapping[str, Sequence[Tier]] | None = None  # container -> its blocks' tiers


def summarise(
    placed: Iterable[Placed],
    coefficients: Mapping[str, float],
    readings: Readings = UNREAD,
    *,
    wraps: Iterable[str] = (),
    seed: int = 0,
    by_depth: bool = True,
    trim: dict[str, Any] | None = None,
) -> Summary:
    """Return the summary of a plan.

    Args:
        placed: every output tensor.
        coefficients: λ by tensor name.
        readings: what the coefficients were found by in the weights.
        wraps: names of the wrapped methods.
        seed: of the draws.
        by_depth: whether λ hangs on depth at all.
        trim: the cuts of ``trim: model``.
    """
    containers: dict[str, dict[int, set[float]]] = defaultdict(lambda: defaultdict(set))
    outside, alphas = {}, set()
    for item in placed:
        alphas.add(item.words.alpha)
        if item.depth is None:
            outside[item.name] = coefficients[item.name]
        else:
            containers[item.depth.container][item.depth.index].add(coefficients[item.name])
    return Summary(
        wraps=tuple(sorted(set(wraps))),
        seed=seed,
        alpha=readings.calibration or (alphas.pop() if len(alphas) == 1 else None),
        containers={
            name: [sorted(blocks[index]) for index in sorted(blocks)]
            for name, blocks in sorted(containers.items(), key=lambda item: natural_key(item[0]))
        },
        outside=outside,
        by_depth=by_depth,
        trim=trim,
        larv=readings.larv,
    )
