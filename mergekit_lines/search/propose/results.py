"""What a search came to: its trials, those that no other beats, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED, Recipe
from mergekit_lines.search.propose.space import Space
from mergekit_lines.search.propose.study import Trial
from mergekit_lines.search.store import Record

FLAT = "uniform, searched"  # what the search of uniform coefficients is called


@dataclass(frozen=True)
class Chosen:
    """A trial that no other beats, and beside it what has no depth, by the same evaluators.

    Attributes:
        trial: its values and scores.
        recipe: with these values.
        ends: which of its values lie at an end of their range, by name: ``low`` or ``high``.
        records: by the three ways of measuring/means.py.
        scores: likewise, one for each objective; of those that have all.
        test: likewise, measured on test data.
    """

    trial: Trial
    recipe: Recipe
    ends: Mapping[str, str]
    records: Mapping[str, Record]
    scores: Mapping[str, tuple[float, ...]]
    test: Mapping[str, Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """A finished search.

    Attributes:
        space: what was searched.
        objectives: what was maximised, as it was given.
        trials: with LiNeS, in their order; those that have scores.
        chosen: the best trial by the one objective, the first of equals; of several objectives
            all that no other trial beats.
        flat: trials of uniform coefficients, where they were searched too.
        flat_chosen: those that no other of them beats.
        inputs: the base, then the fine-tuned models, as they are, by name.
        input_scores: what the objectives say of them.
        importances: of each dimension, for each objective.
        input_test: the inputs on test data.
        pipeline_tag: the model's, as the Hub has it.
        pruned: number of trials that ended early.
        failures: what could not be measured or scored, in sentences.
    """

    space: Space
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    chosen: tuple[Chosen, ...]
    flat: tuple[Trial, ...]
    flat_chosen: tuple[Chosen, ...]
    inputs: Mapping[str, Record]
    input_scores: Mapping[str, tuple[float, ...]]
    importances: tuple[Mapping[str, float], ...]
    input_test: Mapping[str, Record] = field(default_factory=dict)
    pipeline_tag: str = "other"
    pruned: int = 0
    failures: tuple[str, ...] = ()

    @property
    def tested(self) -> bool:
        """Whether every chosen trial was measured on test data."""
        return all(LINES in one.test and not one.test[LINES].problems for one in self.chosen)


def best_of(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats: by one objective the first that is highest.

    A trial beats another that it is not below in any score and above in at least one. Of equal
    ones the first counts.
    """
    if trials and len(trials[0].scores) == 1:
        return [max(trials, key=lambda trial: trial.scores)]

    def beats(one: Trial, other: Trial) -> bool:
        pairs = list(zip(one.scores, other.scores, strict=True))
        if any(mine < its for mine, its in pairs):
            return False
        return any(mine > its for mine, its in pairs) or one.number < other.number

    best = [one for one in trials if not any(beats(other, one) for other in trials)]
    return sorted(best, key=lambda trial: trial.scores)


def best_uniform(result: Search) -> tuple[Recipe, tuple[float, ...]] | None:
    """Return the uniform coefficient that scores highest by the one objective, 1 among them."""
    rivals = [
        (one.records[way].recipe, one.scores[way])
        for one in (*result.chosen, *result.flat_chosen)
        for way in (UNIFORM, FLAT, UNSCALED)
        if way in one.scores
    ]
    return max(rivals, key=lambda rival: rival[1], default=None)
