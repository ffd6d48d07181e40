"""What the encoder's stories share: searches that go on, test data, numbers over seeds.

A story chooses by ``mergekit_lines.sweep`` on validation texts. What was chosen is set in a
``LiveModel`` and measured on test texts, once.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import _accuracy
from _base import NOTE, finished

import mergekit_lines
from mergekit_lines.search.sweep import Sweep

SPEC = "python:_accuracy:tasks"
# Of Student's t: how many standard errors a 95% interval reaches, by degrees of freedom.
REACH = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Accuracies = dict[str, float]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder for a while: recipes' paths and the evaluator's texts lie there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def fresh(folder: Path, made_from: str) -> Path:
    """Return a folder whose results are of the same things; what is there of others is deleted."""
    if not finished(folder, made_from):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / NOTE).write_text(json.dumps({"made_from": made_from}), encoding="utf-8")
    return folder


def search(
    recipe: Mapping[str, Any], axis: str, out: Path, threads: int | None, **goal: Any
) -> Sweep:
    """Measure a recipe along an axis on validation texts, or go on with that."""
    return mergekit_lines.sweep(recipe, axis, [SPEC], out, quiet=True, num_threads=threads, **goal)


def tested(
    recipe: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any] | str], file: Path
) -> dict[str, Accuracies]:
    """Return test accuracies of each task for what was chosen; what is in the file already is kept.

    Args:
        recipe: in which the settings are made.
        settings: by what they are called: words of the recipe, or an input's name.
        file: of JSON; it gets every result as soon as it is there.
    """
    kept: dict[str, Accuracies] = {}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
    keys = {name: json.dumps(words, sort_keys=True) for name, words in settings.items()}
    missing = {keys[name]: words for name, words in settings.items() if keys[name] not in kept}
    if missing:
        with mergekit_lines.LiveModel(recipe, quiet=True) as live:
            for key, words in missing.items():
                live.load(words) if isinstance(words, str) else live.set(words)
                right = _accuracy.tasks(live.model, live.tokenizer, "test")
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
    reach = error * REACH.get(len(values) - 1, 1.96)
    return OverSeeds(mean, error, mean - reach, mean + reach)


def verdict(differences: Mapping[str, OverSeeds], what: str, seeds: int) -> list[str]:
    """Say in sentences what the intervals of LiNeS minus each other way show."""
    if seeds < 2:
        return [f"One seed has no interval: of {what} nothing is shown."]
    words = {1: "higher than", -1: "lower than", 0: "not to be told from"}
    groups = {
        word: [other for other, each in differences.items() if each.sign == sign]
        for sign, word in words.items()
    }
    told = [f"{word} that of {' / '.join(ways)}" for word, ways in groups.items() if ways]
    return [f"By 95% intervals over {seeds} seeds, LiNeS's {what} is {'; '.join(told)}."]
