"""The objective's value of what was measured, beside the recipe's models as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Metric
from mergekit_lines.search.bench import Bench, failures_of
from mergekit_lines.search.measuring.early import Early
from mergekit_lines.search.measuring.means import Recipe
from mergekit_lines.search.measuring.meters import Job
from mergekit_lines.search.objective import Objective
from mergekit_lines.search.store import Record


def measure_inputs(
    bench: Bench, goals: Sequence[Objective], names: Sequence[str], recipe: Recipe
) -> dict[str, Record]:
    """Measure the base and the fine-tuned models as they are, where they fit the live model.

    A metric that an objective names and that is not there shows after the first measurement.

    Args:
        bench: measures.
        goals: what is maximised.
        names: of the inputs, the base first.
        recipe: measured instead where the inputs do not fit.

    Raises:
        LinesError: the objective compares with models that do not fit, or names no such metric.
    """
    problem = bench.facts.input_problem
    comparing = [goal.text for goal in goals if goal.needs]
    if problem and comparing:
        raise LinesError(f"--objective {comparing[0]}: {problem}")
    first = bench.measure(recipe) if problem else bench.measure_input(names[0])
    if first.metrics:
        for goal in goals:
            goal.names(first.metrics)
    if problem:
        return {}
    tuned = bench.all([Job({"model": name}) for name in names[1:]])
    return dict(zip(names, [first, *tuned], strict=True))


class Judge:
    """Scores measurements beside the inputs' own.

    Args:
        objective: what is maximised.
        inputs: the base and the fine-tuned models.
        failures: sentences of what has no score are added here.

    Raises:
        LinesError: an input that the objective compares with could not be measured.
    """

    def __init__(
        self, objective: Objective, inputs: Mapping[str, Record], failures: list[str]
    ) -> None:
        self._objective, self._failures = objective, failures
        base, *tuned = inputs or ("",)
        compared = [base] if "base" in objective.needs else []
        compared += tuned if "tuned" in objective.needs else []
        problems = [text for name in compared for text in failures_of(inputs[name])]
        if problems:
            raise LinesError([f"--objective {objective.text}: {text}" for text in problems])
        self._base = inputs[base].metrics if inputs else None
        self._tuned: dict[str, Metric] = {}
        for name in tuned:
            for word, metric in inputs[name].metrics.items():
                best = self._tuned.get(word)
                if best is None or (metric.value > best.value) == metric.higher_is_better:
                    self._tuned[word] = metric

    def early(self, limits: Mapping[int, float]) -> Early:
        """Return by what a measurement is given up, below these limits."""
        return Early(self._objective, self._tuned or None, self._base, limits)

    def scores(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Return the scores of those that have one: an objective may have no value somewhere."""
        scores = {}
        for name, record in records.items():
            if record.problems or record.pruned:
                continue
            metrics, tuned = record.metrics, self._tuned or None
            try:
                scores[name] = self._objective.score(metrics, tuned, self._base)
            except LinesError as error:
                problems = tuple(map(str, error.problems))
                self._failures += failures_of(replace(record, problems=problems))
        return scores
