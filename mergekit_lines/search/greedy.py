"""Soups of many checkpoints of one task: uniform, greedy, and LiNeS after the choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Settings
from mergekit_lines.lines.placed import AUTO, BLOCK, LARV
from mergekit_lines.recipe.settings import tuned_entries, with_settings
from mergekit_lines.search.bench import Bench
from mergekit_lines.search.checks import check_recipes, input_names, make_evaluators, open_recipe
from mergekit_lines.search.measuring.means import Recipe, unscaled
from mergekit_lines.search.objective import parse_objective
from mergekit_lines.search.store import GREEDY, Record, write_recipe


@dataclass(frozen=True)
class Greedy:
    """Soups of N checkpoints.

    Attributes:
        scores: of each checkpoint by itself, as the objective has it, best first; of those that
            could be measured.
        chosen: the checkpoints of the greedy soup, in the order in which they were added.
        soups: records of the ``uniform`` and the ``greedy`` soup, and of both with LiNeS
            (``uniform + LiNeS``, ``greedy + LiNeS``).
        values: the objective's value of each soup that could be measured.
        test: the same soups on test data, empty where no test evaluators were given.
        failures: what could not be measured, in sentences.
    """

    scores: Mapping[str, float]
    chosen: tuple[str, ...]
    soups: Mapping[str, Record]
    values: Mapping[str, float]
    test: Mapping[str, Record]
    failures: tuple[str, ...] = ()


def greedy(
    recipe: Any,
    evaluate: Sequence[str],
    out: str | os.PathLike[str],
    *,
    test: Sequence[str] = (),
    objective: str = "sum",
    settings: Settings | None = None,
    **model: Any,
) -> Greedy:
    """Choose checkpoints greedily, and apply LiNeS to the soup of those that were chosen.

    The checkpoints are sorted by their own scores on validation data; each is kept only if the
    mean of those kept and it scores strictly better. LiNeS is applied after the choice.

    Args:
        recipe: path of a YAML file, or a mapping: ``lines`` around ``task_arithmetic``, the
            checkpoints under ``models``; its α, β and schedule are those of the edit.
        evaluate: specs of what is measured on validation data, by which the choice is made.
        out: folder of the results; ``greedy.yml`` in it is the recipe of the chosen soup.
        test: specs of what is measured on test data, after the choice.
        objective: an expression over the metrics' names; by default their sum, a metric of
            which less is better counted with a minus.
        settings: for evaluators whose specs do not say otherwise.
        **model: what :class:`~mergekit_lines.LiveModel` takes besides.

    Raises:
        LinesError: recipe, evaluators or objective are at fault.

    Source: model soups, arXiv 2203.05482; with LiNeS, arXiv 2410.17146, section 5.3.
    """
    document = open_recipe(recipe)
    places = tuned_entries(document)
    _check_soup(document, places)
    names = input_names(document)[1:]
    every = soup_recipe(document, range(len(places)))
    check_recipes([every], [{}])
    evaluators = make_evaluators(settings, "--evaluate", evaluate, test)
    score = _scorer(objective)
    total = 2 * len(places) + 3 + (4 if test else 0)
    with Bench(every, Path(out), evaluators, document, model, total) as bench:
        inputs = {name: bench.measure_input(name) for name in names}
        own = {
            number: score(inputs[name]) for number, name in enumerate(names) if inputs[name].metrics
        }
        ranked = sorted(own, key=lambda number: -own[number])
        chosen = _choose(bench, document, ranked, score)
        selected = soup_recipe(document, chosen)
        recipes = {
            "uniform": unscaled(every),
            "greedy": unscaled(selected),
            "uniform + LiNeS": every,
            "greedy + LiNeS": selected,
        }
        soups = {name: bench.measure(each) for name, each in recipes.items()}
        tested = {name: bench.measure(each, "test") for name, each in recipes.items() if test}
        write_recipe(Path(out, GREEDY), _chosen_alone(selected, chosen))
    return Greedy(
        scores={names[number]: own[number] for number in ranked},
        chosen=tuple(names[number] for number in chosen),
        soups=soups,
        values={name: score(record) for name, record in soups.items() if record.metrics},
        test=tested,
        failures=tuple(bench.failures),
    )


def _choose(
    bench: Bench, document: Recipe, ranked: Sequence[int], score: Callable[[Record], float]
) -> list[int]:
    """Return the checkpoints that make the mean of those before them strictly better."""
    chosen, best = list[int](), float("-inf")
    for number in ranked:
        trial = [*chosen, number]
        record = bench.measure(unscaled(soup_recipe(document, trial)))
        if record.metrics and score(record) > best:
            chosen, best = trial, score(record)
    if not chosen:
        raise LinesError(f"no checkpoint could be measured: {bench.failures[0]}")
    return chosen


def soup_recipe(document: Recipe, chosen: Sequence[int]) -> dict[str, Any]:
    """Return the recipe with the mean of the chosen checkpoints: weight 1/k each, 0 the others.

    Args:
        document: the recipe.
        chosen: their numbers among the models that are not the base.
    """
    count = len(tuned_entries(document))
    weights = [1 / len(chosen) if number in chosen else 0.0 for number in range(count)]
    return with_settings(document, {"weights": weights})


def _check_soup(document: Recipe, places: Sequence[int]) -> None:
    words = document.get("parameters") or {}
    wrap = words.get("wrap", "task_arithmetic")
    if document.get("merge_method") != "lines" or wrap != "task_arithmetic" or len(places) < 2:
        raise LinesError(
            f"recipe: found merge_method {document.get('merge_method')!r}, wrap {wrap!r} and "
            f"{len(places)} models besides the base, wanted `lines` around task_arithmetic, and "
            f"two checkpoints or more: a soup is their mean."
        )
    if words.get("lambda", 1) != 1:
        raise LinesError(
            f"parameters.lambda: found {words['lambda']!r}, wanted none: a soup is the mean of "
            f"checkpoints, and alpha and beta say how far it goes."
        )
    alpha, schedule = words.get("alpha", AUTO), str(words.get("schedule", ""))
    if schedule == LARV:
        raise LinesError(
            "parameters.schedule: found larv, wanted another: its levels come from the models, and "
            "which those are is not known before the choice."
        )
    if alpha in (AUTO, BLOCK) and "," not in schedule:
        raise LinesError(
            f"parameters.alpha: found {alpha}, wanted a number (the paper's for soups is 1): Eq. 2 "
            "counts the models, and which those are is not known before the choice."
        )


def _scorer(objective: str) -> Callable[[Record], float]:
    if objective == "sum":
        return lambda record: sum(
            metric.value if metric.higher_is_better else -metric.value
            for metric in record.metrics.values()
        )
    goal = parse_objective(objective)
    if goal.needs:
        raise LinesError(
            f"--objective {objective}: compares with fine-tuned models, and here each checkpoint "
            f"is one. Give an expression over the metrics."
        )

    def score(record: Record) -> float:
        goal.names(record.metrics)
        return goal.score(record.metrics, None, None)

    return score


def _chosen_alone(recipe: Recipe, chosen: Sequence[int]) -> Recipe:
    """Return a soup's recipe without the checkpoints that were not chosen."""
    places = tuned_entries(recipe)
    dropped = {place for number, place in enumerate(places) if number not in chosen}
    models = [entry for number, entry in enumerate(recipe["models"]) if number not in dropped]
    return {**recipe, "models": models}
