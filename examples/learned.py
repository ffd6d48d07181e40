"""Learnt coefficients: five merged encoders, with LiNeS's line and with what gradients find.

The question of the paper's figure 5. ``mergekit_lines.learn`` seeks a coefficient for each block of
the sum of five task vectors on validation texts, by the entropy of predictions (as AdaMerging does)
and by the loss of labels (as aTLAS). Beside it stand LiNeS, the best uniform coefficient and the
plain sum, as many_tasks.py chooses them on the same texts. See learned.sh and finetune.py.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _accuracy
import _nearest
import finetune
import numpy as np
import yaml
from _base import fingerprint, say
from _model import run
from _stories import (
    TEXTS,
    Accuracies,
    OverSeeds,
    engine,
    fresh,
    inside,
    made_from,
    over_seeds,
    tested,
    told_apart,
)
from finetune import FULL, TINY
from forgetting import BEST, EQUAL, TARGETS, TINY_TARGETS
from many_tasks import (
    BETAS,
    MERGES,
    PLAIN,
    TINY_BETAS,
    Inputs,
    inputs,
    merged,
    normalised,
    recipe_of,
)
from tqdm import tqdm

import mergekit_lines
from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.figures.parts import looks_of
from mergekit_lines.search.bench import LINES

MERGE = "task arithmetic"
BY = {"entropy": "learnt, entropy", "loss": "learnt, loss"}  # by objective
# Without depth, and with what is outside the blocks as it was learnt.
FLAT = {way: f"level, mean of {way}" for way in BY.values()}
WAYS = (PLAIN, BEST, EQUAL, LINES, *BY.values(), *FLAT.values())
DRAWN = (*BY.values(), LINES, BEST)
HELD_OUT = 0.1  # measured by learn alone; test texts are the measure here


class Settings(NamedTuple):
    """How long is learnt."""

    steps: int
    batch_size: int
    learning_rate: float


LONG, SHORT = Settings(20, 20, 0.05), Settings(4, 8, 0.05)


class Curve(NamedTuple):
    """Coefficients of a way: of each block, and outside."""

    blocks: list[float]
    outside: float

    @property
    def mean(self) -> float:
        """The mean over the blocks."""
        return statistics.fmean(self.blocks)

    @property
    def slope(self) -> float:
        """What the nearest straight line gains from the first block to the last: its β."""
        slope, _ = np.polyfit(np.linspace(0, 1, len(self.blocks)), self.blocks, 1)
        return round(float(slope), 9) + 0.0  # of a level line no -0


class Compared(NamedTuple):
    """One seed's merge: coefficients and test accuracies of each way, and what learn wrote."""

    own: Inputs
    curves: dict[str, Curve]
    test: dict[str, Accuracies]
    learnt: dict[str, Any]  # by objective


# --- one seed ------------------------------------------------------------------------------------


def write_texts(tasks: Sequence[str], path: Path) -> None:
    """Write the validation texts of the merged tasks as ``learn`` reads them."""
    splits = json.loads((_accuracy.FOLDER / _accuracy.TEXTS).read_text(encoding="utf-8"))
    rows = [
        json.dumps({"text": text, "label": label, "task": task})
        for task in tasks
        for text, label in splits[task]["validation"]
    ]
    path.write_text("\n".join(rows), encoding="utf-8")


