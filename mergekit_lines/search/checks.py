"""Every recipe of a search checked before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lines.api import merge_options, parsed
from mergekit_lines.errors import LinesError
from mergekit_lines.planner import models_in_order
from mergekit_lines.plugin import METHODS, register
from mergekit_lines.preflight import check_recipe


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
    register()
    problems: dict[str, str] = {}
    options = merge_options({})
    for recipe, point in zip(recipes, points, strict=True):
        text, config = parsed(recipe)
        if config.merge_method not in METHODS:
            raise LinesError(
                f"merge_method: found {config.merge_method!r}, wanted {' or '.join(METHODS)}: it "
                f"is their coefficients that are searched."
            )
        at = ", ".join(f"{key} = {value}" for key, value in point.items())
        for problem in check_recipe(config, None, options, text):
            problems.setdefault(problem, f" (at {at})" if at else "")
    if problems:
        raise LinesError([f"{problem}{where}" for problem, where in problems.items()])


def input_names(document: Mapping[str, Any]) -> list[str]:
    """Return the recipe's models, the base first, as the recipe calls them."""
    _, config = parsed(document)
    return [str(model) for model in models_in_order(config)]
