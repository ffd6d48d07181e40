"""Many tasks in one encoder: seven merges, each plain, scaled evenly, and with LiNeS.

The question of the paper's Tables 2 and 3 and its figures 14 and 15: encoders that were fine-tuned
on a task each are merged, and the merge is measured on all of these tasks. Coefficients are chosen
on validation texts by ``mergekit_lines.sweep``; test texts are measured once, for what was chosen.
See many_tasks.sh and finetune.py.
"""

from __future__ import annotations

import json
import statistics
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import finetune
import numpy as np
from _base import fingerprint, say
from _model import run
from _stories import (
    PRE_TRAINED,
    TEXTS,
    Accuracies,
    Measure,
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
from finetune import FULL, TINY
from forgetting import BEST, EQUAL, TARGETS, TINY_TARGETS
from tqdm import tqdm

import mergekit_lines
from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.search.bench import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.sweep import Sweep

PLAIN = "plain"
BETAS = (0.05, 0.1, 0.3, 0.6, 1.0, 1.4)
EVEN = (0.15, 0.25, 0.5, 0.8, 1.5)  # uniform coefficients below, among and above LiNeS's means
ALPHAS = (0.0, 0.2, 0.4)  # of the picture over both
MERGES: dict[str, dict[str, Any]] = {
    "task arithmetic": {"wrap": "task_arithmetic"},
    "TIES, mergekit's": {"wrap": "ties", "density": 0.2},
    "TIES, its paper's": {"wrap": "ties", "density": 0.2, "trim": "model"},
    "consensus": {"wrap": "consensus_ta"},
    "DARE": {"wrap": "dare_linear", "density": 0.5, "rescale_by": "p", "seed": 0},
    "CART": {"wrap": "cart", "rank": 0.16},
    "iso_c": {"wrap": "iso_c"},
}
TINY_MERGES = ("task arithmetic", "TIES, mergekit's")
TINY_BETAS = (0.3, 1.0)


class Merged(NamedTuple):
    """A merge of one seed's encoders: what was chosen for each way, and accuracies of all tasks."""

    seed: int
    merge: str
    chosen: dict[str, dict[str, Any]]  # parameters of the recipe, by way
    validation: dict[str, list[float]]  # normalised accuracy of each β, by way
    test: dict[str, Accuracies]  # by way


class Inputs(NamedTuple):
    """Test accuracies of a seed's encoders as they are: each on its own task; the base on all."""

    seed: int
    tuned: Accuracies
    base: Accuracies


def recipe_of(tasks: Sequence[str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": "../base",
        "models": [{"model": f"./{task}"} for task in tasks],
        "parameters": {**parameters, "alpha": "auto", "beta": 0.0},
        "dtype": "float32",
    }


def objective(tasks: Sequence[str]) -> str:
    """Return the mean of the accuracies over the best fine-tuned encoder's, as a sweep takes it."""
    return f"mean({', '.join(f'{task}/tuned.{task}' for task in tasks)})"


def origin_of(
    recipe: Mapping[str, Any],
    tasks: Sequence[str],
    betas: Sequence[float],
    measure: Measure = TEXTS,
) -> str:
    return fingerprint(recipe, betas, made_from(tasks, measure), measure.source, engine())


# --- one seed ------------------------------------------------------------------------------------


def inputs(seed: int, tasks: Sequence[str], measure: Measure = TEXTS) -> Inputs:
    """Return what the base and each fine-tuned model are on test data, as they are."""
    accuracies = as_they_are(tasks, measure)
    return Inputs(seed, {task: accuracies[task][task] for task in tasks}, accuracies[PRE_TRAINED])


def merged(
    seed: int,
    merge: str,
    tasks: Sequence[str],
    betas: Sequence[float],
    threads: int | None,
    measure: Measure = TEXTS,
) -> Merged:
    """Choose β of LiNeS and the uniform coefficient on validation data; measure both on test.

    The uniform one has LiNeS's means, 1, and a few more to choose from.
    """
    recipe = recipe_of(tasks, MERGES[merge])
    name = merge.replace(", ", "-").replace(" ", "-").replace("'", "")
    out = fresh(Path("many-tasks", name), origin_of(recipe, tasks, betas, measure))
    axis = f"beta={','.join(f'{beta:g}' for beta in betas)}"
    even = f"alpha={','.join(f'{value:g}' for value in EVEN)}"
    evenly, swept = (  # in one folder: what both have is measured once
        search(recipe, one, out / "search", threads, measure, objective=objective(tasks))
        for one in (even, axis)
    )
    chosen = choice(swept, evenly)
    validation = {
        way: [point.scores[way] for point in swept.points] for way in (LINES, UNIFORM, UNSCALED)
    }
    test = tested(recipe, chosen, out / "test.json", measure)
    return Merged(seed, merge, chosen, validation, test)


def choice(swept: Sweep, evenly: Sweep) -> dict[str, dict[str, Any]]:
    """Return the parameters of each way that score highest; plain is coefficient 1, as it is.

    Args:
        swept: over LiNeS's β.
        evenly: over uniform coefficients: there β is 0.
    """
    plain = swept.points[0]
    even = max(
        [(plain.scores[UNSCALED], plain.records[UNSCALED])]
        + [(point.scores[UNIFORM], point.records[UNIFORM]) for point in swept.points]
        + [(point.scores[LINES], point.records[LINES]) for point in evenly.points],
        key=lambda pair: pair[0],
    )[1]
    own = swept.best.records
    records = {PLAIN: plain.records[UNSCALED], BEST: even, EQUAL: own[UNIFORM], LINES: own[LINES]}
    return {way: dict(record.recipe["parameters"]) for way, record in records.items()}


# --- all of them ---------------------------------------------------------------------------------


def get_merged(
    merges: Sequence[str],
    tasks: Sequence[str],
    betas: Sequence[float],
    seeds: int,
    threads: int | None,
) -> tuple[list[Inputs], list[Merged]]:
    count = seeds * len(merges)
    say(f"3/4  {count} merges of {len(tasks)} encoders; β of {', '.join(map(str, betas))}")
    measured, made = [], []
    with tqdm(total=count, desc="   merging", leave=False, disable=None) as bar:
        for seed in range(seeds):
            with inside(Path(f"seed-{seed}")):
                measured.append(inputs(seed, tasks))
                for merge in merges:
                    made.append(merged(seed, merge, tasks, betas, threads))
                    bar.update()
    return measured, made


def normalised(accuracies: Accuracies, own: Inputs) -> float:
    """Return the mean over the merged tasks of accuracy over the fine-tuned encoder's."""
    return statistics.fmean(accuracies[task] / value for task, value in own.tuned.items())


def numbers(
    measured: Sequence[Inputs], made: Sequence[Merged], merge: str, way: str
) -> list[float]:
    """Return the normalised accuracy of a merge's way on test texts, seed by seed."""
    of_seed = {each.seed: each for each in made if each.merge == merge}
    return [normalised(of_seed[own.seed].test[way], own) for own in measured]


def show(measured: Sequence[Inputs], made: Sequence[Merged]) -> None:
    say("4/4  what came out: test texts, accuracy over the fine-tuned encoders', percent")
    print("   mean over the merged tasks ± standard error over seeds", flush=True)
    console, seeds = open_console(), len(measured)
    base = over_seeds([normalised(each.base, each) for each in measured])
    raw = over_seeds([statistics.fmean(each.tuned.values()) for each in measured])
    print(
        f"   pre-trained: {base.text}; fine-tuned, each on its own task: 100, accuracy {raw.text}"
    )
    ways = (PLAIN, BEST, EQUAL, LINES)
    table = new_table("", *ways)
    merges = list(dict.fromkeys(each.merge for each in made))
    for merge in merges:
        cells = [over_seeds(numbers(measured, made, merge, way)).text for way in ways]
        table.add_row(merge, *cells)
    print_table(console, table)
    print("\n   LiNeS minus another way, points: mean (95% interval over seeds)", flush=True)
    rivals = (PLAIN, BEST, EQUAL)
    table = new_table("LiNeS minus", *rivals)
    told: dict[str, dict[str, Any]] = {way: {} for way in rivals}
    for merge in merges:
        own = numbers(measured, made, merge, LINES)
        for way in rivals:
            pairs = zip(own, numbers(measured, made, merge, way), strict=True)
            told[way][merge] = over_seeds([one - other for one, other in pairs])
        table.add_row(merge, *(told[way][merge].interval for way in rivals))
    print_table(console, table)
    print("\n   chosen on validation texts, seed by seed", flush=True)
    table = new_table("", "β of LiNeS", "λ of uniform, best")
    for merge in merges:
        chosen = [each.chosen for each in made if each.merge == merge]
        cells = [[each[LINES]["beta"] for each in chosen], [each[BEST]["alpha"] for each in chosen]]
        table.add_row(merge, *(", ".join(f"{value:.4g}" for value in cell) for cell in cells))
    print_table(console, table)
    if seeds > 1:
        count = len(merges) * len(rivals)
        print(f"\n   {count} intervals of 95%: one in twenty misses by chance what it is of.")
        words = {1: "higher in", -1: "lower in", 0: "not told apart in"}
        for way in rivals:
            sentence = f"LiNeS beside {way}, by these intervals: {told_apart(told[way], words)}."
            print("\n" + textwrap.fill(sentence, 88, initial_indent="   ", subsequent_indent="   "))


# --- figures -------------------------------------------------------------------------------------


def draw_betas(made: Sequence[Merged], betas: Sequence[float], path: Path) -> None:
    """Draw validation accuracies over β, a panel for each merge, as the paper's figure 14."""
    panels: dict[str, dict[str, tuple[list[float], list[float] | None]]] = {}
    for merge in dict.fromkeys(each.merge for each in made):
        rows = [each.validation for each in made if each.merge == merge]
        panels[merge] = {}
        for way in (LINES, UNIFORM, UNSCALED):
            over = [over_seeds(values) for values in zip(*(row[way] for row in rows), strict=True)]
            errors = [number.error for number in over] if len(rows) > 1 else None
            panels[merge][way] = ([number.mean for number in over], errors)
    axis = "β: gained from first to last block (accuracies of validation texts)"
    with figures.page(path) as figure:
        figures.sweep_panels(figure, axis, betas, panels, None, {})


def draw_both(
    tasks: Sequence[str], betas: Sequence[float], path: Path, threads: int | None
) -> None:
    """Draw validation accuracies over α and β of task arithmetic, as figure 15; of one seed."""
    recipe = recipe_of(tasks, MERGES["task arithmetic"])
    axes = [f"alpha={','.join(map(str, ALPHAS))}", f"beta={','.join(map(str, betas))}"]
    with inside(Path("seed-0")):
        out = fresh(Path("many-tasks", "both"), origin_of(recipe, tasks, betas))
        swept = search(recipe, axes, out / "search", threads, objective=objective(tasks))
    grids = {
        way: np.reshape([point.scores[way] for point in swept.points], (len(ALPHAS), len(betas)))
        for way in (LINES, UNIFORM)
    }
    chosen = swept.best.settings
    ringed = (chosen["parameters.beta"], chosen["parameters.alpha"])
    with figures.page(path) as figure:
        axes_of = ("β", list(betas), "α", list(ALPHAS))
        figures.sweep_heat(figure, *axes_of, grids, ringed, "mean normalised accuracy, validation")


def main() -> None:
    started = time.monotonic()
    options = finetune.arguments(__doc__).parse_args()
    size = finetune.begin(options, finetune.NAME, (FULL, TINY))
    tiny = size is TINY
    tasks = TINY_TARGETS if tiny else TARGETS
    betas = TINY_BETAS if tiny else BETAS
    mergekit_lines.register()
    finetune.get_tuned(size, options.seeds, tasks)
    merges = TINY_MERGES if tiny else tuple(MERGES)
    measured, made = get_merged(merges, tasks, betas, options.seeds, options.num_threads)
    everything = {
        "inputs": [each._asdict() for each in measured],
        "merges": [each._asdict() for each in made],
    }
    Path("many-tasks.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    show(measured, made)
    lines, both = Path("many-tasks-betas.png"), Path("many-tasks-both.png")
    draw_betas(made, betas, lines)
    draw_both(tasks, betas, both, options.num_threads)
    print(f"\n   figures: {lines.resolve()}, {both.resolve()}")
    print(f"   every number: {Path('many-tasks.json').resolve()}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
