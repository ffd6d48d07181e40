"""What a search found, for people: tables on stdout, a figure, results for a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_line, print_table
from mergekit_lines.evaluate import Metric
from mergekit_lines.search.bench import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.greedy import Greedy
from mergekit_lines.search.soup import Soup
from mergekit_lines.search.store import Record, write_output
from mergekit_lines.search.sweep import Point, Sweep

WAYS = (LINES, UNIFORM, UNSCALED)


def number(value: float | None) -> str:
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
    return number(metric.value) + ("" if error is None else f" ± {error:.2g}")


def show_sweep(swept: Sweep) -> None:
    """Print a sweep's points, its choice, and what was measured on test data."""
    console = open_console()
    axes = [axis.name for axis in swept.axes]
    metrics = list(swept.best.lines.metrics)
    table = new_table(axes[0], *axes[1:], "mean λ", *metrics, *WAYS, "")
    for point in swept.points:
        values = [str(value) for value in point.settings.values()]
        values += [number(point.lines.mean)]
        values += [_cell(point.lines, name) for name in metrics]
        values += [number(point.scores.get(way)) for way in WAYS]
        table.add_row(*values, "chosen" if point is swept.best else "")
    print_line(console, f"validation; metrics of LiNeS, then the objective ({swept.objective})")
    print_table(console, table)
    names = short_names(swept.inputs)
    rows = {names[name]: record for name, record in swept.inputs.items()}
    scores = {names[name]: score for name, score in swept.input_scores.items()}
    if rows:
        print_line(console, "")
        print_line(console, "inputs as they are, validation")
        print_table(console, _rows(rows, metrics, scores))
    best, rival = swept.best.scores[LINES], swept.best_uniform
    chosen = zip(axes, swept.best.settings.values(), strict=True)
    at = ", ".join(f"{axis} {value}" for axis, value in chosen)
    print_line(console, "")
    print_line(console, f"chosen: {at}; objective {number(best)} with LiNeS")
    if rival is not None:
        flat, score = number(rival.lines.mean), rival.scores[UNIFORM]
        verdict = "no better than" if best <= score else "better than"
        print_line(
            console,
            f"LiNeS is {verdict} the best uniform coefficient of the grid, {flat}: {number(score)}",
        )
    if swept.test:
        print_line(console, "")
        print_line(console, "test")
        tested = {names.get(name, name): record for name, record in swept.test.items()}
        words = dict.fromkeys(word for record in tested.values() for word in record.metrics)
        print_table(console, _rows(tested, list(words)))


def _rows(
    records: Mapping[str, Record], metrics: Sequence[str], scores: Mapping[str, float] | None = None
) -> Any:
    table = new_table("", "mean λ", *metrics, *(["objective"] if scores else []))
    for name, record in records.items():
        cells = [_cell(record, metric) for metric in metrics]
        table.add_row(
            name, number(record.mean), *cells, *([number(scores.get(name))] if scores else [])
        )
    return table


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
    panels: dict[str, dict[str, tuple[list[float], list[float] | None]]]
    panels = {f"objective ({swept.objective})": _objective_lines(swept)}
    names = short_names(swept.inputs)
    baselines = {
        next(iter(panels)): {names[own]: score for own, score in swept.input_scores.items()}
    }
    for name in swept.best.lines.metrics:
        panels[name] = {
            way: (
                [_value(point, way, name) for point in swept.points],
                _errors([_metric(point, way, name) for point in swept.points]),
            )
            for way in WAYS
        }
        baselines[name] = {
            names[own]: record.metrics[name].value
            for own, record in swept.inputs.items()
            if name in record.metrics
        }
    chosen = next(iter(swept.best.settings.values()))
    with figures.page(path) as figure:
        figures.sweep_panels(figure, axis.name, axis.values, panels, chosen, baselines)


def _objective_lines(swept: Sweep) -> dict[str, tuple[list[float], list[float] | None]]:
    return {
        way: ([point.scores.get(way, math.nan) for point in swept.points], None) for way in WAYS
    }


def _metric(point: Point, way: str, name: str) -> Metric | None:
    """Return one metric of a point, or None where it could not be measured."""
    return point.records[way].metrics.get(name) if way in point.records else None


def _value(point: Point, way: str, name: str) -> float:
    metric = _metric(point, way, name)
    return math.nan if metric is None else metric.value


def _errors(metrics: Sequence[Metric | None]) -> list[float] | None:
    """Return the errors of all that were measured, None if one of these has none."""
    errors = [math.nan if metric is None else metric.error for metric in metrics]
    return None if None in errors else [error for error in errors if error is not None]


def _draw_heat(swept: Sweep, path: Path) -> None:
    rows, columns = swept.axes
    width = len(columns.values)
    grids = {}
    for way in WAYS:
        scores = [point.scores.get(way, math.nan) for point in swept.points]
        grids[way] = [scores[start : start + width] for start in range(0, len(scores), width)]
    y, x = swept.best.settings.values()
    with figures.page(path) as figure:
        figures.sweep_heat(
            figure,
            columns.name,
            columns.values,
            rows.name,
            rows.values,
            grids,
            (x, y),
            f"objective ({swept.objective})",
        )


def write_results(swept: Sweep, path: Path) -> None:
    """Write the test metrics of the chosen point as results for a model card.

    ``mergekit-lines push`` reads them from ``results.json`` in the folder of a merged model.
    """
    record = swept.test[LINES]
    results = [
        {
            "task": {"type": swept.task},
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
    for number_, share in enumerate(soup.shares):
        for way, records in soup.fronts.items():
            record = records[number_]
            optimal = number_ in soup.bootstrap.fronts[way].pareto
            cells = [with_error(record.metrics[name]) for name in soup.rewards]
            table.add_row(
                f"{share:g}", way, number(record.mean), *cells, "Pareto-optimal" if optimal else ""
            )
    print_table(console, table)
    base = ", ".join(f"{name} {with_error(soup.base.metrics[name])}" for name in soup.rewards)
    print_line(console, "")
    print_line(console, f"base: {base}")
    reference = ", ".join(number(float(value)) for value in soup.bootstrap.reference)
    print_line(console, f"hypervolumes above ({reference}), 95% intervals over the prompts")
    volumes = new_table("front", "hypervolume", "interval")
    for way, front in soup.bootstrap.fronts.items():
        volumes.add_row(way, number(front.hypervolume), _interval(front.interval))
    for (one, other), difference in soup.bootstrap.differences.items():
        volumes.add_row(
            f"{one} minus {other}", number(difference.value), _interval(difference.interval)
        )
    print_table(console, volumes)


def _interval(bounds: Sequence[float]) -> str:
    return f"{number(bounds[0])} to {number(bounds[1])}"


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
        table.add_row(name, number(score), "chosen" if name in soups.chosen else "")
    print_table(console, table)
    for split, records in (("validation", soups.soups), ("test", soups.test)):
        if records:
            print_line(console, "")
            print_line(console, split)
            words = dict.fromkeys(word for record in records.values() for word in record.metrics)
            scores = soups.values if split == "validation" else None
            print_table(console, _rows(records, list(words), scores))
