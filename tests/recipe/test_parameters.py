"""Parameters of a recipe: each wrong name, place and value is a problem that says which."""

from __future__ import annotations

from typing import Any

import pytest
from mergekit.config import MergeConfiguration

from mergekit_lines.recipe.parameters import check_filters, check_parameters

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]


def config(
    parameters: dict[str, Any], models: int = 2, method: str = "lines", **under_first: Any
) -> MergeConfiguration:
    listed: list[dict[str, Any]] = [{"model": f"m{number}"} for number in range(models)]
    if under_first:
        listed[0]["parameters"] = under_first
    return MergeConfiguration.model_validate(
        {
            "merge_method": method,
            "base_model": "base",
            "models": listed,
            "parameters": parameters,
        }
    )


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        (config({"alpha": 0.3, "beta": 0.3}), []),
        (config({"beta": 0.3, "wrap": "ties", "density": 0.5}), []),
        (config({"gamma": 0.3}, 1, "lines_postprocess"), []),
        (config({"alpha": 0.3}), ["parameters.beta"]),
        (config({}, 1, "lines_postprocess"), ["parameters.gamma"]),
        (config({"beta": 0.3, "epsilon": 0.1}), ["parameters.epsilon"]),
        (config({"beta": 0.3, "alpha": True}), ["parameters.alpha"]),
        (config({"beta": [0.1, "x"]}), ["parameters.beta"]),
        (config({"beta": 0.3}, alpha=0.1), ["models[0].parameters.alpha"]),
        (config({"beta": 0.3, "blocks": ["a", "b"]}), ["parameters.blocks"]),
        (config({"beta": 0.3, "wrap": "slerp", "t": 0.5}), ["models"]),
        (config({"beta": 0.3, "wrap": "slerp"}, 1), ["parameters.t"]),
        (config({"gamma": 0.3}, 2, "lines_postprocess"), ["models"]),
    ],
)
def test_each_problem_has_its_place(recipe: MergeConfiguration, keys: list[str]) -> None:
    """A sound recipe has no problem; a fault has one, at the key where it stands."""
    assert [problem.key for problem in check_parameters(recipe)] == keys


def test_a_misspelt_name_hides_what_it_was_meant_for() -> None:
    """`beat` is told with `beta` beside it, and a missing `beta` is not told as well."""
    (problem,) = check_parameters(config({"beat": 0.3}))
    assert problem.about == ("beat", "beta")
    assert problem.key == "parameters.beat"


def test_a_key_misspelt_elsewhere_hides_what_is_missing() -> None:
    """Where names of the recipe are wrong, parameters that lack are not told."""
    assert check_parameters(config({}), names_known=False) == []


@pytest.mark.parametrize("part", ["mlp", "up_proj", "layers.1.", "*"])
def test_a_filter_that_matches(part: str) -> None:
    """A part of any tensor's name matches; so does the star."""
    recipe = config({"beta": [{"filter": part, "value": 0.1}, {"value": 0.3}]})
    assert list(check_filters(recipe, NAMES)) == []


def test_a_filter_that_matches_nothing() -> None:
    """Such a filter is named at its key, with a name that a part could be taken of."""
    recipe = config({"beta": [{"filter": "attention", "value": 0.1}, {"value": 0.3}]})
    (problem,) = check_filters(recipe, NAMES)
    assert problem.key == "parameters.beta"
    assert "'attention' matches no tensor" in problem.text
    assert "lm_head.weight" in problem.text
