"""What stands beside LiNeS in every search: merges without depth, of one coefficient."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from typing import Any

from mergekit_lines.lines.summary import Summary
from mergekit_lines.recipe.settings import without_words

Recipe = Mapping[str, Any]
# The three ways in which a point is measured, as tables and figures call them.
LINES, UNIFORM, UNSCALED = "LiNeS", "uniform, equal mean", "unscaled"
WAYS = (LINES, UNIFORM, UNSCALED)
# Words that say a coefficient by depth; `gamma` is one under lines_postprocess alone.
BY_DEPTH = ("alpha", "beta", "schedule", "norm")


def unscaled(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's plain merge: coefficient 1 for every tensor."""
    return _one_coefficient(recipe, 1.0, {"outside"})


def uniform(recipe: Recipe, mean: float) -> dict[str, Any]:
    """Return a recipe with one coefficient for all tensors; an ``outside`` of its own stays."""
    return _one_coefficient(recipe, mean, set())


def of_equal_mean(recipe: Recipe, mean: float) -> dict[str, Any]:
    """Return the uniform recipe that stands beside one of this mean coefficient.

    Schedules of one mean share one measurement: their sums differ in roundings.
    """
    return uniform(recipe, float(f"{mean:.12g}"))


def words_by_depth(recipe: Recipe) -> set[str]:
    """Return the words of a recipe's parameters that say a coefficient by depth."""
    postprocess = recipe.get("merge_method") == "lines_postprocess"
    return {*BY_DEPTH, *(["gamma"] if postprocess else [])}  # elsewhere gamma is the wrap's own


def _one_coefficient(recipe: Recipe, value: float, dropped: set[str]) -> dict[str, Any]:
    """Set alpha at the top and nowhere else: parameters of slices and modules would win."""
    dropped = words_by_depth(recipe) | dropped
    result: dict[str, Any] = without_words(copy.deepcopy(dict(recipe)), dropped)
    result["parameters"] = {**(result.get("parameters") or {}), "alpha": value, "beta": 0.0}
    return result


def mean_coefficient(summary: Summary) -> float:
    """Return the mean of λ over all blocks of all containers; without blocks, over the tensors.

    Each block counts once, whatever its size, and as the mean of its λ where filters give several.
    """
    blocks = [block for container in summary.containers.values() for block in container]
    values = [statistics.fmean(block) for block in blocks] or list(summary.outside.values())
    return statistics.fmean(values)
