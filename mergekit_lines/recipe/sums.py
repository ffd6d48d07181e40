"""Recipes whose merge is a sum of task vectors by weights, so that each has a weight of its own."""

from __future__ import annotations

from mergekit.config import MergeConfiguration

from mergekit_lines.errors import Problem
from mergekit_lines.methods.registry import method_for
from mergekit_lines.methods.weights import adds_up
from mergekit_lines.methods.words import of_parameter
from mergekit_lines.recipe.models import sections
from mergekit_lines.recipe.parameters import leaves, wraps


def no_sum(config: MergeConfiguration) -> Problem | None:
    """Return why a recipe's merge is no sum Σ w·v with one v for each model, or None.

    Sparsified task vectors are such v: what is dropped of them hangs on no weight. Elected signs
    and masks hang on all of them, and a sum that is divided by its weights has one weight too many.
    """
    if config.merge_method == "lines_postprocess":
        return Problem(
            "merge_method",
            "found 'lines_postprocess', wanted lines: one model is edited, whose coefficients are "
            "the merge's.",
        )
    for wrap in wraps(config, []):
        if not adds_up(method_for(wrap).wrapped):
            return of_parameter(
                "wrap",
                f"found {wrap!r}, wanted one that adds task vectors up by weights: "
                f"task_arithmetic, dare_linear, breadcrumbs or della_linear.",
            )
    settings = [
        value
        for section in sections(config)
        if "normalize" in section.parameters
        for value in leaves(section.parameters["normalize"])
    ]
    if any(settings):
        return of_parameter(
            "normalize",
            "found true, wanted false: a sum that is divided by its weights hangs on none of them "
            "alone. Take it out.",
        )
    return None
