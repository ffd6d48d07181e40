"""A sweep: one or two keys of a recipe tuned on validation data, reported on test data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Settings
from mergekit_lines.recipe.settings import with_settings
from mergekit_lines.search.axes import Axis, grid, parse_axis
from mergekit_lines.search.bench import Bench, labelled, three_ways
from mergekit_lines.search.checks import check_recipes, input_names, make_evaluators, open_recipe
from mergekit_lines.search.judge import Judge, measure_inputs
from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED, Recipe
from mergekit_lines.search.measuring.meters import Job, PoolMaker
from mergekit_lines.search.objective import parse_objective
from mergekit_lines.search.store import BEST, BEST_UNIFORM, CARD, Record, write_recipe


@dataclass(frozen=True)
class Point:
    """One point of the grid: LiNeS, and beside it what has no depth, by the same evaluators.

    The scores are the objective's, higher is better. A way that could not be measured has none.
    """

    settings: Mapping[str, Any]
    records: Mapping[str, Record]  # by the three ways of bench.py
    scores: Mapping[str, float]  # likewise

    @property
    def lines(self) -> Record:
        """What was measured with LiNeS."""
        return self.records[LINES]


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        axes: what was swept.
        objective: what was maximised, as it was given.
        points: in the order of the grid.
        best: the one that LiNeS scores highest at; the first of equals.
        inputs: the base, then the fine-tuned models, as they are, by name; none where slices
            stack other blocks than an input has.
        input_scores: what the objective says of them.
        test: of the chosen point, its uniform and unscaled neighbours, the best uniform
            coefficient of the grid and the inputs, by what they are called; empty where no
            test evaluators were given.
        pipeline_tag: the model's, as the Hub has it.
        failures: what could not be measured or scored, in sentences.
    """

    axes: tuple[Axis, ...]
    objective: str
    points: tuple[Point, ...]
    best: Point
    inputs: Mapping[str, Record]
    input_scores: Mapping[str, float]
    test: Mapping[str, Record] = field(default_factory=dict)
    pipeline_tag: str = "other"
    failures: tuple[str, ...] = ()

    @property
    def tested(self) -> bool:
        """Whether the chosen point was measured on test data."""
        return LINES in self.test and not self.test[LINES].problems

    @property
    def best_uniform(self) -> tuple[Record, float] | None:
        """The uniform coefficient that scores highest, 1 among them, with its score, if any has."""
        scored = [
            (point.records[way], point.scores[way])
            for way in (UNIFORM, UNSCALED)
            for point in self.points
            if way in point.scores
        ]
        return max(scored, key=lambda rival: rival[1], default=None)


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
    workers: PoolMaker | None = None,
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
        workers: makes the live models that measure side by side; one in this process by default.
        **model: what :class:`~mergekit_lines.LiveModel` takes besides: ``device``,
            ``max_memory``, ….

    Returns:
        The sweep; its choice is also in ``out/best.yml``, a recipe for ``mergekit-yaml``.

    Raises:
        LinesError: recipe, axes, evaluators or objective are at fault, validation and test share
            data, or ``out`` holds another search.

    Source: arXiv 2410.17146, appendices B and C.1.
    """
    document = open_recipe(recipe)
    axes = [axes] if isinstance(axes, str) else axes
    parsed_axes = [axis if isinstance(axis, Axis) else parse_axis(axis) for axis in axes]
    points = grid(parsed_axes)
    recipes = [with_settings(document, point) for point in points]
    check_recipes(recipes, points)
    evaluators = make_evaluators(settings, "--evaluate", evaluate, test)
    goal = parse_objective(
        objective, targets=targets, controls=controls, target_weight=target_weight
    )
    names = input_names(recipes[0])
    total = len(names) + 3 * len(points) + (len(names) + 4 if test else 0)
    bench_of = Bench(
        recipes[0],
        Path(out),
        evaluators,
        document,
        model,
        total,
        settings=settings,
        workers=workers,
    )
    with bench_of as bench:
        inputs = measure_inputs(bench, [goal], names, recipes[0])
        judge = Judge(goal, inputs, bench.failures)
        own = judge.scores(inputs)
        if goal.needs and not all(name in own for name in names[1:]):
            raise LinesError(bench.failures)  # by which every point would fail
        ways = dict(bench.each(labelled(n, three_ways(each)) for n, each in enumerate(recipes)))
        measured = [
            Point(point, ways[number], judge.scores(ways[number]))
            for number, point in enumerate(points)
        ]
        scored = [point for point in measured if LINES in point.scores]
        if not scored:
            raise LinesError(f"no point could be measured. The first failure: {bench.failures[0]}")
        best = max(scored, key=lambda point: point.scores[LINES])
        chosen = recipes[measured.index(best)]
        result = Sweep(tuple(parsed_axes), objective, tuple(measured), best, inputs, own)
        if test:
            result = replace(
                result,
                test=_tested(bench, chosen, result),
                pipeline_tag=bench.facts.pipeline_tag,
            )
        if not result.tested:  # what an earlier run reported was of another choice, perhaps
            Path(out, CARD).unlink(missing_ok=True)
        write_recipe(Path(out, BEST), chosen, _head(result))
        _write_rival(Path(out, BEST_UNIFORM), result)
    return replace(result, failures=tuple(bench.failures))


def _tested(bench: Bench, recipe: Recipe, swept: Sweep) -> dict[str, Record]:
    recipes: dict[str, Recipe] = {name: {"model": name} for name in swept.inputs}
    recipes[LINES] = recipe
    others = {UNIFORM: swept.best.records.get(UNIFORM)}
    if swept.best_uniform is not None:
        others["uniform, best"] = swept.best_uniform[0]
    others[UNSCALED] = swept.best.records[UNSCALED]
    recipes |= {name: record.recipe for name, record in others.items() if record is not None}
    records = bench.all([Job(each, "test") for each in recipes.values()])
    return dict(zip(recipes, records, strict=True))


def _write_rival(path: Path, result: Sweep) -> None:
    """Write the best uniform coefficient's recipe where it scores higher than LiNeS; else none."""
    rival = result.best_uniform
    if rival is None or rival[1] <= result.best.scores[LINES]:
        path.unlink(missing_ok=True)
        return
    record, score = rival
    head = (
        f"# The best uniform coefficient of a sweep of {len(result.points)} points\n"
        f"# (objective {result.objective}: {score:.6g} on validation data, more than LiNeS's).\n"
    )
    write_recipe(path, record.recipe, head)


def _head(result: Sweep) -> str:
    best = ", ".join(f"{key} = {value}" for key, value in result.best.settings.items())
    score = result.best.scores[LINES]
    return (
        f"# Chosen by a sweep among {len(result.points)} points: {best}\n"
        f"# (objective {result.objective}: {score:.6g} on validation data).\n"
    )
