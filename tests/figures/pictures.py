"""Figures of sweeps and soups, as the tests of this room draw them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergekit_lines import figures
from mergekit_lines.figures.drawing import new_figure
from mergekit_lines.figures.parts import DPI, TALL, WIDTH

NAN = float("nan")
BETAS = [0.1, 0.2, 0.3, 0.4]
LINES = {
    "LiNeS": ([70.0, 72.0, 73.5, 71.0], [0.5, 0.6, 0.4, 0.3]),
    "uniform, equal mean": ([70.5, 71.0, 70.0, 66.0], [0.5, 0.5, 0.5, 0.5]),
    "unscaled": ([69.0, 69.0, 69.0, 69.0], None),
}
BASELINES = {"base": 60.0, "fine-tuned": 80.0}
ALL = [0, 1, 2]
FRONTS = {
    "LiNeS": ([0, 0.5, 1], [0.0, 0.6, 1.1], [10.0, 8.0, -1.0], [0.1] * 3, [1.0] * 3, ALL),
    "plain": ([0, 0.5, 1], [0.1, 0.5, 0.4], [9.0, 7.0, 0.0], None, None, [0, 1]),
}
LONG = [f"a_choice_with_quite_a_long_name_{n}" for n in range(8)]


def sheet() -> Any:
    return new_figure("a.png", WIDTH, TALL, DPI)


def sweep(xs: Any = BETAS, panels: Any = None, chosen: Any = 0.3, baselines: Any = None) -> Any:
    figure = sheet()
    panels = panels or {"accuracy (%)": LINES}
    baselines = {"accuracy (%)": BASELINES} if baselines is None else baselines
    figures.sweep_panels(figure, "parameters.beta", xs, panels, chosen, baselines)
    return figure


def heat(
    xs: Any,
    ys: Any,
    grids: Any,
    chosen: Any = None,
    names: tuple[str, str] = ("beta", "alpha"),
    metric: str = "accuracy (%)",
) -> Any:
    figure = sheet()
    x_name, y_name = names
    figures.sweep_heat(figure, x_name, xs, y_name, ys, grids, chosen, metric)
    return figure


def three(columns: int, rows: int, scale: float = 1.0) -> dict[str, Any]:
    """Grids of LiNeS and of what stands beside it: rising, falling, and alike in each row."""
    cells = np.arange(columns * rows).reshape(rows, columns) * scale
    return {
        "LiNeS": 70 * scale + cells,
        "uniform, equal mean": 71 * scale - cells,
        "unscaled": np.broadcast_to(69 * scale + cells[:, :1], (rows, columns)),
    }


def front(
    fronts: Any = FRONTS, marks: Any = None, names: tuple[str, str] = ("joy", "length")
) -> Any:
    figure = sheet()
    figures.soup_front(figure, names, fronts, marks)
    return figure


def lines_of(axes: Any) -> dict[str, Any]:
    """The line artists of a panel by their label."""
    found = {container.get_label(): container.lines[0] for container in axes.containers}
    return found | {line.get_label(): line for line in axes.get_lines() if line not in found}


GRIDS = {
    "LiNeS": [[70.25, 71.5, NAN], [69.0, 68.125, 66.0]],
    "uniform, equal mean": [[70.0, 72.75, 60.5], [NAN, 61.0, 62.0]],
    "unscaled": [[69.7, 69.7, 69.7], [64.0, 64.0, 64.0]],
}


def crowded(seed: int, bars: bool) -> dict[str, Any]:
    """Three fronts of eleven points that lie among one another."""
    rng = np.random.default_rng(seed)
    c = np.linspace(0, 1, 11)
    errors = np.full(11, 0.05) if bars else None
    points = [(c + rng.normal(0, 0.06, 11), 1 - c**2 + rng.normal(0, 0.06, 11)) for _ in ALL]
    labels = ("LiNeS", "plain", "uniform, equal mean")
    return {
        label: (c, 1000 * x, y, errors if errors is None else 1000 * errors, errors, [0, 5, 10])
        for label, (x, y) in zip(labels, points, strict=True)
    }
