"""A search: any number of keys of a recipe tuned by proposals, reported on test data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Settings
from mergekit_lines.recipe.settings import with_settings
from mergekit_lines.search.bench import Bench, Task, labelled, three_ways
from mergekit_lines.search.checks import check_recipes, input_names, make_evaluators, open_recipe
from mergekit_lines.search.judge import Judge, measure_inputs
from mergekit_lines.search.measuring.means import LINES, Recipe, uniform
from mergekit_lines.search.measuring.meters import Job, PoolMaker, portable
from mergekit_lines.search.objective import Objective, parse_objective
from mergekit_lines.search.propose.results import FLAT, Chosen, Search, best_of
from mergekit_lines.search.propose.space import Space, parse_space
from mergekit_lines.search.propose.storage import (
    check_installed,
    database_in,
    open_storage,
    owner_of,
)
from mergekit_lines.search.propose.study import (
    Study,
    Trial,
    check_begun,
    check_sampler,
    study_name,
)
from mergekit_lines.search.store import Record


@dataclass(frozen=True)
class Plan:
    """What a search is to do, checked before anything is opened.

    Attributes:
        document: the recipe, as it was given.
        space: of its keys.
        flat: of uniform coefficients, if they are searched too.
        goals: what is maximised.
        trials: how many, of each space.
        sampler: of the proposals.
        seed: likewise.
        storage: URL of the database; None for one in the folder of the results.
        resume: whether there has to be a trial already.
        prune: whether measurements are given up early.
    """

    document: Recipe
    space: Space
    flat: Space | None
    goals: tuple[Objective, ...]
    trials: int
    sampler: str
    seed: int
    storage: str | None
    resume: bool
    prune: bool

    def recipe(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of a trial with LiNeS."""
        return with_settings(self.document, self.space.settings(values, self.document))

    def flat_recipe(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of a trial without depth."""
        if self.flat is None:
            raise ValueError("no uniform coefficients are searched")
        settings = self.flat.settings(values, self.document)
        alpha = settings.pop("parameters.alpha")
        return uniform(with_settings(self.document, settings), alpha)


def search(
    recipe: Any,
    keys: Sequence[str],
    evaluate: Sequence[str],
    out: str | os.PathLike[str],
    *,
    test: Sequence[str] = (),
    objectives: Sequence[str] = ("mean",),
    trials: int = 30,
    sampler: str | None = None,
    sampler_seed: int = 0,
    storage: str | None = None,
    resume: bool = False,
    prune: bool = False,
    uniform_range: tuple[float, float] | None = None,
    targets: Sequence[str] = (),
    controls: Sequence[str] = (),
    target_weight: float = 2.0,
    settings: Settings | None = None,
    workers: PoolMaker | None = None,
    **model: Any,
) -> Search:
    """Measure a recipe at points that Optuna proposes, on models that are held on devices.

    Beside the best trial the unscaled merge and the uniform coefficient of the same mean are
    measured, and with ``uniform_range`` as many trials of uniform coefficients are made. Results
    are in ``out`` after every measurement; called again, an interrupted search goes on with the
    very trials that were being measured.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping.
        keys: ``KEY=LOW:HIGH[:log|:int]`` or ``KEY=VALUE,VALUE`` each;
            ``blocks=LOW:HIGH[:COUNT]`` and ``weights=LOW:HIGH`` are several numbers.
        evaluate: specs of what is measured on validation data, by which the choice is made.
        out: folder of the results.
        test: specs of what is measured on test data, after the choice.
        objectives: one as :func:`~mergekit_lines.sweep` takes it, or several.
        trials: how many there shall be in all, those of earlier runs among them.
        sampler: ``tpe``, ``cmaes``, ``nsga2`` or ``random``; ``tpe`` by default, ``nsga2`` for
            several objectives.
        sampler_seed: of the proposals.
        storage: URL of a database that several machines share; by default one in ``out``.
        resume: whether trials have to be there already.
        prune: give a trial up that is below the median of the whole ones at the same part of
            the data: of a perplexity each quarter, of lm_eval each task, and each evaluator.
        uniform_range: lowest and highest uniform coefficient, to search these too.
        targets: as for a sweep.
        controls: likewise.
        target_weight: likewise.
        settings: for evaluators whose specs do not say otherwise.
        workers: makes the live models that measure side by side; one in this process by default.
        **model: what :class:`~mergekit_lines.LiveModel` takes besides.

    Returns:
        The search; its choice is also in ``out/best.yml``, a recipe for ``mergekit-yaml``, or of
        several objectives in ``out/recipes``.

    Raises:
        LinesError: recipe, keys, evaluators or objectives are at fault, Optuna is not installed,
            or ``out`` or the database cannot be used.
    """
    document = open_recipe(recipe)
    keys = [keys] if isinstance(keys, str) else keys
    texts = [objectives] if isinstance(objectives, str) else list(objectives)
    goals = _goals(texts, targets, controls, target_weight)
    space = parse_space(keys, document)
    flat = space.without_depth(document, *uniform_range) if uniform_range else None
    sampler = sampler or ("nsga2" if len(goals) > 1 else "tpe")
    check_installed(sampler)
    check_sampler(sampler, space, len(goals))
    if prune and len(goals) > 1:
        raise LinesError(
            "--prune: found several objectives, wanted one: of a front no trial is below the "
            "others. Leave --prune out."
        )
    plan = Plan(document, space, flat, goals, trials, sampler, sampler_seed, storage, resume, prune)
    corners = space.corners()
    recipes = [plan.recipe(values) for values in corners]
    check_recipes(recipes, corners)
    if flat is not None:
        check_recipes([plan.flat_recipe(values) for values in flat.corners()], flat.corners())
    evaluators = make_evaluators(settings, "--evaluate", evaluate, test)
    if storage is not None:
        open_storage(storage)  # what is wrong with it is told before a model is opened
    names = input_names(recipes[0])
    total = len(names) + trials * (2 if flat else 1) + 2 + (len(names) + 4 if test else 0)
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
        inputs = measure_inputs(bench, goals, names, recipes[0])
        result = _Searching(plan, bench, inputs).run()
        if test:
            result = _tested(bench, result)
    return replace(result, failures=tuple(bench.failures))


def _goals(
    texts: Sequence[str], targets: Sequence[str], controls: Sequence[str], weight: float
) -> tuple[Objective, ...]:
    if not texts or len(set(texts)) < len(texts):
        raise LinesError(f"--objective: found {list(texts)}, wanted one or more, each once.")
    plain = [text for text in texts if text.strip() != "retention"]
    if len(plain) == len(texts):  # then nobody wants targets, and the first says so
        return tuple(
            parse_objective(text, targets=targets, controls=controls, target_weight=weight)
            for text in texts
        )
    return tuple(
        parse_objective(text)
        if text in plain
        else parse_objective(text, targets=targets, controls=controls, target_weight=weight)
        for text in texts
    )


class _Searching:
    """Proposals measured and scored.

    Args:
        plan: what is to be done.
        bench: measures.
        inputs: the base and the fine-tuned models as they are.
    """

    def __init__(self, plan: Plan, bench: Bench, inputs: Mapping[str, Record]) -> None:
        self._plan, self._bench, self._inputs = plan, bench, inputs
        self._judges = [Judge(goal, inputs, bench.failures) for goal in plan.goals]
        self._input_scores = self._scores(inputs)
        needed = any(goal.needs for goal in plan.goals)
        if needed and not all(name in self._input_scores for name in list(inputs)[1:]):
            raise LinesError(bench.failures)  # by which every trial would fail
        folder = bench.store.folder
        self._url = plan.storage or database_in(folder)
        self._owner = owner_of(folder) if plan.storage else None
        self._storage = open_storage(self._url)

    def _scores(self, records: Mapping[str, Record]) -> dict[str, tuple[float, ...]]:
        """Return the scores by all objectives of those records that have all."""
        each = [judge.scores(records) for judge in self._judges]
        return {
            name: tuple(scores[name] for scores in each)
            for name in records
            if all(name in scores for scores in each)
        }

    def _study(self, kind: str, space: Space) -> Study:
        plan = self._plan
        identity = dict(self._bench.store.identity)
        identity.pop("the evaluators of test", None)  # which change no proposal
        described = {
            "space": [one.as_json() for one in space.dimensions],
            "keys": [key.key for key in space.keys],
            "objectives": [str(goal) for goal in plan.goals],
            "identity": portable(identity),
        }
        name = study_name(kind, described)
        where = self._storage, self._url, self._owner
        return Study(name, space, len(plan.goals), plan.sampler, plan.seed, *where)

    def run(self) -> Search:
        """Return the search, before anything is measured on test data."""
        plan = self._plan
        study = self._study("LiNeS", plan.space)
        if plan.resume:
            check_begun(study, self._url)
        trials = self._measured(study, plan.recipe)
        chosen = [self._beside(trial) for trial in best_of(trials)]
        flat, flat_chosen = list[Trial](), list[Chosen]()
        if plan.flat is not None:
            flat = self._measured(self._study("uniform", plan.flat), plan.flat_recipe)
            for trial in best_of(flat):
                recipe = plan.flat_recipe(trial.values)
                records = {FLAT: self._bench.measure(recipe)}
                ends = plan.flat.ends(trial.values)
                flat_chosen.append(Chosen(trial, recipe, ends, records, {FLAT: trial.scores}))
        return Search(
            space=plan.space,
            objectives=tuple(goal.text for goal in plan.goals),
            trials=tuple(trials),
            chosen=tuple(chosen),
            flat=tuple(flat),
            flat_chosen=tuple(flat_chosen),
            inputs=self._inputs,
            input_scores=self._input_scores,
            pruned=study.pruned(),
            importances=tuple(study.importances(goal) for goal in range(len(plan.goals))),
            pipeline_tag=self._bench.facts.pipeline_tag,
        )

    def _measured(self, study: Study, recipe_of: Any) -> list[Trial]:
        """Measure what a study proposes, and return its trials."""
        for _ in self._bench.each(self._tasks(study, recipe_of)):
            pass
        finished = study.complete()
        if not finished:
            first = (self._bench.failures or ["there is no trial"])[0]
            raise LinesError(f"no trial could be measured. The first failure: {first}")
        return finished

    def _tasks(self, study: Study, recipe_of: Any) -> Iterator[Task[None]]:
        def measure(proposal: Any) -> Task[None]:
            early = self._judges[0].early(study.limits()) if self._plan.prune else None
            record = yield Job(recipe_of(proposal.values), early=early)
            before = len(self._bench.failures)
            scores = self._scores({"": record}).get("")
            problems = [*record.problems, *self._bench.failures[before:], ""]
            # A record may be of a run that asked for something else: its parts say nothing here.
            own = len(self._plan.goals) == 1 and record.goal == str(self._plan.goals[0])
            partials = record.partials if own else ()
            study.tell(proposal, scores, problems[0], partials, pruned=record.pruned)

        for proposal in study.coming(self._plan.trials):
            yield measure(proposal)

    def _beside(self, trial: Trial) -> Chosen:
        """Measure what stands beside a trial; its own record is there already."""
        recipe = self._plan.recipe(trial.values)
        ((_, records),) = self._bench.each([labelled("", three_ways(recipe))])
        scores = {**self._scores(records), LINES: trial.scores}
        ends = self._plan.space.ends(trial.values)
        return Chosen(trial, recipe, ends, records, scores)


def _tested(bench: Bench, result: Search) -> Search:
    """Measure the chosen ones, what stands beside them, and the inputs on test data."""

    def of(recipes: Mapping[str, Recipe]) -> dict[str, Record]:
        records = bench.all([Job(recipe, "test") for recipe in recipes.values()])
        return dict(zip(recipes, records, strict=True))

    def tested(one: Chosen) -> Chosen:
        test = of({way: record.recipe for way, record in one.records.items()})
        return replace(one, test=test)

    return replace(
        result,
        input_test=of({name: {"model": name} for name in result.inputs}),
        chosen=tuple(map(tested, result.chosen)),
        flat_chosen=tuple(map(tested, result.flat_chosen)),
    )
