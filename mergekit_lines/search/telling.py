"""What a search found, for people: tables on stdout, a figure, results for a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_line, print_table
from mergekit_lines.evaluate import Metric
from mergekit_lines.search.axes import end_of_values
from mergekit_lines.search.greedy import Greedy
from mergekit_lines.search.measuring.means import LINES, UNIFORM, WAYS
from mergekit_lines.search.soup import Soup
from mergekit_lines.search.store import Record, write_output
from mergekit_lines.search.sweep import Sweep


def four_digits(value: float | None) -> str:
    """Return a number in four significant digits."""
    return "" if value is None else f"{value:.4g}"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return what inputs are called in tables and figures: the base, and folders' names.

    Args:
        names: of the models as the recipe has them, the base first.
    """
    listed = list(names)
    if not listed:
        return {}
    base, *tuned = listed
    last = [Path(name).name for name in tuned]
    taken = {"base", *WAYS}
    unique = len(set(last)) == len(last) and not taken.intersection(last)
    return {base: "base", **dict(zip(tuned, last if unique else tuned, strict=True))}


def with_error(metric: Metric) -> str:
    """Return a metric with its standard error, where it has one."""
    error = metric.error
    return four_digits(metric.value) + ("" if error is None else f" ± {error:.2g}")


def show_sweep(swept: Sweep) -> None:
    """Print a sweep's points, its choice, and what was measured on test data."""
    console = open_console()
    axes = [axis.name for axis in swept.axes]
    metrics = list(swept.best.lines.metrics)
    table = new_table(axes[0], *axes[1:], "mean λ", *metrics, *WAYS, "")
    for point in swept.points:
        values = [str(value) for value in point.settings.values()]
        values += [four_digits(point.lines.mean)]
        values += [_cell(point.lines, name) for name in metrics]
        values += [four_digits(point.scores.get(way)) for way in WAYS]
        table.add_row(*values, "chosen" if point is swept.best else "")
    print_line(console, f"validation; metrics of LiNeS, then the objective ({swept.objective})")
    print_table(console, table)
    names = short_names(swept.inputs)
    rows = {names[name]: record for name, record in swept.inputs.items()}
    scores = {names[name]: score for name, score in swept.input_scores.items()}
    if rows:
        columns = {"objective": scores} if scores else None
        print_records(console, "inputs as they are, validation", rows, columns, metrics)
    best, rival = swept.best.scores[LINES], swept.best_uniform
    chosen = zip(axes, swept.best.settings.values(), strict=True)
    at = ", ".join(f"{axis} {value}" for axis, value in chosen)
    print_line(console, "")
    print_line(console, f"chosen: {at}; objective {four_digits(best)} with LiNeS")
    same = swept.best.scores.get(UNIFORM)
    if same is not None:
        flat = four_digits(swept.best.lines.mean)
        brought = f"depth brought {four_digits(best - same)}"
        print_line(
            console, f"uniform coefficient of that mean, {flat}: {four_digits(same)}; {brought}"
        )
    if rival is not None:
        flat, score = four_digits(rival[0].mean), rival[1]
        verdict = "no better than" if best <= score else "better than"
        against = f"the best uniform coefficient of the grid, {flat}: {four_digits(score)}"
        print_line(console, f"LiNeS is {verdict} {against}")
    for axis, value in zip(swept.axes, swept.best.settings.values(), strict=True):
        if end := end_of_values(axis.values, value):
            print_line(console, widen(axis.name, value, end))
    if swept.test:
        tested = {names.get(name, name): record for name, record in swept.test.items()}
        print_records(console, "test", tested)


def widen(name: str, value: Any, end: str) -> str:
    """Say that a choice lies at the end of what was tried."""
    more = "larger" if end == "high" else "smaller"
    return (
        f"{name} {value} lies at the end of its axis: widen {name} to see whether {more} is better"
    )


