"""What a search tells people: errors in the unit of the value, names, and what is drawn."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mergekit_lines import figures
from mergekit_lines.evaluate import Metric
from mergekit_lines.search.axes import Axis, grid
from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.store import Record
from mergekit_lines.search.sweep import Point, Sweep
from mergekit_lines.search.telling import draw_sweep, short_names, with_error


def test_error_of_a_mean_is_that_of_its_examples() -> None:
    """Four scores: sample deviation over √4, by hand."""
    metric = Metric(2.5, True, (1.0, 2.0, 3.0, 4.0))
    assert metric.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert with_error(metric) == "2.5 ± 0.65"
    assert Metric(2.5, True).error is None
    assert with_error(Metric(2.5, True)) == "2.5"


def test_error_of_a_perplexity_has_its_unit() -> None:
    """The examples are in nats: d exp(m) = exp(m)·dm."""
    nats = (1.0, 1.2, 1.4)
    metric = Metric(math.exp(1.25), False, nats, exponential=True)
    assert metric.error == pytest.approx(math.exp(1.25) * 0.2 / math.sqrt(3))
    assert Metric.from_json(json.loads(json.dumps(metric.to_json()))) == metric


def test_short_names_are_folders_unless_two_are_alike() -> None:
    """The base is called base; equal folder names stay paths."""
    assert short_names(["/m/llama", "/m/a", "user/b"]) == {
        "/m/llama": "base",
        "/m/a": "a",
        "user/b": "b",
    }
    alike = ["/m/llama", "/m/1/tuned", "/m/2/tuned"]
    assert short_names(alike) == {"/m/llama": "base", alike[1]: alike[1], alike[2]: alike[2]}
    assert short_names(["x", "/m/base"])["/m/base"] == "/m/base"


def test_two_axes_are_drawn_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiNeS, uniform and unscaled, each score in the row and column of its own settings."""
    axes = (Axis("parameters.beta", (0.1, 0.2)), Axis("parameters.alpha", (1, 3, 2)))
    none = Record("validation", {}, None, {}, 0.0)
    points = []
    for settings in grid(axes):
        beta, alpha = settings["parameters.beta"], settings["parameters.alpha"]
        scores = {LINES: 10 * alpha + beta, UNIFORM: alpha - beta, UNSCALED: -alpha}
        points.append(Point(settings, dict.fromkeys(scores, none), scores))
    best = next(p for p in points if list(p.settings.values()) == [0.2, 3])
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(figures, "page", contextlib.nullcontext)  # the path for the figure
    monkeypatch.setattr(figures, "sweep_heat", lambda *told: drawn.append(told))
    draw_sweep(Sweep(axes, "mean", tuple(points), best, {}, {}, {}), Path("a.png"))
    grids = {
        "LiNeS": [[10.1, 30.1, 20.1], [10.2, 30.2, 20.2]],
        "uniform, equal mean": [[0.9, 2.9, 1.9], [0.8, 2.8, 1.8]],
        "unscaled": [[-1, -3, -2], [-1, -3, -2]],
    }
    [(path, x_name, xs, y_name, ys, given, chosen, metric)] = drawn
    assert (path, x_name, xs, y_name, ys) == (
        Path("a.png"), "alpha", (1, 3, 2), "beta", (0.1, 0.2),
    )  # fmt: skip
    assert list(given) == list(grids)
    for label, wanted in grids.items():
        assert given[label] == [pytest.approx(row) for row in wanted]
    assert (chosen, metric) == ((3, 0.2), "objective (mean)")
