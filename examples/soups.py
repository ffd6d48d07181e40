"""Soups: eight fine-tunings of one task, averaged, with LiNeS and without.

The question of the paper's Table 4. Eight encoders learn the 20 newsgroups at different rates and
lengths. Their mean (uniform soup), and the mean of those that a greedy choice keeps, are measured
as they are, with LiNeS (α = 1, β chosen), and scaled evenly. See soups.sh and finetune.py.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _accuracy
import finetune
from _base import fingerprint, say
from _model import run
from _stories import (
    SPEC,
    TEXTS,
    as_they_are,
    engine,
    fresh,
    inside,
    made_from,
    over_seeds,
    search,
    tested,
    told_apart,
)
from finetune import Size
from tqdm import tqdm

import mergekit_lines
from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.search.bench import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.sweep import Sweep

NAME = "soups"
TASK, TINY_TASK = "forums", "animals"
FULL = Size((TASK,), 200, 400, 480, 40, 16, 3e-4)
TINY = Size((TINY_TASK,), 24, 24, 48, 20, 8, 3e-3, small=True)
RATES, LENGTHS = (1e-4, 2e-4, 3e-4, 5e-4), (24, 40)
TINY_RATES, TINY_LENGTHS = (1e-3, 3e-3), (10, 20)
BETAS, TINY_BETAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 0.5)
PLAIN, BEST, EQUAL = "plain", "scaled evenly, best", "scaled evenly, equal mean"
WAYS = (PLAIN, BEST, EQUAL, LINES)
SOUPS = ("uniform", "greedy")
MEAN_RUN, BEST_RUN = "runs, mean", "best run by validation"


class Cooked(NamedTuple):
    """One seed's soups: what was chosen for each way, and accuracies."""

    seed: int
    kept: tuple[str, ...]  # by the greedy choice
    chosen: dict[str, dict[str, float]]  # soup and way → mean coefficient
    validation: dict[str, dict[str, list[float]]]  # soup and way → accuracy at each β
    test: dict[str, float]  # soup and way, and of the runs


def runs_of(size: Size) -> dict[str, Size]:
    """Return the settings of each run, by its name."""
    rates, lengths = (TINY_RATES, TINY_LENGTHS) if size is TINY else (RATES, LENGTHS)
    pairs = itertools.product(rates, lengths)
    return {
        f"run-{number}": size._replace(learning_rate=rate, steps=steps)
        for number, (rate, steps) in enumerate(pairs, 1)
    }


def recipe_of(runs: Sequence[str]) -> dict[str, Any]:
    """Return the mean of some runs, edited."""
    return {
        "merge_method": "lines",
        "base_model": "../base",
        "models": [
            {"model": f"./{name}", "parameters": {"weight": 1 / len(runs)}} for name in runs
        ],
        "parameters": {"wrap": "task_arithmetic", "alpha": 1.0, "beta": 0.0},
        "dtype": "float32",
    }


def get_runs(size: Size, seeds: int) -> None:
    say(f"1/4  the pre-trained encoder{'' if size.small else f': {finetune.ENCODER}'}")
    finetune.get_base(size)
    runs, (task,) = runs_of(size), size.tasks
    say(
        f"2/4  {len(runs)} runs of {task} for each of {seeds} seeds, at different rates and lengths"
    )
    for seed in range(seeds):
        texts = finetune.get_texts(size, seed)
        for name, settings in runs.items():
            note = finetune.tune(settings, seed, task, texts, name)
            reused = " (already there)" if "reused" in note else ""
            print(
                f"   seed {seed}, {name}: rate {settings.learning_rate:g}, {settings.steps} steps, "
                f"loss {note['losses'][-1]:.2f}{reused}",
                flush=True,
            )


# --- one seed ------------------------------------------------------------------------------------


def cooked(size: Size, seed: int, betas: Sequence[float], threads: int | None) -> Cooked:
    """Choose among the runs, then a coefficient for each soup, on validation texts."""
    runs, (task,) = list(runs_of(size)), size.tasks
    code = Path(_accuracy.__file__).read_text("utf-8")
    out = fresh(Path(NAME), fingerprint(betas, made_from(runs), code, engine()))
    options = {"objective": task, "quiet": True, "num_threads": threads}
    greedy = mergekit_lines.greedy(recipe_of(runs), [SPEC], out / "choice", **options)
    ranked = [Path(name).name for name in greedy.scores]
    kept = tuple(Path(name).name for name in greedy.chosen)
    inputs = as_they_are(runs)
    test = {MEAN_RUN: statistics.fmean(inputs[name][task] for name in runs)}
    test[BEST_RUN] = inputs[ranked[0]][task]
    chosen, validation = {}, {}
    for soup, names in zip(SOUPS, (runs, sorted(kept)), strict=True):
        recipe = recipe_of(names)
        axis = f"beta={','.join(f'{beta:g}' for beta in betas)}"
        swept = search(recipe, axis, out / soup, threads, objective=task)
        validation[soup] = {
            way: [point.scores[way] for point in swept.points] for way in (LINES, UNIFORM, UNSCALED)
        }
        parameters = choice(swept)
        chosen[soup] = {way: mean for way, (mean, _) in parameters.items()}
        settings = {way: words for way, (_, words) in parameters.items()}
        accuracies = tested(recipe, settings, out / soup / "test.json", TEXTS)
        test |= {named(soup, way): accuracies[way][task] for way in WAYS}
    return Cooked(seed, kept, chosen, validation, test)