def print_records(
    console: Console,
    title: str,
    records: Mapping[str, Record],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Print records in a table under a title.

    Args:
        console: that prints.
        title: of the table.
        records: by name of the row.
        scores: of further columns, by name of the row.
        metrics: which ones; by default all that any record has.
    """
    metrics = metrics or list(
        dict.fromkeys(name for record in records.values() for name in record.metrics)
    )
    columns = scores or {}
    table = new_table("", "mean λ", *metrics, *columns)
    for name, record in records.items():
        cells = [four_digits(record.mean), *(_cell(record, metric) for metric in metrics)]
        table.add_row(name, *cells, *(four_digits(each.get(name)) for each in columns.values()))
    print_line(console, "")
    print_line(console, title)
    print_table(console, table)


def _cell(record: Record, name: str) -> str:
    metric = record.metrics.get(name)
    return "failed" if metric is None else with_error(metric)


def draw_sweep(swept: Sweep, path: Path) -> None:
    """Draw a sweep: curves over one axis, maps over two, of LiNeS and what stands beside it.

    Raises:
        LinesError: matplotlib is not there, or the file cannot be made.
    """
    if len(swept.axes) == 2:
        _draw_heat(swept, path)
        return
    (axis,) = swept.axes
    names, objective = short_names(swept.inputs), f"objective ({swept.objective})"
    panels: dict[str, figures.Lines]
    panels = {objective: {way: (_scores(swept, way), None) for way in WAYS}}
    baselines = {objective: {names[own]: score for own, score in swept.input_scores.items()}}
    for name in swept.best.lines.metrics:
        panels[name] = {way: _curve(swept, way, name) for way in WAYS}
        baselines[name] = {
            names[own]: record.metrics[name].value
            for own, record in swept.inputs.items()
            if name in record.metrics
        }
    chosen = next(iter(swept.best.settings.values()))
    with figures.page(path) as figure:
        figures.sweep_panels(figure, axis.name, axis.values, panels, chosen, baselines)


def _scores(swept: Sweep, way: str) -> list[float]:
    """Return the objective of one way at every point; NaN where it has no value."""
    return [point.scores.get(way, math.nan) for point in swept.points]


def _curve(swept: Sweep, way: str, name: str) -> tuple[list[float], list[float] | None]:
    """Return one metric of one way at every point, NaN where it was not measured, and its errors.

    There are no errors where one that was measured has none.
    """
    records = [point.records.get(way) for point in swept.points]
    metrics = [None if record is None else record.metrics.get(name) for record in records]
    values = [math.nan if metric is None else metric.value for metric in metrics]
    errors = [math.nan if metric is None else metric.error for metric in metrics]
    known = [error for error in errors if error is not None]
    return values, known if len(known) == len(errors) else None


def _draw_heat(swept: Sweep, path: Path) -> None:
    rows, columns = swept.axes
    size = len(rows.values), len(columns.values)
    grids = {way: np.reshape(_scores(swept, way), size).tolist() for way in WAYS}
    y, x = swept.best.settings.values()
    metric = f"objective ({swept.objective})"
    axes = columns.name, columns.values, rows.name, rows.values
    with figures.page(path) as figure:
        figures.sweep_heat(figure, *axes, grids, (x, y), metric)


def write_results(swept: Sweep, path: Path) -> None:
    """Write the test metrics of the chosen point as results for a model card.

    ``mergekit-lines push`` reads them from ``results.json`` in the folder of a merged model.
    """
    write_card(path, swept.test[LINES], swept.pipeline_tag)


def write_card(path: Path, record: Record, pipeline_tag: str) -> None:
    """Write a record's metrics as results for a model card."""
    results = [
        {
            "task": {"type": pipeline_tag},
            "dataset": {"type": "custom", "name": metric.origin},
            "metrics": [{"type": name, "name": name, "value": metric.value}],
        }
        for name, metric in record.metrics.items()
    ]
    write_output(path, json.dumps({"format": 1, "results": results}, indent=2) + "\n")


def show_soup(soup: Soup) -> None:
    """Print a front: every point three ways, hypervolumes, and their differences."""
    console = open_console()
    table = new_table("c", "way", "mean λ", *soup.rewards, "")
    for number, share in enumerate(soup.shares):
        for way, records in soup.fronts.items():
            record = records[number]
            optimal = number in soup.bootstrap.fronts[way].pareto
            cells = [with_error(record.metrics[name]) for name in soup.rewards]
            table.add_row(
                f"{share:g}",
                way,
                four_digits(record.mean),
                *cells,
                "Pareto-optimal" if optimal else "",
            )
    print_table(console, table)
    base = ", ".join(f"{name} {with_error(soup.base.metrics[name])}" for name in soup.rewards)
    print_line(console, "")
    print_line(console, f"base: {base}")
    reference = ", ".join(four_digits(float(value)) for value in soup.bootstrap.reference)
    print_line(console, f"hypervolumes above ({reference}), 95% intervals over the prompts")
    volumes = new_table("front", "hypervolume", "interval")
    for way, front in soup.bootstrap.fronts.items():
        volumes.add_row(way, four_digits(front.hypervolume), _interval(front.interval))
    for (one, other), difference in soup.bootstrap.differences.items():
        volumes.add_row(
            f"{one} minus {other}", four_digits(difference.value), _interval(difference.interval)
        )
    print_table(console, volumes)


def _interval(bounds: Sequence[float]) -> str:
    return f"{four_digits(bounds[0])} to {four_digits(bounds[1])}"


def draw_soup(soup: Soup, path: Path) -> None:
    """Draw the fronts, each point with its standard errors.

    Raises:
        LinesError: matplotlib is not there, or the file cannot be made.
    """
    fronts = {
        way: (
            soup.shares,
            front.means[:, 0],
            front.means[:, 1],
            front.errors[:, 0],
            front.errors[:, 1],
            front.pareto,
        )
        for way, front in soup.bootstrap.fronts.items()
    }
    x, y = (soup.base.metrics[name].value for name in soup.rewards)
    with figures.page(path) as figure:
        figures.soup_front(figure, soup.rewards, fronts, {"base": (x, y)})


def show_greedy(soups: Greedy) -> None:
    """Print the checkpoints, the choice, and the soups."""
    console = open_console()
    table = new_table("checkpoint", "objective", "")
    for name, score in soups.scores.items():
        table.add_row(name, four_digits(score), "chosen" if name in soups.chosen else "")
    print_table(console, table)
    for split, records in (("validation", soups.soups), ("test", soups.test)):
        if records:
            scores = {"objective": soups.values} if split == "validation" else None
            print_records(console, split, records, scores)


def beginning(start: str, uniform: float, at_edge: bool) -> str:
    """Say where a descent begins, and whether the best uniform coefficient was in reach."""
    value = f"{uniform:.4g}"
    text = (
        f"the descent begins at the best uniform coefficient, {value}"
        if start == "uniform"
        else f"the descent begins at the recipe's own coefficients; the best uniform one is {value}"
    )
    if at_edge:
        text += ". No larger one was tried: give the recipe larger coefficients to begin with"
    return text