def learnt(
    objective: str, tasks: Sequence[str], seed: int, how: Settings, threads: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Learn by an objective, or go on with what is there.

    It begins where no coefficient hangs on the depth: at 1/N, or the best uniform coefficient.

    Returns:
        What ``learn`` wrote: its report, and the parameters of its recipe.
    """
    recipe = recipe_of(tasks, MERGES[MERGE])
    code = [TEXTS.source, Path(_nearest.__file__).read_text("utf-8")]
    origin = fingerprint(recipe, how, HELD_OUT, made_from(tasks), code, engine())
    folder = fresh(Path("learned", objective), origin)
    texts, out = folder / "texts.jsonl", folder / "learnt"
    report = out / "learned.json"
    if not report.exists():
        write_texts(tasks, texts)
        mergekit_lines.learn(
            recipe,
            texts,
            out,
            objective=objective,
            logits="python:_nearest:logits",
            held_out=HELD_OUT,
            seed=seed,
            quiet=True,
            num_threads=threads,
            **how._asdict(),
        )
    chosen = yaml.safe_load((out / "learned.yml").read_text(encoding="utf-8"))
    return json.loads(report.read_text(encoding="utf-8")), chosen["parameters"]


def flat(curve: Curve) -> dict[str, Any]:
    """Return the parameters of one coefficient for all blocks; what is outside keeps its own."""
    mean, outside = (round(value, 6) for value in (curve.mean, curve.outside))
    return {**MERGES[MERGE], "alpha": mean, "beta": 0.0, "outside": outside}


def compared(
    seed: int, tasks: Sequence[str], betas: Sequence[float], how: Settings, threads: int | None
) -> Compared:
    """Choose and learn on validation texts; measure on test texts."""
    own, chosen = inputs(seed, tasks), merged(seed, MERGE, tasks, betas, threads)
    reports, parameters, curves = {}, {}, {}
    for objective, way in BY.items():
        reports[objective], parameters[way] = learnt(objective, tasks, seed, how, threads)
        curves[way] = Curve(**reports[objective]["learned"]["coefficients"])
        parameters[FLAT[way]] = flat(curves[way])
    count = len(curves[BY["loss"]].blocks)
    even = {way: words["alpha"] for way, words in chosen.chosen.items() if way != LINES}
    curves |= {way: Curve([mean] * count, mean) for way, mean in even.items()}
    for way, level in FLAT.items():
        curves[level] = Curve([curves[way].mean] * count, curves[way].outside)
    # Its α is automatic: of task arithmetic, the mean less half of what is gained.
    beta = chosen.chosen[LINES]["beta"]
    first = even[EQUAL] - beta / 2
    curves[LINES] = Curve([first + beta * x for x in np.linspace(0, 1, count).tolist()], first)
    recipe = recipe_of(tasks, MERGES[MERGE])
    origin = fingerprint(made_from(tasks), TEXTS.source, engine())
    file = fresh(Path("learned", "measured"), origin) / "test.json"
    test = chosen.test | tested(recipe, parameters, file, TEXTS)
    return Compared(own, curves, test, reports)


def get_compared(
    tasks: Sequence[str],
    betas: Sequence[float],
    how: Settings,
    seeds: int,
    threads: int | None,
) -> list[Compared]:
    say(f"3/4  {how.steps} steps of {how.batch_size} texts for each objective, {seeds} seeds")
    rows = []
    for seed in tqdm(range(seeds), desc="   learning", leave=False, disable=None):
        with inside(Path(f"seed-{seed}")):
            rows.append(compared(seed, tasks, betas, how, threads))
    return rows


# --- what came out -------------------------------------------------------------------------------


def accuracies(rows: Sequence[Compared], way: str) -> list[float]:
    """Return the mean normalised accuracy of a way on test texts, seed by seed."""
    return [normalised(row.test[way], row.own) for row in rows]


def minus(rows: Sequence[Compared], way: str, other: str) -> OverSeeds:
    pairs = zip(accuracies(rows, way), accuracies(rows, other), strict=True)
    return over_seeds([one - two for one, two in pairs])


def plain_number(number: OverSeeds) -> str:
    """Return mean and standard error of coefficients."""
    return f"{number.mean:.2f}" + ("" if number.error != number.error else f" ± {number.error:.2f}")


def show(rows: Sequence[Compared]) -> None:
    say("4/4  what came out: test texts, accuracy over the fine-tuned encoders', percent")
    print("   mean over the merged tasks ± standard error over seeds", flush=True)
    console = open_console()
    table = new_table("", "merged tasks", "mean λ", "outside", "nearest line's β")
    for way in WAYS:
        numbers = [over_seeds(accuracies(rows, way)).text]
        curves = [row.curves[way] for row in rows]
        for number in ("mean", "outside", "slope"):
            values = [getattr(curve, number) for curve in curves]
            numbers.append(plain_number(over_seeds(values)))
        table.add_row(way, *numbers)
    print_table(console, table)
    print("\n   one way minus another, points: mean (95% interval over seeds)", flush=True)
    table = new_table("minus", *BY.values(), LINES)
    told: dict[str, dict[str, OverSeeds]] = {way: {} for way in (*BY.values(), LINES)}
    for rival in (PLAIN, BEST, LINES, *FLAT.values(), EQUAL):
        cells = []
        for way, of_way in told.items():
            counts = rival != way and (rival not in FLAT.values() or rival == FLAT.get(way))
            if counts:
                of_way[rival] = minus(rows, way, rival)
            cells.append(of_way[rival].interval if counts else "")
        table.add_row(rival, *cells)
    print_table(console, table)
    for objective in BY:
        values = [row.learnt[objective] for row in rows]
        texts = [
            f"{statistics.fmean(each[at]['training'][objective] for each in values):.3f} {name}"
            for at, name in (("uniform", "at the best uniform coefficient"), ("learned", "learnt"))
        ]
        print(f"\n   {objective} on the texts that were learnt from: {', '.join(texts)}")
    if len(rows) > 1:
        words = {1: "higher than", -1: "lower than", 0: "not told apart from"}
        print("\n   By these intervals:")
        for way, of_way in told.items():
            print(f"   {way} is {told_apart(of_way, words)}.")
        for way in BY.values():
            sign = over_seeds([row.curves[way].slope for row in rows]).sign
            text = {1: "rises with depth", -1: "falls with depth", 0: "may rise or fall"}[sign]
            print(f"   {way}: the nearest straight line {text}.")


def draw(rows: Sequence[Compared], path: Path) -> None:
    """Draw coefficients over depth, as the paper's figure 5: means over seeds, and thin each."""
    lines = {}
    for way in DRAWN:
        columns = zip(*(row.curves[way].blocks for row in rows), strict=True)
        outside = statistics.fmean(row.curves[way].outside for row in rows)
        lines[way] = ([statistics.fmean(column) for column in columns], outside)
    with figures.page(path) as figure:
        figures.depth_lines(figure, lines, len(BY))
        (axes,) = figure.axes
        for way, look in looks_of(lines).items():
            for row in rows if len(rows) > 1 else ():
                blocks = row.curves[way].blocks
                places = range(1, len(blocks) + 1)
                axes.plot(places, blocks, color=look["color"], linewidth=0.7, alpha=0.35)


def main() -> None:
    started = time.monotonic()
    options = finetune.arguments(__doc__).parse_args()
    size = finetune.begin(options, finetune.NAME, (FULL, TINY))
    tiny = size is TINY
    tasks, betas = (TINY_TARGETS, TINY_BETAS) if tiny else (TARGETS, BETAS)
    mergekit_lines.register()
    finetune.get_tuned(size, options.seeds, tasks)
    how = SHORT if tiny else LONG
    rows = get_compared(tasks, betas, how, options.seeds, options.num_threads)
    file, figure = Path("learned.json"), Path("learned.png")
    every = [
        row._asdict()
        | {"own": row.own._asdict()}
        | {"curves": {way: curve._asdict() for way, curve in row.curves.items()}}
        for row in rows
    ]
    file.write_text(json.dumps(every, indent=1), encoding="utf-8")
    show(rows)
    draw(rows, figure)
    print(f"\n   the figure: {figure.resolve()}")
    print(f"   every number: {file.resolve()}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
