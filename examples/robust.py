"""Robust fine-tuning: an encoder fine-tuned on one source, under shift, with WiSE-FT and LiNeS.

The question of the paper's figure 3. The encoder learns the sentiment of tweets to airlines. It is
measured on unseen ones (in distribution), and on tweets on football, a festival and Apple, which
it never saw (shifted). WiSE-FT goes from the pre-trained to the fine-tuned encoder, θ₀ + c·τ; with
LiNeS τ is scaled first, from 0.5 at the first block to 1 at the last. See robust.sh, finetune.py.
"""

from __future__ import annotations

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
    PRE_TRAINED,
    TEXTS,
    Accuracies,
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
from mergekit_lines.search.pareto import pareto_set

NAME = "robust"
SOURCE, TINY_SOURCE = "airlines", "animals"
FULL = Size(("airlines", "football", "festival", "apple"), 40, 120, 480, 40, 16, 3e-4)
TINY = Size(("animals", "zoo"), 12, 24, 48, 20, 8, 3e-3, small=True)
SHARES, TINY_SHARES = (0.25, 0.5, 0.75, 1.0), (0.5, 1.0)
FINE_TUNED, WISE, BOTH = "fine-tuned", "WiSE-FT", "WiSE-FT + LiNeS"
EVEN = "WiSE-FT × 0.75"  # LiNeS's mean, without depth
WAYS = {BOTH: LINES, WISE: UNSCALED, EVEN: UNIFORM}
WEIGHT = "models.0.parameters.weight"


class Tuned(NamedTuple):
    """One seed's encoder: the c that was chosen for each way, and accuracies of every c."""

    seed: int
    chosen: dict[str, float]
    test: dict[str, Accuracies]  # by way and c, and of both encoders as they are


def recipe_of(source: str) -> dict[str, Any]:
    """Return the paper's recipe; ``weight`` is c."""
    return {
        "merge_method": "lines",
        "base_model": "../base",
        "models": [{"model": f"./{source}", "parameters": {"weight": 1.0}}],
        "parameters": {"wrap": "task_arithmetic", "alpha": 0.5, "beta": 0.5},
        "dtype": "float32",
    }


def at(way: str, share: float) -> str:
    return f"{way}, c = {share:g}"


def measured(seed: int, source: str, shares: Sequence[float], threads: int | None) -> Tuned:
    """Choose c by validation texts of the source; measure every c on test texts of all."""
    recipe, code = recipe_of(source), Path(_accuracy.__file__).read_text("utf-8")
    out = fresh(Path(NAME), fingerprint(recipe, shares, made_from([source]), code, engine()))
    axis = f"{WEIGHT}={','.join(f'{share:g}' for share in shares)}"
    swept = search(recipe, axis, out / "search", threads, objective=source)
    points = dict(zip(shares, swept.points, strict=True))
    # Of equals the least c: what is nearest to the pre-trained encoder.
    chosen = {
        name: max(shares, key=lambda share, way=way: points[share].scores[way])
        for name, way in WAYS.items()
    }
    inputs = as_they_are([source])
    test = {PRE_TRAINED: inputs[PRE_TRAINED], FINE_TUNED: inputs[source]}
    words = {BOTH: (0.5, 0.5), WISE: (1.0, 0.0), EVEN: (0.75, 0.0)}
    settings = {
        # What c multiplies can stand in α and β as well: both scale the one task vector.
        at(way, share): {"wrap": "task_arithmetic", "alpha": share * alpha, "beta": share * beta}
        for way, (alpha, beta) in words.items()
        for share in shares
    }
    return Tuned(seed, chosen, test | tested(recipe, settings, out / "test.json", TEXTS))


def get_measured(
    source: str, shares: Sequence[float], seeds: int, threads: int | None
) -> list[Tuned]:
    values = ", ".join(f"{share:g}" for share in shares)
    say(f"3/4  {seeds} fronts from the pre-trained to the fine-tuned encoder: c of {values}")
    rows = []
    for seed in tqdm(range(seeds), desc="   fronts", leave=False, disable=None):
        with inside(Path(f"seed-{seed}")):
            rows.append(measured(seed, source, shares, threads))
    return rows