def named(soup: str, way: str) -> str:
    return f"{soup} soup, {way}"


def choice(swept: Sweep) -> dict[str, tuple[float, dict[str, Any]]]:
    """Return mean coefficient and parameters of each way; of equals the first."""
    even, _ = swept.best_uniform
    own = swept.best.records
    records = {
        PLAIN: swept.best.records[UNSCALED],
        BEST: even,
        EQUAL: own[UNIFORM],
        LINES: own[LINES],
    }
    return {
        way: (round(record.mean, 6), dict(record.recipe["parameters"]))
        for way, record in records.items()
    }


def get_cooked(size: Size, betas: Sequence[float], seeds: int, threads: int | None) -> list[Cooked]:
    say(f"3/4  uniform and greedy soup; β of {', '.join(f'{beta:g}' for beta in betas)}")
    rows = []
    for seed in tqdm(range(seeds), desc="   soups", leave=False, disable=None):
        with inside(Path(f"seed-{seed}")):
            rows.append(cooked(size, seed, betas, threads))
    return rows


# --- what came out -------------------------------------------------------------------------------


def show(rows: Sequence[Cooked]) -> None:
    say("4/4  what came out: accuracy on test texts, percent; mean ± standard error over seeds")
    console = open_console()
    table = new_table("", "accuracy", "mean λ")
    for name in (MEAN_RUN, BEST_RUN):
        table.add_row(name, over_seeds([row.test[name] for row in rows]).text, "")
    for soup in SOUPS:
        for way in WAYS:
            cell = over_seeds([row.test[named(soup, way)] for row in rows]).text
            mean = statistics.fmean(row.chosen[soup][way] for row in rows)
            table.add_row(named(soup, way), cell, f"{mean:.2f}")
    print_table(console, table)
    kept = statistics.fmean(len(row.kept) for row in rows)
    print(f"\n   the greedy soup kept {kept:.1f} runs on average")
    print("\n   LiNeS minus another way, points: mean (95% interval over seeds)", flush=True)
    table = new_table("LiNeS minus", *WAYS[:-1], BEST_RUN)
    sentences = []
    for soup in SOUPS:
        own = [row.test[named(soup, LINES)] for row in rows]
        rivals = {way: [row.test[named(soup, way)] for row in rows] for way in WAYS[:-1]}
        rivals[BEST_RUN] = [row.test[BEST_RUN] for row in rows]
        told = {
            way: over_seeds([one - two for one, two in zip(own, other, strict=True)])
            for way, other in rivals.items()
        }
        table.add_row(f"{soup} soup", *(each.interval for each in told.values()))
        if len(rows) > 1:
            words = {1: "higher than", -1: "lower than", 0: "not told apart from"}
            sentences.append(f"   {soup} soup with LiNeS: {told_apart(told, words)}.")
    print_table(console, table)
    if sentences:
        print("\n   By these intervals:", *sentences, sep="\n")


def draw(rows: Sequence[Cooked], betas: Sequence[float], path: Path) -> None:
    """Draw validation accuracy over β, a panel for each soup."""
    panels: dict[str, dict[str, tuple[list[float], list[float] | None]]] = {}
    for soup in SOUPS:
        panels[f"{soup} soup, accuracy"] = {}
        for way in (LINES, UNIFORM, UNSCALED):
            columns = zip(*(row.validation[soup][way] for row in rows), strict=True)
            numbers = [over_seeds(column) for column in columns]
            errors = [number.error for number in numbers] if len(rows) > 1 else None
            line = ([number.mean for number in numbers], errors)
            panels[f"{soup} soup, accuracy"][way] = line
    with figures.page(path) as figure:
        figures.sweep_panels(figure, "β: gained from first to last block", betas, panels, None, {})


def main() -> None:
    started = time.monotonic()
    options = finetune.arguments(__doc__).parse_args()
    size = finetune.begin(options, NAME, (FULL, TINY))
    betas = TINY_BETAS if size is TINY else BETAS
    mergekit_lines.register()
    get_runs(size, options.seeds)
    rows = get_cooked(size, betas, options.seeds, options.num_threads)
    file, figure = Path("soups.json"), Path("soups.png")
    file.write_text(json.dumps([row._asdict() for row in rows], indent=1), encoding="utf-8")
    show(rows)
    draw(rows, betas, figure)
    print(f"\n   the figure: {figure.resolve()}")
    print(f"   every number: {file.resolve()}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
