"""Settings of a recipe by dotted keys."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

from mergekit_lines import LinesError
from mergekit_lines.recipe.settings import with_settings, without_parameters

RECIPE: dict[str, Any] = {
    "merge_method": "lines",
    "base_model": "base",
    "models": [{"model": "base"}, {"model": "a", "parameters": {"density": 0.5}}, {"model": "b"}],
    "parameters": {"beta": 0.5},
}


def test_sets_parameters_anywhere_and_leaves_the_recipe() -> None:
    """Short and full keys, entries of models, numpy's numbers; None takes a word out."""
    before = copy.deepcopy(RECIPE)
    made = with_settings(
        RECIPE,
        {"alpha": np.float64(0.25), "parameters.beta": None, "models[1].parameters.density": 1},
    )
    assert made["parameters"] == {"alpha": 0.25}
    assert type(made["parameters"]["alpha"]) is float
    assert made["models"][1] == {"model": "a", "parameters": {"density": 1}}
    assert before == RECIPE
    assert without_parameters(made) == without_parameters(RECIPE)


def test_weights_are_those_of_the_models_but_the_base() -> None:
    """A listed base keeps what it has."""
    made = with_settings(RECIPE, {"weights": [0.3, 0.7]})
    assert made["models"] == [
        {"model": "base"},
        {"model": "a", "parameters": {"density": 0.5, "weight": 0.3}},
        {"model": "b", "parameters": {"weight": 0.7}},
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"models.7.parameters.weight": 1}, "no models.7, wanted a number from 0 to 2"),
        ({"models.x.parameters.weight": 1}, "no models.x"),
        ({"dtype.x": 1}, "found a key outside of parameters"),
        ({"slices.0.parameters.weight": 1}, "the recipe has no slices, wanted one of base_model"),
        ({"base_model.parameters.weight": 1}, "the recipe has no base_model.parameters"),
        ({"parameters.": 1}, "found a key outside of parameters"),
        ({"parameters.parameters.beta": 1}, "found a key outside of parameters"),
        ({"weights": [1.0]}, "found 1 numbers, wanted 2"),
        ({"weights": 1.0}, "found 1.0, wanted a list of 2 numbers"),
    ],
)
def test_refuses_keys_that_are_not_there(settings: dict[str, Any], told: str) -> None:
    """A key is told with what the recipe has instead."""
    with pytest.raises(LinesError, match=re.escape(told)):
        with_settings(RECIPE, settings)