def shifted(accuracies: Accuracies, source: str) -> float:
    """Return the mean accuracy on what the encoder was not trained on."""
    return statistics.fmean(value for task, value in accuracies.items() if task != source)


def key_of(row: Tuned, way: str) -> str:
    """Return under what a way's test accuracies are: at the c that was chosen."""
    return at(way, row.chosen[way]) if way in row.chosen else way


def show(rows: Sequence[Tuned], source: str) -> None:
    say("4/4  what came out: test texts, percent; mean ± standard error over seeds")
    tasks = list(rows[0].test[PRE_TRAINED])
    others = [task for task in tasks if task != source]
    console = open_console()
    table = new_table("", source, *others, "shifted, mean", "c")
    for way in (PRE_TRAINED, FINE_TUNED, *WAYS):
        picked = [row.test[key_of(row, way)] for row in rows]
        cells = [over_seeds([each[task] for each in picked]).text for task in (source, *others)]
        cells.append(over_seeds([shifted(each, source) for each in picked]).text)
        shares = [row.chosen.get(way, float(way == FINE_TUNED)) for row in rows]
        table.add_row(way, *cells, f"{statistics.fmean(shares):.2f}")
    print_table(console, table)
    print(f"\n   {BOTH} minus another way, points: mean (95% interval over seeds)", flush=True)
    table = new_table(f"{BOTH} minus", source, "shifted, mean")
    told = {}
    for way in (FINE_TUNED, WISE, EVEN):
        pairs = [(row.test[key_of(row, BOTH)], row.test[key_of(row, way)]) for row in rows]
        own = over_seeds([one[source] - two[source] for one, two in pairs])
        told[way] = over_seeds([shifted(one, source) - shifted(two, source) for one, two in pairs])
        table.add_row(way, own.interval, told[way].interval)
    print_table(console, table)
    if len(rows) > 1:
        words = {1: "higher than", -1: "lower than", 0: "not told apart from"}
        print(f"\n   Under shift, by these intervals, {BOTH} is {told_apart(told, words)}.")


def draw(rows: Sequence[Tuned], source: str, shares: Sequence[float], path: Path) -> None:
    """Draw accuracy in distribution and under shift at every c, as the paper's figure 3."""
    fronts = {}
    for label, way in (("LiNeS", BOTH), ("unscaled", WISE), ("uniform, equal mean", EVEN)):
        names = [PRE_TRAINED, *(at(way, share) for share in shares)]
        own = [over_seeds([row.test[name][source] for row in rows]) for name in names]
        far = [over_seeds([shifted(row.test[name], source) for row in rows]) for name in names]
        x, y = [each.mean for each in own], [each.mean for each in far]
        errors = [[each.error for each in axis] if len(rows) > 1 else None for axis in (own, far)]
        fronts[label] = ((0.0, *shares), x, y, *errors, pareto_set(list(zip(x, y, strict=True))))
    with figures.page(path) as figure:
        names = (f"accuracy on {source}", "mean accuracy under shift")
        figures.soup_front(figure, names, fronts)


def main() -> None:
    started = time.monotonic()
    options = finetune.arguments(__doc__).parse_args()
    size = finetune.begin(options, NAME, (FULL, TINY))
    source, shares = (TINY_SOURCE, TINY_SHARES) if size is TINY else (SOURCE, SHARES)
    mergekit_lines.register()
    finetune.get_tuned(size, options.seeds, [source])
    rows = get_measured(source, shares, options.seeds, options.num_threads)
    file, figure = Path("robust.json"), Path("robust.png")
    file.write_text(json.dumps([row._asdict() for row in rows], indent=1), encoding="utf-8")
    show(rows, source)
    draw(rows, source, shares, figure)
    print(f"\n   the figure: {figure.resolve()}")
    print(f"   every number: {file.resolve()}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
