"""Every recipe of a search checked before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergekit_lines.errors import LinesError, Problem, nearest
from mergekit_lines.evaluate import Evaluator, Settings, check_settings, parse_evaluators
from mergekit_lines.host.names import OWN
from mergekit_lines.live.blueprint import check_method
from mergekit_lines.plugin import register
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.reading import merge_options, parsed, read_recipe
from mergekit_lines.recipe.settings import tuned_entries
from mergekit_lines.recipe.sums import no_sum
from mergekit_lines.search.learning.predictions import OBJECTIVES

DTYPES = ("float32", "bfloat16", "float16", "float64")  # of weights while it is learnt


def open_recipe(recipe: Any) -> dict[str, Any]:
    """Return what a recipe's YAML holds, once it is one that mergekit reads.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping.

    Raises:
        LinesError: it cannot be read, is no recipe, or of another method than ours.
    """
    register()
    _, document = read_recipe(recipe)
    _, config = parsed(document)
    check_method(config)
    if config.merge_method in OWN:
        raise LinesError(
            f"merge_method: found {config.merge_method!r}, which has no coefficients to compare, "
            f"wanted lines. Write `merge_method: lines` and `wrap: {config.merge_method}`."
        )
    return dict(document)


def check_seed(model: Mapping[str, Any]) -> None:
    """Refuse a seed that is no part of the recipe.

    Args:
        model: what the live model is opened with.

    Raises:
        LinesError: it has one.
    """
    if model.get("random_seed") is not None:
        raise LinesError(
            f"random_seed: found {model['random_seed']}, wanted parameters.seed in the recipe: "
            f"a recipe that was chosen has to say by itself what it draws."
        )


def check_per_model(document: Mapping[str, Any]) -> None:
    """Refuse coefficients of each model where the recipe's merge is no sum of task vectors.

    Raises:
        LinesError: says why it is none.
    """
    _, config = parsed(document)
    problem = no_sum(config)
    if problem:
        raise LinesError(replace(problem, key=f"--per-model: {problem.key}"))


def check_recipes(
    recipes: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> None:
    """Check the words of every recipe of a search; no file of a model is opened.

    Args:
        recipes: as YAML would hold them.
        points: what was set in each, to say where it is wrong.

    Raises:
        LinesError: with every problem, once, and the first point that has it.
    """
    problems: dict[Problem, str] = {}
    options = merge_options({})
    for recipe, point in zip(recipes, points, strict=True):
        text, config = parsed(recipe)
        at = ", ".join(f"{key} = {value}" for key, value in point.items())
        wrong = [*check_recipe(config, None, options, text), *_overridden(recipe, point)]
        for problem in wrong:
            problems.setdefault(problem, f" (at {at})" if at else "")
    if problems:
        raise LinesError(
            [replace(one, rest=f"{one.rest}{where}") for one, where in problems.items()]
        )


def _overridden(recipe: Mapping[str, Any], point: Mapping[str, Any]) -> list[Problem]:
    """Return the keys that were set for all models and that each model sets for itself."""
    entries = [(recipe.get("models") or [])[number] for number in tuned_entries(recipe)]
    problems = []
    for key in point:
        name = key.removeprefix("parameters.")
        if "." in name or not entries:
            continue
        if all(name in (entry.get("parameters") or {}) for entry in entries):
            text = (
                f"every model has a {name} of its own, which wins, so that setting this changes "
                f"nothing. Set models.0.parameters.{name}, or take those out."
            )
            problems.append(Problem(key, text))
    return problems


def input_names(document: Mapping[str, Any]) -> list[str]:
    """Return the recipe's models, the base first, as the recipe calls them."""
    _, config = parsed(document)
    return [str(model) for model in models_in_order(config)]


def make_evaluators(
    settings: Settings | None, option: str, choose: str | Sequence[str], test: str | Sequence[str]
) -> dict[str, list[Evaluator]]:
    """Return the evaluators of each split that has any.

    Args:
        settings: what a spec does not say itself.
        option: that gives the specs of validation data, for errors.
        choose: specs of what is measured on validation data; one may stand by itself.
        test: likewise on test data.

    Raises:
        LinesError: there is nothing to choose by, or a spec or a setting is at fault.
    """
    if not choose:
        raise LinesError(f"{option}: found none, wanted at least one: by what shall it choose?")
    settings, specs = settings or Settings(), {"validation": choose, "test": test}
    evaluators = {
        split: parse_evaluators([texts] if isinstance(texts, str) else texts, split, settings)
        for split, texts in specs.items()
        if texts
    }
    check_settings(settings, [each for chosen in evaluators.values() for each in chosen])
    return evaluators


def check_learning(settings: Mapping[str, Any]) -> None:
    """Refuse settings of ``learn`` that mean nothing, all at once.

    Raises:
        LinesError: names them.
    """
    objective, problems = settings["objective"], list[str]()
    if objective not in OBJECTIVES:
        problems.append(
            f"--objective: found {objective!r}, wanted {' or '.join(OBJECTIVES)}."
            f"{nearest(str(objective), OBJECTIVES)}"
        )
    for name, least in (
        ("steps", 1),
        ("batch_size", 1),
        ("max_length", 1),
        ("limit", 1),
        ("seed", 0),
    ):
        value = settings[name]
        if value is None and name in ("max_length", "limit"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            wish = f"wanted a whole number from {least} on"
            problems.append(f"{_flag(name)}: found {value!r}, {wish}.")
    for name, most in (("learning_rate", math.inf), ("held_out", 1.0)):
        value = settings[name]
        if not isinstance(value, (int, float)) or not 0 < value < most:
            above = "a finite number above 0" if most == math.inf else "a share between 0 and 1"
            problems.append(f"{_flag(name)}: found {value!r}, wanted {above}.")
    if not isinstance(settings["per_model"], bool):
        problems.append(f"--per-model: found {settings['per_model']!r}, wanted true or false.")
    if settings["dtype"] not in (None, *DTYPES):
        problems.append(f"--dtype: found {settings['dtype']!r}, wanted {', '.join(DTYPES)}.")
    if problems:
        raise LinesError(problems)


def _flag(name: str) -> str:
    return "--lr" if name == "learning_rate" else f"--{name.replace('_', '-')}"
