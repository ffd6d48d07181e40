"""Builders of recipes: the sound one, and changes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cases.case import ALL_LAYERS, DROP, Build, Models, Recipe


def entry(model: Path | str, **parameters: Any) -> dict[str, Any]:
    """Return one item of ``models:``."""
    return {"model": str(model), "parameters": parameters} if parameters else {"model": str(model)}


def recipe(models: Models, /, **changes: Any) -> Recipe:
    """Return a recipe of ``merge_method: lines`` that merges; a key set to DROP is left out."""
    sound = {
        "merge_method": "lines",
        "base_model": str(models.base),
        "models": [entry(models.a), entry(models.b)],
        "parameters": {"alpha": 0.3, "beta": 0.3},
        "dtype": "float32",
    }
    return {key: value for key, value in {**sound, **changes}.items() if value is not DROP}


def postprocess_recipe(models: Models, /, **changes: Any) -> Recipe:
    """Return a recipe of ``merge_method: lines_postprocess`` that merges."""
    sound = {
        "merge_method": "lines_postprocess",
        "models": [entry(models.a)],
        "parameters": {"gamma": 0.3},
    }
    return recipe(models, **{**sound, **changes})


def top(**changes: Any) -> Build:
    """Build the sound recipe with other top-level keys."""
    return lambda folder, models: recipe(models, **changes)


def words(**changes: Any) -> Build:
    """Build the sound recipe with other parameters; one set to DROP is left out."""

    def build(folder: Path, models: Models) -> Recipe:
        values = {"alpha": 0.3, "beta": 0.3, **changes}
        return recipe(models, parameters={k: v for k, v in values.items() if v is not DROP})

    return build


def post(**parameters: Any) -> Build:
    """Build a ``lines_postprocess`` recipe with exactly these parameters."""
    return lambda folder, models: postprocess_recipe(models, parameters=parameters)


def under_a(**parameters: Any) -> Build:
    """Build the sound recipe with parameters under its first model."""
    return lambda folder, models: recipe(
        models, models=[entry(models.a, **parameters), entry(models.b)]
    )


def listing(*names: str, **changes: Any) -> Build:
    """Build the sound recipe with these of the models under ``models:``."""
    return lambda folder, models: recipe(
        models, models=[entry(getattr(models, name)) for name in names], **changes
    )


def slices(**ranges: tuple[int, int]) -> Build:
    """Build a recipe of one slice whose sources have these layer ranges."""

    def build(folder: Path, models: Models) -> Recipe:
        sources = [
            {"model": str(getattr(models, name)), "layer_range": list(layers)}
            for name, layers in ranges.items()
        ]
        return recipe(models, models=DROP, slices=[{"sources": sources}])

    return build


def beside_source(**keys: Any) -> Build:
    """Build a recipe of slices with keys beside ``model`` and ``layer_range``."""

    def build(folder: Path, models: Models) -> Recipe:
        bad = slices(base=ALL_LAYERS, a=ALL_LAYERS)(folder, models)
        bad["slices"][0]["sources"][1] |= keys
        return bad

    return build


def beside_model(**keys: Any) -> Build:
    """Build the sound recipe with keys beside ``model`` in the first item of ``models:``."""
    return lambda folder, models: recipe(
        models, models=[{"model": str(models.a), **keys}, entry(models.b)]
    )
