"""Folders as a search leaves them, without a model: what the page of a search is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lines.evaluate import Metric
from mergekit_lines.search.store import RESULTS, SEARCH, Record, Store, write_recipe

HOSTILE = "</script><img src=x onerror=alert(1)>"


def recipe(**parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": "models/base",
        "models": [
            {"model": "models/chat", "parameters": {"weight": 1.0}},
            {"model": f"models/{HOSTILE}", "parameters": {"weight": 0.5}},
        ],
        "parameters": {"wrap": "task_arithmetic", **parameters},
        "dtype": "float32",
    }


def model(name: str) -> dict[str, Any]:
    return {"model": name}


def record(made: Mapping[str, Any], mean: float | None, **values: float) -> Record:
    metrics = {name: Metric(value, name != "loss", origin="x") for name, value in values.items()}
    return Record("validation", made, mean, metrics, 0.5)


def sweep_folder(folder: Path, points: int = 10, metrics: int = 2) -> list[dict[str, Any]]:
    """Write a sweep of beta in ``folder``, the best of which is the third; return its recipes."""
    store = Store(folder, {"the recipe": recipe(alpha=0.2, beta=0.4)})
    names = ("math", "chat", "code")[:metrics]

    def add(made: Mapping[str, Any], mean: float | None, *values: float) -> None:
        store.add(record(made, mean, **dict(zip(names, values, strict=False))))

    for name, value in (("models/base", 0.2), ("models/chat", 0.6), (f"models/{HOSTILE}", 0.5)):
        add(model(name), None, value, 0.9 - value, 0.3)
    recipes = []
    for number in range(points):
        beta = round(0.1 * (number + 1), 6)
        made, mean = recipe(alpha=0.2, beta=beta), round(0.2 + beta / 2, 6)
        add(made, mean, 0.3 + beta / 3, 0.9 - beta**2 / 2, 0.4 + 0.1 * (number % 3))
        add(recipe(alpha=1.0, beta=0.0), 1.0, 0.35, 0.35, 0.4)
        add(recipe(alpha=mean, beta=0.0), mean, 0.28 + beta / 3, 0.85 - beta**2 / 2, 0.4)
        recipes.append(made)
    write_recipe(folder / "best.yml", recipes[min(2, points - 1)], "# Chosen\n")
    return recipes


def write_lines(folder: Path, *lines: Mapping[str, Any] | str) -> None:
    """Write what somebody else may have written: results that no search of ours does."""
    folder.mkdir(exist_ok=True)
    (folder / SEARCH).write_text(json.dumps({"format": 1, "the recipe": recipe()}))
    texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
    (folder / RESULTS).write_text("".join(texts))
