"""Forgetting: one fine-tuned encoder after another, edited so that it keeps what it could before.

The question of the paper's Table 1 and figures 1 and 2. An encoder that was fine-tuned on one task
(the target) is measured on that and on the others that the pre-trained one can tell (the controls):
as it is, with LiNeS, scaled down evenly, and scaled down from the other end. See forgetting.sh and
finetune.py.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import finetune
from _base import fingerprint, say
from _model import run
from _stories import (
    PRE_TRAINED,
    TEXTS,
    Accuracies,
    Measure,
    OverSeeds,
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
from finetune import FULL, TINY, Size
from tqdm import tqdm

import mergekit_lines
from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.figures.drawing import fit_height, legend_below, number_ticks, plain_axes
from mergekit_lines.figures.parts import looks_of
from mergekit_lines.search.bench import LINES, UNIFORM
from mergekit_lines.search.store import Record
from mergekit_lines.search.sweep import Sweep

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
TINY_GAMMAS = (0.0, 0.5, 1.0)
TARGETS = ("news", "reuters", "forums", "sentiment", "candidates")
TINY_TARGETS = ("animals", "plants")
OUTSIDES = (0.0, 1.0)
TARGET_WEIGHT = 2.0  # of the paper's rule (C.1)

FINE_TUNED, BEST, REVERSED = "fine-tuned", "uniform, best", "reversed"
EQUAL = UNIFORM  # of LiNeS's own mean
ROWS = (PRE_TRAINED, FINE_TUNED, LINES, EQUAL, BEST, REVERSED)
RIVALS = (FINE_TUNED, EQUAL, BEST, REVERSED)
OUTSIDE = {value: f"LiNeS, outside {value:g}" for value in OUTSIDES}


class Edited(NamedTuple):
    """One fine-tuned encoder: what was chosen for it, and accuracies of all tasks."""

    seed: int
    target: str
    controls: list[str]
    chosen: dict[str, str]  # by way, λ of the first and the last block
    validation: dict[str, Accuracies]  # by way and γ
    test: dict[str, Accuracies]  # by way

    def ratios(self, accuracies: Accuracies, references: Mapping[str, Accuracies]) -> list[float]:
        """Return accuracy on target and controls over the fine-tuned and the pre-trained one's."""
        tuned, base = references[FINE_TUNED], references[PRE_TRAINED]
        kept = statistics.fmean(accuracies[task] / base[task] for task in self.controls)
        return [accuracies[self.target] / tuned[self.target], kept]


def gammas_of(size: Size) -> tuple[float, ...]:
    return TINY_GAMMAS if size.small else GAMMAS


def recipe_of(target: str) -> dict[str, Any]:
    return {
        "merge_method": "lines_postprocess",
        "base_model": "../base",
        "models": [{"model": f"./{target}"}],
        "parameters": {"schedule": "1, 1"},  # swept: λ of the first and of the last block
        "dtype": "float32",
    }


def ends(first: float, last: float) -> str:
    """Return coefficients that go in a straight line from the first block to the last."""
    return f"{first:g},{last:g}"


# --- one encoder ---------------------------------------------------------------------------------


def edited(
    size: Size,
    seed: int,
    target: str,
    inputs: Mapping[str, Accuracies],
    threads: int | None,
    measure: Measure = TEXTS,
) -> Edited:
    """Choose γ of LiNeS and its rivals' coefficients on validation data; measure all on test."""
    recipe, controls = recipe_of(target), size.controls(target)
    gammas = gammas_of(size)
    own = made_from([target], measure)
    origin = fingerprint(recipe, gammas, own, measure.source, engine())
    out = fresh(Path("forgetting", target), origin)
    lines, mirror = [ends(g, 1) for g in gammas], [ends(1, g) for g in gammas]
    flat = [ends(g, g) for g in gammas if 0 < g < 0.5]  # the others are means of those above
    axis = f"schedule={';'.join(dict.fromkeys((*lines, *mirror, *flat)))}"
    goal: dict[str, Any] = {"objective": "retention", "targets": [target], "controls": controls}
    goal["target_weight"] = TARGET_WEIGHT
    swept = search(recipe, axis, out / "search", threads, measure, **goal)
    chosen = choice(swept, lines, mirror)
    settings = {way: {"schedule": value} for way, value in chosen.items()}
    settings |= {
        name: {"schedule": chosen[LINES], "outside": value} for value, name in OUTSIDE.items()
    }
    test = {PRE_TRAINED: inputs[PRE_TRAINED], FINE_TUNED: inputs[target]}
    test |= tested(recipe, settings, out / "test.json", measure)
    return Edited(seed, target, controls, chosen, measured(swept), test)


