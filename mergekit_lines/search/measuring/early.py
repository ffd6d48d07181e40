"""Measurements that are given up early: what a part of the data says is below most others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Metric
from mergekit_lines.evaluate.partial import PrunedError
from mergekit_lines.search.objective import Objective

LEAST = 5  # whole trials that a median is taken of


@dataclass(frozen=True)
class Early:
    """By what one measurement is given up.

    Attributes:
        goal: what is maximised.
        tuned: the fine-tuned models' metrics, where they are measured.
        base: the base's, likewise.
        limits: by number of the step, the score below which it ends there.
    """

    goal: Objective
    tuned: Mapping[str, Metric] | None
    base: Mapping[str, Metric] | None
    limits: Mapping[int, float]

    def look(self, scores: list[float | None], metrics: Mapping[str, Metric]) -> None:
        """Add the score of what is measured so far.

        An objective that lacks a metric still, or has no value there, makes a step all the same:
        what other trials have at a step's number is of the same part of the data.

        Raises:
            PrunedError: it is below this step's limit.
        """
        try:
            score = self.goal.score(metrics, self.tuned, self.base)
        except LinesError:
            scores.append(None)
            return
        scores.append(score)
        limit = self.limits.get(len(scores) - 1)
        if limit is not None and score < limit:
            raise PrunedError(f"{score:.6g} is below {limit:.6g} at step {len(scores)}")


def limits_of(steps: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the median of each step over whole trials, where enough of them have it.

    Args:
        steps: of each whole trial, the score by number of the step.
    """
    numbers = {number for one in steps for number in one}
    values = {number: [one[number] for one in steps if number in one] for number in numbers}
    return {
        number: statistics.median(each) for number, each in values.items() if len(each) >= LEAST
    }
