"""What the stories of fine-tuned models share: searches that go on, test data, numbers over seeds.

A story chooses by ``mergekit_lines.sweep`` on validation data. What was chosen is set in a
``LiveModel`` and measured on test data, once.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import _accuracy
from _base import NOTE, fingerprint, finished
from scipy.special import stdtrit

import mergekit_lines
from mergekit_lines.report.file import versions
from mergekit_lines.search.sweep import Sweep

SPEC = "python:_accuracy:tasks"

PRE_TRAINED = "pre-trained"
Accuracies = dict[str, float]


class Measure(NamedTuple):
    """How a story's accuracies are measured."""

    spec: str  # of the evaluator, as a sweep takes it
    tasks: Callable[[Any, Any, str], dict[str, list[float]]]  # the function that it names
    code: Path  # the file of that function
    data: str  # the folder of a seed's data

    @property
    def source(self) -> str:
        """Return the code of the function's file: what was measured by another is not reused."""
        return self.code.read_text(encoding="utf-8")


TEXTS = Measure(SPEC, _accuracy.tasks, Path(_accuracy.__file__), "texts")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder for a while: recipes' paths and the evaluator's texts lie there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def fresh(folder: Path, origin: str) -> Path:
    """Return a folder whose results are of the same things; what is there of others is deleted."""
    if not finished(folder, origin):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / NOTE).write_text(json.dumps({"made_from": origin}), encoding="utf-8")
    return folder


@functools.cache
def engine() -> str:
    """Return a fingerprint of what merges: results of other code or packages are not reused."""
    code = sorted(Path(mergekit_lines.__file__).parent.rglob("*.py"))
    return fingerprint([path.read_text(encoding="utf-8") for path in code], versions())


def made_from(folders: Sequence[str], measure: Measure = TEXTS) -> list[str]:
    """Return what data and models of this seed were made from."""
    paths = [Path(folder, NOTE) for folder in (measure.data, "../base", *folders)]
    return [json.loads(path.read_text(encoding="utf-8"))["made_from"] for path in paths]


def as_they_are(tasks: Sequence[str], measure: Measure = TEXTS) -> dict[str, Accuracies]:
    """Return test accuracies of a seed's models by the task of each, and of the pre-trained one.

    They are measured once for all stories.
    """
    recipe = {
        "merge_method": "lines",
        "base_model": "../base",
        "models": [{"model": f"./{task}"} for task in tasks],
        "parameters": {"alpha": 0, "beta": 0},
        "dtype": "float32",
    }
    origin = fingerprint(made_from(tasks, measure), measure.source, engine())
    settings = {PRE_TRAINED: "../base"} | {task: f"./{task}" for task in tasks}
    return tested(recipe, settings, fresh(Path("inputs"), origin) / "test.json", measure)


def search(
    recipe: Mapping[str, Any],
    axes: Any,
    out: Path,
    threads: int | None,
    measure: Measure = TEXTS,
    **goal: Any,
) -> Sweep:
    """Measure a recipe along an axis or two on validation data, or go on with that."""
    options = {"quiet": True, "num_threads": threads}
    return mergekit_lines.sweep(recipe, axes, [measure.spec], out, **options, **goal)


def tested(
    recipe: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any] | str],
    file: Path,
    measure: Measure,
) -> dict[str, Accuracies]:
    """Return test accuracies of each task for what was chosen; the file keeps what is there.

    Args:
        recipe: whose models these are.
        settings: by what they are called: the recipe's parameters, or an input's name.
        file: of JSON; it gets every result as soon as it is there.
        measure: how accuracies are measured.
    """
    kept: dict[str, Accuracies] = {}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
    keys = {name: json.dumps(words, sort_keys=True) for name, words in settings.items()}
    missing = {keys[name]: words for name, words in settings.items() if keys[name] not in kept}
    if missing:
        with mergekit_lines.LiveModel(recipe, quiet=True) as live:
            for key, words in missing.items():
                if isinstance(words, str):
                    live.load(words)
                else:
                    live.set_recipe({**recipe, "parameters": words})
                right = measure.tasks(live.model, live.tokenizer, "test")
                kept[key] = {task: statistics.fmean(each) for task, each in right.items()}
                file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return {name: kept[key] for name, key in keys.items()}


# --- over seeds ----------------------------------------------------------------------------------


class OverSeeds(NamedTuple):
    """A mean over seeds, its standard error, and its 95% interval; one seed has neither."""

    mean: float
    error: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """Return mean and standard error as a table has them, in percent."""
        return f"{100 * self.mean:.1f}" + (
            "" if math.isnan(self.error) else f" ± {100 * self.error:.1f}"
        )

    @property
    def interval(self) -> str:
        """Return mean and interval, in percentage points."""
        ends = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"{100 * self.mean:+.1f}" + ("" if math.isnan(self.error) else f" ({ends})")

    @property
    def sign(self) -> int:
        """Return on which side of zero the interval lies: 1, -1, or 0 where it holds zero."""
        return (self.low > 0) - (self.high < 0)


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Return what a number of each seed says of the mean (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return OverSeeds(mean, math.nan, math.nan, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = error * reach_of(len(values) - 1)
    return OverSeeds(mean, error, mean - reach, mean + reach)


def reach_of(freedom: int) -> float:
    """Return how many standard errors a 95% interval reaches, as printed tables of t have it."""
    return round(float(stdtrit(freedom, 0.975)), 3)


def told_apart(differences: Mapping[str, OverSeeds], words: Mapping[int, str]) -> str:
    """Return names by the side of zero on which their intervals lie.

    Args:
        differences: by name.
        words: what is said of those above zero (1), below it (-1), and of those that hold it (0).
    """
    groups = {
        word: [name for name, each in differences.items() if each.sign == sign]
        for sign, word in words.items()
    }
    return "; ".join(f"{word} {' / '.join(names)}" for word, names in groups.items() if names)