def choice(swept: Sweep, lines: Sequence[str], mirror: Sequence[str]) -> dict[str, str]:
    """Return the coefficients of each way that score highest on validation texts."""
    points = {str(point.settings["parameters.schedule"]): point for point in swept.points}

    def best(listed: Sequence[str]) -> str:
        return max(listed, key=lambda each: points[each].scores[LINES])

    own = best(lines)
    mean, even = mean_of(points[own].lines), mean_of(swept.best_uniform[0])
    return {
        LINES: own,
        EQUAL: ends(mean, mean),
        BEST: ends(even, even),
        REVERSED: best(mirror),
    }


def mean_of(record: Record) -> float:
    """Return the mean coefficient of the blocks."""
    return round(record.mean, 6)


def measured(swept: Sweep) -> dict[str, Accuracies]:
    """Return validation accuracies by the coefficients' ends: LiNeS, reversed, uniform; inputs."""
    values = {}
    for point in swept.points:
        mean = mean_of(point.lines)
        for key, way in (
            (str(point.settings["parameters.schedule"]), LINES),
            (ends(mean, mean), UNIFORM),
        ):
            metrics = point.records[way].metrics
            values[key] = {task: metric.value for task, metric in metrics.items()}
    for name, record in zip((PRE_TRAINED, FINE_TUNED), swept.inputs.values(), strict=True):
        values[name] = {task: metric.value for task, metric in record.metrics.items()}
    return values


# --- all of them ---------------------------------------------------------------------------------


def get_edited(size: Size, targets: Sequence[str], seeds: int, threads: int | None) -> list[Edited]:
    count = seeds * len(targets)
    gammas = ", ".join(f"{gamma:g}" for gamma in gammas_of(size))
    say(f"3/4  {count} encoders edited; γ of {gammas} by validation texts")
    encoders = []
    with tqdm(total=count, desc="   editing", leave=False, disable=None) as bar:
        for seed in range(seeds):
            with inside(Path(f"seed-{seed}")):
                inputs = as_they_are(targets)
                for target in targets:
                    encoders.append(edited(size, seed, target, inputs, threads))
                    bar.update()
    return encoders


def by_seed(encoders: Sequence[Edited], number: Any) -> list[float]:
    """Return the mean over the targets of a number of each encoder, seed by seed."""
    seeds = sorted({each.seed for each in encoders})
    return [
        statistics.fmean(number(each) for each in encoders if each.seed == seed) for seed in seeds
    ]


def ratio_of(encoders: Sequence[Edited], way: str, place: int) -> list[float]:
    """Return the normalised accuracy of a way on targets (place 0) or controls (1), by seed."""
    return by_seed(encoders, lambda each: each.ratios(each.test[way], each.test)[place])


def retention_of(encoders: Sequence[Edited], way: str) -> list[float]:
    """Return the paper's rule on test texts, over its weights: 1 keeps all of both."""
    pairs = zip(*(ratio_of(encoders, way, place) for place in (0, 1)), strict=True)
    return [(TARGET_WEIGHT * target + control) / (TARGET_WEIGHT + 1) for target, control in pairs]


def show(encoders: Sequence[Edited], seeds: int) -> None:
    say("4/4  what came out: test texts, percent; mean over targets ± standard error over seeds")
    console = open_console()
    heads = ("target", "controls", "target, normalised", "controls, normalised", "mean λ")
    table = new_table("", *heads)
    for way in (*ROWS, *OUTSIDE.values()):
        raw = [
            by_seed(encoders, lambda each, way=way: each.test[way][each.target]),
            by_seed(encoders, lambda each, way=way: control(each, way)),
        ]
        numbers = [*raw, *(ratio_of(encoders, way, place) for place in (0, 1))]
        cells = [over_seeds(number).text for number in numbers]
        table.add_row(way, *cells, lambda_of(encoders, way))
    print_table(console, table)
    print("\n   LiNeS minus another way, normalised, points: mean (95% interval over seeds)")
    table = new_table("LiNeS minus", "target", "controls", "retention, (2·target + controls)/3")
    for way in RIVALS:
        table.add_row(way, *(each.interval for each in differences(encoders, way)))
    print_table(console, table)
    if seeds > 1:
        retentions = {way: differences(encoders, way)[2] for way in RIVALS}
        words = {1: "is higher than that of", -1: "is lower than that of", 0: "may equal that of"}
        print(f"\n   By these intervals LiNeS's retention {told_apart(retentions, words)}.")


