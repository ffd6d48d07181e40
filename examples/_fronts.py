"""Fronts of several seeds beside each other: areas, their differences, and what these show.

Each seed draws its prompts from the same ones, so its rewards count from the base's on its own.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _stories import over_seeds

from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.search.bench import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.pareto import Bootstrap, Difference, bootstrap, pareto_set
from mergekit_lines.search.soup import Soup

WAYS = (LINES, UNSCALED, UNIFORM)


def ends(found: Soup, policies: Sequence[str]) -> dict[str, Any]:
    """Return the records of both policies as they are: the unscaled ends of the front."""
    records = found.fronts[UNSCALED]
    return dict(zip(policies, (records[-1], records[0]), strict=True))


def print_paragraph(sentences: Sequence[str]) -> None:
    print(textwrap.fill(" ".join(sentences), 88, initial_indent="   ", subsequent_indent="   "))


def verdict(differences: Mapping[tuple[str, str], Difference], witnesses: str) -> list[str]:
    """Say in sentences what the intervals of LiNeS's hypervolume minus the others' show.

    Args:
        differences: by both ways' names.
        witnesses: what the intervals are over, and how many.
    """
    signs, told = {}, []
    for other, name in ((UNSCALED, "the unscaled"), (UNIFORM, "the uniform")):
        difference = differences[LINES, other]
        low, high = difference.interval
        numbers = f"{difference.value:+.3g}, 95% interval {low:+.3g} to {high:+.3g}"
        signs[other] = (low > 0) - (high < 0)
        if signs[other]:
            size = "larger" if signs[other] > 0 else "smaller"
            told.append(f"LiNeS's front dominates a {size} area than {name} one ({numbers}).")
        else:
            told.append(
                f"Whether LiNeS's front dominates a larger or a smaller area than {name} one, "
                f"{witnesses} cannot tell ({numbers})."
            )
    if signs[UNSCALED] > 0:
        told.append(
            {
                1: "So the depth gave more than the larger step alone.",
                0: "So the larger step may be all that helped; of the depth nothing is shown.",
                -1: "So the larger step helped, and its going with the depth did not.",
            }[signs[UNIFORM]]
        )
    return told


def changes(found: Soup) -> dict[str, np.ndarray]:
    """Return rewards minus the base's of the same prompts, by way: [points, 2, prompts].

    Prompts differ from seed to seed, and some are gladder than others.
    """
    base = np.array([found.base.metrics[name].examples for name in found.rewards])
    return {
        way: np.array(
            [[record.metrics[name].examples for name in found.rewards] for record in records]
        )
        - base
        for way, records in found.fronts.items()
    }


def side_by_side(soups: Sequence[Soup]) -> list[Bootstrap]:
    """Return areas above one reference for all seeds: the lowest change of any point."""
    scores = [changes(found) for found in soups]
    means = [values.mean(axis=-1) for each in scores for values in each.values()]
    lowest = np.concatenate(means).min(axis=0)
    return [bootstrap(each, lowest) for each in scores]


def between(number: Difference) -> str:
    low, high = number.interval
    return f"{number.value:+.3f} ({low:+.3f} to {high:+.3f})"


def show_seeds(soups: Sequence[Soup], policies: Sequence[str]) -> None:
    """Tell what the seeds say together: areas beside each other, and LiNeS minus the others."""
    print("   change from the base on held-out prompts: mean ± standard error over seeds")
    table = new_table("", *soups[0].rewards)
    for policy in policies:
        cells = []
        for name in soups[0].rewards:
            after = [ends(each, policies)[policy].metrics[name].value for each in soups]
            before = [each.base.metrics[name].value for each in soups]
            number = over_seeds([one - two for one, two in zip(after, before, strict=True)])
            cells.append(f"{number.mean:+.3f} ± {number.error:.3f}")
        table.add_row(policy, *cells)
    print_table(open_console(), table)
    show_areas(side_by_side(soups))


def show_areas(areas: Sequence[Bootstrap]) -> None:
    """Print hypervolumes and their differences, seed by seed and together, and a verdict."""
    console, seeds = open_console(), range(len(areas))
    print("\n   hypervolumes of the changes, above one reference for all seeds", flush=True)
    table = new_table("front", *(f"seed {n}" for n in seeds), "mean")
    for way in WAYS:
        values = [each.fronts[way].hypervolume for each in areas]
        number = over_seeds(values)
        cells = [f"{value:.3f}" for value in values]
        table.add_row(way, *cells, f"{number.mean:.3f} ± {number.error:.3f}")
    print_table(console, table)
    print("\n   LiNeS minus another (95% interval)", flush=True)
    table = new_table("", UNSCALED, UNIFORM)
    together: dict[tuple[str, str], Difference] = {}
    columns = []
    for other in (UNSCALED, UNIFORM):
        differences = [each.differences[LINES, other] for each in areas]
        number = over_seeds([each.value for each in differences])
        together[LINES, other] = Difference(number.mean, (number.low, number.high))
        rows = [*differences, together[LINES, other]]
        columns.append([between(each) for each in rows])
    names = [*(f"seed {n}, over prompts" for n in seeds), "mean, over seeds"]
    for cells in zip(names, *columns, strict=True):
        table.add_row(*cells)
    print_table(console, table)
    print()
    told = verdict(together, f"{len(areas)} seeds")
    told.append(
        "These are over seeds, each with its own samples and policies; of their prompts, drawn "
        "from the same ones, more than half are common to any two."
    )
    print_paragraph(told)


def draw_seeds(soups: Sequence[Soup], path: Path) -> None:
    """Draw the mean changes from the base, with standard errors over seeds."""
    points = [{way: v.mean(axis=-1) for way, v in changes(found).items()} for found in soups]
    fronts = {}
    for way in WAYS:
        stacked = np.array([each[way] for each in points])  # [seeds, points, rewards]
        means = stacked.mean(axis=0)
        errors = stacked.std(axis=0, ddof=1) / math.sqrt(len(soups))
        fronts[way] = (soups[0].shares, *means.T, *errors.T, pareto_set(means))
    first, second = (f"{name}, change from the base" for name in soups[0].rewards)
    with figures.page(path) as figure:
        figures.soup_front(figure, (first, second), fronts, {"base": (0.0, 0.0)})
