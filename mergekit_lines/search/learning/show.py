"""Learnt coefficients for people: a table on stdout, and a figure over depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_line, print_table
from mergekit_lines.live.coefficients import Coefficients, Learnable
from mergekit_lines.search.learn import Learned, Way
from mergekit_lines.search.telling import beginning, four_digits


def show_learned(learned: Learned) -> None:
    """Print what was learnt beside the recipe's own coefficients and the best uniform one."""
    console = open_console()
    name = learned.objective
    others = [other for other in learned.own.held_out if other != name]
    heads = (f"{name}, training", *(f"{one}, held out" for one in (name, *others)))
    table = new_table("coefficients", "mean λ", "outside", *heads)
    for label, way in _ways(learned).items():
        mean, outside = way.coefficients.mean, way.coefficients.outside
        values = (way.training[name], *(way.held_out[one] for one in (name, *others)))
        table.add_row(label, *map(four_digits, (mean, outside, *values)))
    count, apart = learned.measured
    print_line(
        console,
        f"nats per {learned.unit}, on {count} {learned.inputs} of the training part and {apart} "
        f"that were held out",
    )
    print_table(console, table)
    flat = learned.uniform.coefficients.mean
    print_line(console, "")
    print_line(console, beginning(learned.start, flat, learned.uniform_at_edge))
    best, rival = learned.learned.held_out[name], learned.uniform.held_out[name]
    verdict = "lower than" if best < rival else "no lower than"
    print_line(console, "")
    print_line(
        console,
        f"the learnt coefficients' {name} on held-out {learned.inputs}, {four_digits(best)}, is "
        f"{verdict} the best uniform coefficient's, {four_digits(rival)}",
    )
    if name == "entropy":
        print_line(console, _truth(learned))
    for model, own in _named(learned.learned.coefficients):
        of = f" of {model}" if model else ""
        first, slope = _line(own)
        print_line(
            console,
            f"the straight line nearest to those{of}: alpha {four_digits(first)}, beta "
            f"{four_digits(slope)}",
        )


def _truth(learned: Learned) -> str:
    """Say whether predictions that are more certain are right, as far as that was measured."""
    own, best = learned.own.held_out, learned.learned.held_out
    if "loss" not in best:
        return (
            "no label says whether they are right: low entropy is certainty. Measure the merge "
            "before it is used"
        )
    change = f"from the recipe's own {four_digits(own['loss'])} to {four_digits(best['loss'])}"
    if best["loss"] > own["loss"]:
        return f"their held-out loss rose {change}: they are more certain, and less right"
    return f"their held-out loss fell too, {change}"


def _line(own: Coefficients) -> tuple[float, float]:
    """Return α and β of the straight line that is nearest to coefficients of blocks."""
    slope, first = np.polyfit(np.linspace(0, 1, len(own.blocks)), own.blocks, 1)
    return float(first), float(slope)


def _ways(learned: Learned) -> dict[str, Way]:
    """Return what stands side by side, by what it is called."""
    rises = [own.blocks[0] < own.blocks[-1] for own in learned.own.coefficients.by_model.values()]
    return {
        "learnt": learned.learned,
        "LiNeS, the recipe's own" if all(rises) else "the recipe's own": learned.own,
        "uniform, best": learned.uniform,
    }


def _named(coefficients: Learnable) -> Iterator[tuple[str, Coefficients]]:
    """Yield the coefficients of each model, with its folder's name; of the merge with none."""
    last = [Path(model).name for model in coefficients.by_model]
    short = len({*last}) == len(last)
    for model, own in coefficients.by_model.items():
        yield (Path(model).name if short else model), own


def draw_learned(learned: Learned, path: Path) -> None:
    """Draw learnt coefficients over depth, beside the recipe's own and the best uniform one.

    Where each model has its own, each has a line; what is alike for all has one.

    Raises:
        LinesError: matplotlib is not there, or the file cannot be made.
    """
    lines: dict[str, tuple[tuple[float, ...], float]] = {}
    for label, way in _ways(learned).items():
        named = list(_named(way.coefficients))
        alike = len({own for _, own in named}) == 1
        for model, own in named[:1] if alike and way is not learned.learned else named:
            of = f", {model}" if model and (len(named) > 1 and not alike) else ""
            lines[f"{label}{of}"] = (own.blocks, own.outside)
    learnt = len(learned.learned.coefficients.by_model)
    with figures.page(path) as figure:
        figures.depth_lines(figure, lines, learnt)