def differences(encoders: Sequence[Edited], other: str) -> list[OverSeeds]:
    """Return LiNeS minus another way, over seeds: on targets, on controls, and of both."""

    def numbers(way: str) -> list[list[float]]:
        return [*(ratio_of(encoders, way, place) for place in (0, 1)), retention_of(encoders, way)]

    pairs = zip(numbers(LINES), numbers(other), strict=True)
    return [over_seeds([a - b for a, b in zip(*pair, strict=True)]) for pair in pairs]


def control(encoder: Edited, way: str) -> float:
    return statistics.fmean(encoder.test[way][task] for task in encoder.controls)


def lambda_of(encoders: Sequence[Edited], way: str) -> str:
    """Return the mean over encoders of a way's mean coefficient."""
    fixed = {PRE_TRAINED: "0.00", FINE_TUNED: "1.00"}
    if way in fixed:
        return fixed[way]
    texts = [each.chosen.get(way, each.chosen[LINES]) for each in encoders]
    return f"{statistics.fmean(sum(map(float, text.split(','))) / 2 for text in texts):.2f}"


# --- figures -------------------------------------------------------------------------------------


def draw_gammas(encoders: Sequence[Edited], gammas: Sequence[float], path: Path) -> None:
    """Draw normalised accuracies over γ, as the paper's figure 1: validation texts."""
    ways = {
        LINES: lambda g: ends(g, 1),
        REVERSED: lambda g: ends(1, g),
        EQUAL: lambda g: ends((1 + g) / 2, (1 + g) / 2),
    }
    panels: dict[str, dict[str, tuple[list[float], list[float] | None]]] = {}
    for place, what in enumerate(("target", "controls")):
        panel = panels[f"{what}, normalised, validation"] = {}
        for way, key in ways.items():
            numbers = [over_seeds(_validated(encoders, key(g), place)) for g in gammas]
            errors = None if len({e.seed for e in encoders}) < 2 else [n.error for n in numbers]
            panel[way] = ([n.mean for n in numbers], errors)
    with figures.page(path) as figure:
        figures.sweep_panels(figure, "γ: the least coefficient", gammas, panels, None, {})


def _validated(encoders: Sequence[Edited], key: str, place: int) -> list[float]:
    full = ends(1, 1)
    name = key if key != full else FINE_TUNED
    return by_seed(
        encoders, lambda each: each.ratios(each.validation[name], each.validation)[place]
    )


def draw_models(encoders: Sequence[Edited], path: Path) -> None:
    """Draw every encoder's two normalised accuracies, as the paper's figure 2: test texts."""
    ways = (FINE_TUNED, EQUAL, LINES)
    looks = looks_of(["unscaled", EQUAL, LINES])
    with figures.page(path) as figure:
        axes, handles = figure.subplots(), []
        for way, look in zip(ways, looks.values(), strict=True):
            points = [each.ratios(each.test[way], each.test) for each in encoders]
            means = [statistics.fmean(values) for values in zip(*points, strict=True)]
            dot = {"marker": look["marker"], "color": look["color"], "linestyle": "none"}
            axes.plot(*zip(*points, strict=True), markersize=5, alpha=0.5, **dot)
            handles += axes.plot(*[[mean] for mean in means], markersize=12, label=way, **dot)
        axes.axhline(1, color="#999999", linewidth=0.8, linestyle=":")
        axes.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("target, normalised, test (large: means)")
        axes.set_ylabel("controls, normalised, test")
        plain_axes(axes, "both")
        number_ticks(axes.xaxis)
        number_ticks(axes.yaxis)
        legend_below(figure, handles)
        fit_height(figure, axes, 1, 4.2)


def main() -> None:
    started = time.monotonic()
    options = finetune.arguments(__doc__).parse_args()
    size = finetune.begin(options, finetune.NAME, (FULL, TINY))
    targets = TINY_TARGETS if options.tiny else TARGETS
    mergekit_lines.register()
    finetune.get_tuned(size, options.seeds, targets)
    encoders = get_edited(size, targets, options.seeds, options.num_threads)
    Path("forgetting.json").write_text(
        json.dumps([each._asdict() for each in encoders], indent=1), encoding="utf-8"
    )
    show(encoders, options.seeds)
    gammas, models = Path("forgetting-gammas.png"), Path("forgetting-models.png")
    draw_gammas(encoders, gammas_of(size), gammas)
    draw_models(encoders, models)
    print(f"\n   figures: {gammas.resolve()}, {models.resolve()}")
    print(f"   every number: {Path('forgetting.json').resolve()}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
