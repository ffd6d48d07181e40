"""A sweep: one or two keys of a recipe tuned on validation data, reported on test data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mergekit_lines.api import read_recipe
from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Metric, Settings, parse_evaluators
from mergekit_lines.live.settings import with_settings
from mergekit_lines.objective import Objective, parse_objective
from mergekit_lines.search.axes import Axis, grid, parse_axis
from mergekit_lines.search.bench import Bench, Recipe
from mergekit_lines.search.checks import check_recipes, input_names
from mergekit_lines.search.store import Record, write_whole

BEST = "best.yml"


@dataclass(frozen=True)
class Point:
    """One point of the grid: LiNeS, and beside it what has no depth, by the same evaluators.

    The scores are the objective's, higher is better.
    """

    settings: Mapping[str, Any]
    lines: Record
    unscaled: Record
    uniform: Record
    scores: Mapping[str, float]  # by "lines", "unscaled", "uniform"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        axes: what was swept.
        objective: what was maximised, as it was given.
        points: in the order of the grid.
        best: the one that LiNeS scores highest at; the first of equals.
        inputs: the base, then the fine-tuned models, as they are, by name.
        input_scores: what the objective says of them.
        test: of the chosen point, its uniform and unscaled neighbours, the best uniform
            coefficient of the grid and the inputs, by what they are called; empty where no
            test evaluators were given.
    """

    axes: tuple[Axis, ...]
    objective: str
    points: tuple[Point, ...]
    best: Point
    inputs: Mapping[str, Record]
    input_scores: Mapping[str, float]
    test: Mapping[str, Record]

    @property
    def best_uniform(self) -> Point:
        """The point whose uniform coefficient scores highest."""
        return max(self.points, key=lambda point: point.scores["uniform"])


def sweep(
    recipe: Any,
    axes: Sequence[str | Axis],
    evaluate: Sequence[str],
    out: str | os.PathLike[str],
    *,
    test: Sequence[str] = (),
    objective: str = "mean",
    targets: Sequence[str] = (),
    controls: Sequence[str] = (),
    target_weight: float = 2.0,
    settings: Settings | None = None,
    **model: Any,
) -> Sweep:
    """Measure a recipe at every point of a grid, on one model that is held on a device.

    At every point also the unscaled merge (coefficient 1 everywhere) and the uniform coefficient
    of the same mean are measured: where these do as well, it was not the depth that helped. The
    base and the fine-tuned models are measured as they are. Results are in ``out`` after every
    measurement; called again, an interrupted sweep goes on.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping.
        axes: one or two of ``KEY=START:STOP:STEP`` or ``KEY=VALUE,VALUE,…``.
        evaluate: specs of what is measured on validation data, by which the choice is made.
        out: folder of the results.
        test: specs of what is measured on test data, after the choice.
        objective: ``mean`` (of the metrics over those of the fine-tuned models; of several
            models the best in each), ``retention`` (target_weight·M_target + M_control of the
            paper's C.1), or an expression over the metrics' names.
        targets: names of the target metrics of ``retention``.
        controls: names of its control metrics.
        target_weight: w_target; the paper's is 2.
        settings: for evaluators whose specs do not say otherwise.
        **model: what :class:`~mergekit_lines.LiveModel` takes besides: ``device``,
            ``max_memory``, ….

    Returns:
        The sweep; its choice is also in ``out/best.yml``, a recipe for ``mergekit-yaml``.

    Raises:
        LinesError: recipe, axes, evaluators or objective are at fault, validation and test share
            data, or ``out`` holds another search.

    Source: arXiv 2410.17146, appendices B and C.1.
    """
    _, document = read_recipe(recipe)
    found = [axis if isinstance(axis, Axis) else parse_axis(axis) for axis in axes]
    points = grid(found)
    recipes = [with_settings(document, point) for point in points]
    check_recipes(recipes, points)
    options = settings or Settings()
    evaluators = {"validation": parse_evaluators(evaluate, "validation", options)}
    if not evaluators["validation"]:
        raise LinesError("--evaluate: found none, wanted at least one: by what shall it choose?")
    if test:
        evaluators["test"] = parse_evaluators(test, "test", options)
    goal = parse_objective(
        objective, targets=targets, controls=controls, target_weight=target_weight
    )
    inputs = input_names(recipes[0])
    total = len(inputs) + 3 * len(points) + (len(inputs) + 4 if test else 0)
    about = {"the recipe": document}
    with Bench(recipes[0], Path(out), evaluators, about, model, total) as bench:
        if bench.store.found:
            bench.say(f"found {bench.store.found} results in {out}: going on behind them")
        base = bench.measure_input(inputs[0])
        goal.names(base.metrics)  # a name that is not there shows after the first measurement
        tuned = {name: bench.measure_input(name) for name in inputs[1:]}
        judge = _Judge(goal, base, tuned)
        measured = [_point(bench, *pair, judge) for pair in zip(points, recipes, strict=True)]
        best = max(measured, key=lambda point: point.scores["lines"])
        chosen = recipes[measured.index(best)]
        own = {inputs[0]: base, **tuned}
        scores = {name: judge.score(record) for name, record in own.items()}
        result = Sweep(tuple(found), objective, tuple(measured), best, own, scores, {})
        if test:
            rival = result.best_uniform.uniform
            result = replace(result, test=dict(_tested(bench, chosen, best, rival, inputs)))
        write_whole(Path(out, BEST), _text(chosen, result))
    return result


@dataclass(frozen=True)
class _Judge:
    """Scores a measurement beside the inputs' own."""

    objective: Objective
    base: Record
    tuned: Mapping[str, Record]

    def score(self, record: Record) -> float:
        best: dict[str, Metric] = {}
        for own in self.tuned.values():
            for name, metric in own.metrics.items():
                known = best.get(name)
                if known is None or (metric.value > known.value) == metric.higher_is_better:
                    best[name] = metric
        return self.objective.score(record.metrics, best, self.base.metrics)


def _point(bench: Bench, settings: Mapping[str, Any], recipe: Recipe, judge: _Judge) -> Point:
    lines = bench.measure(recipe)
    unscaled, flat = bench.beside(recipe, lines)
    records = {"lines": lines, "unscaled": unscaled, "uniform": flat}
    scores = {name: judge.score(record) for name, record in records.items()}
    return Point(settings, lines, unscaled, flat, scores)


def _tested(
    bench: Bench, recipe: Recipe, best: Point, uniform_best: Record, inputs: Sequence[str]
) -> Iterator[tuple[str, Record]]:
    yield "base", bench.measure_input(inputs[0], "test")
    for name in inputs[1:]:
        yield name, bench.measure_input(name, "test")
    yield "LiNeS", bench.measure(recipe, "test")
    yield "uniform, equal mean", bench.measure(best.uniform.recipe, "test")
    yield "uniform, best", bench.measure(uniform_best.recipe, "test")
    yield "unscaled", bench.measure(best.unscaled.recipe, "test")


def _text(recipe: Recipe, result: Sweep) -> str:
    best = ", ".join(f"{key} = {value}" for key, value in result.best.settings.items())
    score = result.best.scores["lines"]
    head = (
        f"# Chosen by a sweep among {len(result.points)} points: {best}\n"
        f"# (objective {result.objective}: {score:.6g} on validation data).\n"
    )
    return head + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
