"""The figures of sweeps and soups: what is drawn is what was given, and can be read."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from mergekit_lines import figures
from mergekit_lines.errors import LinesError
from mergekit_lines.figures.drawing import new_figure, numbers, wrapped
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


def sweep(
    xs: Any = BETAS, panels: Any = None, chosen: Any = 0.3, baselines: Any = None, title: Any = None
) -> Any:
    figure = sheet()
    panels = panels or {"accuracy (%)": LINES}
    baselines = {"accuracy (%)": BASELINES} if baselines is None else baselines
    figures.sweep_panels(figure, "parameters.beta", xs, panels, chosen, baselines, title)
    return figure


def heat(
    xs: Any,
    ys: Any,
    grids: Any,
    chosen: Any = None,
    title: Any = None,
    names: tuple[str, str] = ("beta", "alpha"),
    metric: str = "accuracy (%)",
) -> Any:
    figure = sheet()
    x_name, y_name = names
    figures.sweep_heat(figure, x_name, xs, y_name, ys, grids, chosen, metric, title)
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


# --- one swept key -----------------------------------------------------------------------


def test_curve_draws_what_is_given() -> None:
    """Lines, error bars, levels and the ring are at the values that were passed."""
    (axes,) = sweep().axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert list(drawn) == list(LINES)
    for label, (ys, errors) in LINES.items():
        line, _, bars = drawn[label].lines
        assert line.get_xdata().tolist() == BETAS
        assert line.get_ydata().tolist() == ys
        assert len(bars) == (errors is not None)
        for bar in bars:
            ends = [[low, high] for (_, low), (_, high) in bar.get_segments()]
            wanted = [[y - e, y + e] for y, e in zip(ys, errors, strict=True)]
            np.testing.assert_allclose(ends, wanted)
    found = lines_of(axes)
    assert list(found["base: 60"].get_ydata()) == [60, 60]
    assert list(found["fine-tuned: 80"].get_ydata()) == [80, 80]
    ring = found["chosen: 0.3"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([0.3], [73.5])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("parameters.beta", "accuracy (%)")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "0.2", "0.3", "0.4"]


def test_curve_in_the_order_of_numbers() -> None:
    """Points measured in any order are joined from left to right, each with its own error."""
    panels = {"m": {"LiNeS": ([3.0, 1.0, 2.0], [0.3, 0.1, 0.2])}}
    (axes,) = sweep([0.3, 0.1, 0.2], panels, 0.2, {}).axes
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_xdata().tolist() == [0.1, 0.2, 0.3]
    assert line.get_ydata().tolist() == [1.0, 2.0, 3.0]
    spans = [high - low for (_, low), (_, high) in bars.get_segments()]
    np.testing.assert_allclose(spans, [0.2, 0.4, 0.6])
    ring = lines_of(axes)["chosen: 0.2"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([0.2], [2.0])


def test_choices_have_no_order() -> None:
    """Texts stand evenly under their points, which are side by side and not joined."""
    panels = {"m": {"LiNeS": ([1.0, 2.0], None), "unscaled": ([1.0, 1.5], None)}}
    (axes,) = sweep(["sqrt", "linear"], panels, "linear", {}).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["sqrt", "linear"]
    first, second = (container.lines[0] for container in axes.containers)
    assert first.get_linestyle() == second.get_linestyle() == "None"
    assert (first.get_xdata() < second.get_xdata()).all()
    assert np.abs(first.get_xdata() - [0, 1]).max() < 0.3
    ring = lines_of(axes)["chosen: linear"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (first.get_xdata()[1], 2.0)


def test_panels() -> None:
    """A panel for each metric in the order given; of three the first is as wide as the others."""
    panels = {f"metric {n}": {k: (np.add(y, n), e) for k, (y, e) in LINES.items()} for n in ALL}
    figure = sweep(panels=panels, baselines={"metric 1": {"base": 61.0}})
    assert [axes.get_ylabel() for axes in figure.axes] == list(panels)
    for n, axes in enumerate(figure.axes):
        assert lines_of(axes)["LiNeS"].get_ydata().tolist() == [y + n for y in LINES["LiNeS"][0]]
        assert lines_of(axes)["chosen: 0.3"].get_ydata()[0] == 73.5 + n
        assert ("base" in lines_of(axes)) == (n == 1)
    boxes = [axes.get_position() for axes in figure.axes]
    assert boxes[0].x0 == pytest.approx(boxes[1].x0)
    assert boxes[0].x1 == pytest.approx(boxes[2].x1)
    assert boxes[1].y0 == pytest.approx(boxes[2].y0)
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [*LINES, "base", "chosen: 0.3"]


def test_points_that_were_not_measured() -> None:
    """NaN leaves a gap; a line without any point is said to be missing."""
    lines = {"LiNeS": ([1.0, NAN, 3.0, 4.0], None), "unscaled": ([NAN] * 4, None)}
    figure = sweep(panels={"m": lines}, baselines={})
    assert np.isnan(lines_of(figure.axes[0])["LiNeS"].get_ydata()[1])
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["LiNeS", "unscaled (not measured)", "chosen: 0.3"]


def test_one_look_for_one_line() -> None:
    """A line has its colour and marker in every figure, and no two of one figure share them."""
    curve, soup = lines_of(sweep().axes[0]), lines_of(front().axes[0])
    assert curve["LiNeS"].get_color() == soup["LiNeS"].get_color()
    looks = {(curve[label].get_color(), curve[label].get_marker()) for label in LINES}
    assert len(looks) == 3
    assert len({color for color, _ in looks}) == len({marker for _, marker in looks}) == 3


# --- two swept keys ----------------------------------------------------------------------


GRIDS = {
    "LiNeS": [[70.25, 71.5, NAN], [69.0, 68.125, 66.0]],
    "uniform, equal mean": [[70.0, 72.75, 60.5], [NAN, 61.0, 62.0]],
    "unscaled": [[69.7, 69.7, 69.7], [64.0, 64.0, 64.0]],
}


def test_heat_draws_what_is_given() -> None:
    """Cells, their texts, the ring and the words are those that were passed, panel by panel."""
    figure = heat([0.1, 0.2, 0.3], [1, 2], GRIDS, (0.2, 1), "T")
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == [
        "LiNeS\nbest 71.50", "uniform, equal mean\nbest 72.75", "unscaled\nbest 69.70",
    ]  # fmt: skip
    for axes, grid in zip(panels, GRIDS.values(), strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array().filled(NAN), grid)
        assert image.origin == "lower"
    texts = [{text.get_position(): text.get_text() for text in axes.texts} for axes in panels]
    assert texts == [
        {(0, 0): "70.25", (1, 0): "71.50", (0, 1): "69.00", (1, 1): "68.12", (2, 1): "66.00"},
        {(0, 0): "70.00", (1, 0): "72.75", (2, 0): "60.50", (1, 1): "61.00", (2, 1): "62.00"},
        {(n, m): text for n in ALL for m, text in enumerate(["69.70", "64.00"])},
    ]
    rings = [[patch.get_xy() for patch in axes.patches] for axes in panels]
    assert rings == [[(0.5, -0.5)] * 2, [], []]  # a white one beneath the dark
    told = [text.get_text().replace("\u00a0", " ") for text in figure.legends[0].get_texts()]
    assert told == ["chosen: beta = 0.2, alpha = 1", "not measured"]
    assert figure.get_suptitle() == "T"
    (whole,) = figure.subfigs
    assert (whole.get_supxlabel(), whole.get_supylabel()) == ("beta", "alpha")
    assert bar.get_ylabel() == "accuracy (%)"


def test_heat_has_one_scale() -> None:
    """The same value has the same colour in every panel, from the least to the greatest of all."""
    *panels, bar = heat([0.1, 0.2, 0.3], [1, 2], GRIDS).axes
    images = [axes.get_images()[0] for axes in panels]
    assert [image.get_clim() for image in images] == [(60.5, 72.75)] * 3
    assert {image.cmap.name for image in images} == {"cividis"}
    assert bar.get_ylim() == (60.5, 72.75)


@pytest.mark.parametrize(
    ("xs", "ys", "beside"),
    [
        ([0.1, 0.2, 0.3], [0.0, 0.5], True),
        (["sqrt", "cbrt"], ["ties", "linear"], True),
        ([0.1, 0.2, 0.3], np.linspace(0, 1, 20), True),
        (np.linspace(0, 1, 11), [0.0, 0.5], False),
        (LONG[:3], [0.0, 0.5], False),
    ],
)
def test_heat_side_by_side(xs: Any, ys: Any, beside: bool) -> None:
    """Panels of few columns stand side by side, others one above the other, all of one size."""
    *panels, _ = heat(xs, ys, three(len(xs), len(ys))).axes
    boxes = [axes.get_position().bounds for axes in panels]
    lefts, bottoms, widths, heights = (list(known) for known in zip(*boxes, strict=True))
    same, apart = (bottoms, lefts) if beside else (lefts, [-bottom for bottom in bottoms])
    assert same == pytest.approx([same[0]] * 3)
    assert apart == sorted(apart) and len(set(apart)) == 3
    assert widths == pytest.approx([widths[0]] * 3)
    assert heights == pytest.approx([heights[0]] * 3)
    assert [len(axes.texts) for axes in panels] == [len(xs) * len(ys)] * 3


def test_heat_without_any_of_one() -> None:
    """A panel without any point says so; the others go on."""
    *panels, _ = heat([1], [1], {"LiNeS": [[0.5]], "unscaled": [[NAN]]}).axes
    assert [axes.get_title() for axes in panels] == [
        "LiNeS\nbest 0.5000", "unscaled\nnot measured",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.65384, "0.6538"), (71.5, "71.50"), (-25021.4, "−25,021"), (0, "0"), (1.2e-9, "1.2e−09")],
)
def test_value_of_a_cell(value: float, wanted: str) -> None:
    """Four digits, in full unless there are too many zeros before them."""
    axes, _ = heat([1], [1], {"LiNeS": [[value]]}).axes
    assert [text.get_text() for text in axes.texts] == [wanted]
    assert axes.get_title() == f"LiNeS\nbest {wanted}"


def test_heat_of_many_cells() -> None:
    """Values are left out where they would not fit, and so are some of the numbers beside."""
    *panels, _ = heat(np.linspace(0, 1, 41), np.linspace(0, 1, 41), three(41, 41)).axes
    assert not any(axes.texts for axes in panels)
    ticks = [tick.get_text() for tick in panels[-1].get_xticklabels()]
    assert ticks[:3] == ["0.0", "0.1", "0.2"]


def test_heat_of_another_shape() -> None:
    """Rows are y and columns x, or the grid is refused by its name."""
    with pytest.raises(ValueError, match=re.escape("unscaled: found [2, 3], wanted [3, 2]")):
        heat([1, 2], [1, 2, 3], {"LiNeS": np.zeros((3, 2)), "unscaled": np.zeros((2, 3))})


# --- two rewards -------------------------------------------------------------------------


def test_front_draws_what_is_given() -> None:
    """The Pareto set is joined and filled, the rest hollow, with error bars and c beside."""
    axes = front(marks={"base": (0.2, 1.0)}).axes[0]
    found = lines_of(axes)
    for label, (_, xs, ys, _, _, pareto) in FRONTS.items():
        assert found[label].get_xdata().tolist() == [xs[n] for n in pareto]
        assert found[label].get_ydata().tolist() == [ys[n] for n in pareto]
        assert found[label].get_markerfacecolor() == found[label].get_color()
        hollow = [
            line
            for line in axes.get_lines()
            if line.get_markeredgecolor() == found[label].get_color() and line is not found[label]
            if line.get_markerfacecolor() == "white"
        ]
        points = [pair for line in hollow for pair in zip(*line.get_data(), strict=True)]
        assert points == [(xs[n], ys[n]) for n in ALL if n not in pareto]
    bars = [bar.get_segments() for bar in axes.collections]
    np.testing.assert_allclose(bars[0][1], [[0.5, 8], [0.7, 8]])
    np.testing.assert_allclose(bars[1][1], [[0.6, 7], [0.6, 9]])
    assert found["base"].get_data() == ([0.2], [1.0])
    written = sorted((text.get_text(), text.xy) for text in axes.texts)
    wanted = [(c, x, y) for cs, xs, ys, *_ in FRONTS.values() for c, x, y in zip(cs, xs, ys)]  # noqa: B905
    assert written == sorted((f"c = {c:g}", (x, y)) for c, x, y in wanted)
    told = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert told == ["LiNeS", "plain", "base", "dominated"]


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


@pytest.mark.parametrize("seed", range(3))
def test_c_covers_no_point(seed: int) -> None:
    """The values of c lie beside every marker, and both ends of LiNeS have one."""
    axes = front(crowded(seed, bars=True)).axes[0]
    axes.figure.draw_without_rendering()
    scale = axes.figure.dpi / 72
    points = np.concatenate([np.column_stack(f[1:3]) for f in crowded(seed, bars=True).values()])
    for x, y in axes.transData.transform(points):
        for text in axes.texts:
            box = Text.get_window_extent(text)
            reach = 3 * scale  # of a marker of 6 points
            beside = box.x1 < x - reach or box.x0 > x + reach
            assert beside or box.y1 < y - reach or box.y0 > y + reach
    assert {text.get_text() for text in axes.texts} == {"c = 0", "c = 0.5", "c = 1"}
    colours = [text.get_color() for text in axes.texts]
    assert colours.count(lines_of(axes)["LiNeS"].get_color()) == 3


# --- what any figure must be -------------------------------------------------------------

METRICS = [
    "objective: 2 · normalised target accuracy + normalised control accuracy",
    "exact match of a task of long name, 25-shot, normalised (%)",
    "perplexity",
    "control (%)",
]
MANY = {metric: {k: (np.multiply(y, 400), e) for k, (y, e) in LINES.items()} for metric in METRICS}
WORDY = {
    "LiNeS with a label that goes on and on, and does not end before the line does": (
        np.arange(8.0), np.ones(8)
    ),
    "the uniform coefficient of equal mean, in many words": (np.arange(8.0) - 1, None),
}  # fmt: skip
CASES: dict[str, Callable[[], Any]] = {
    "curve": lambda: sweep(title="A sweep"),
    "one point": lambda: sweep([0.3], {"m": {"LiNeS": ([71.0], [0.5])}}, 0.3, {}),
    "thousands": lambda: sweep([1000, 20000], {"m": {"LiNeS": ([12345.6, 0.5], None)}}, 1000, {}),
    "three panels": lambda: sweep(panels={m: MANY[m] for m in METRICS[:3]}, title="T " * 90),
    "four panels": lambda: sweep(panels=MANY, baselines=dict.fromkeys(METRICS, BASELINES)),
    "five panels of choices": lambda: sweep(
        LONG[:4], {f"metric {n}": LINES for n in range(5)}, LONG[0]
    ),
    "long names": lambda: sweep(
        LONG, {METRICS[1]: WORDY}, LONG[3], {METRICS[1]: {"a long base " * 6: 3.0}}, "T " * 90
    ),
    "many points": lambda: sweep(
        np.linspace(0, 1, 60), {"m": {"LiNeS": (np.arange(60.0), None)}}, None, {}
    ),
    "uneven points": lambda: sweep(
        [0.001, 0.01, 0.1, 1.0], {"m": {"LiNeS": (np.arange(4.0), None)}}, 1.0, {}
    ),
    "heat 3 x 2": lambda: heat([0.2, 0.4, 0.6], [0.0, 0.5], GRIDS, (0.4, 0.0)),
    "heat 11 x 8": lambda: heat(
        np.linspace(0, 1, 11), np.linspace(0.1, 0.8, 8), three(11, 8), (0, 0.1), "T"
    ),
    "heat 41 x 31": lambda: heat(
        np.linspace(0, 1, 41), np.linspace(0, 1.5, 31), three(41, 31), (0.5, 0.5)
    ),
    "heat of thousands": lambda: heat(np.linspace(0, 1, 11), [1, 2], three(11, 2, 400)),
    "heat of one": lambda: heat([0.1], [0.2], three(1, 1), (0.1, 0.2)),
    "heat of choices": lambda: heat(["sqrt", "cbrt"], ["ties", True], three(2, 2), ("sqrt", True)),
    "heat of long names": lambda: heat(
        LONG, LONG[:6], three(8, 6), (LONG[0], LONG[1]), "T " * 90,
        (f"parameters.{LONG[0]}.{LONG[1]}.{LONG[2]}", f"parameters.{LONG[0]}"), METRICS[0],
    ),
    "few columns of long names": lambda: heat(
        [0.1, 0.2], LONG[:2], three(2, 2), (0.1, LONG[1]), "T " * 90,
        (f"parameters.{LONG[0]}.{LONG[1]}.{LONG[2]}", f"parameters.{LONG[0]}"), METRICS[0] * 2,
    ),
    "front": front,
    "front of one": lambda: front({"LiNeS": ([0.5], [0.1], [0.2], [0.01], [0.02], [0])}),
    "crowded front": lambda: front(crowded(0, bars=True), {"base": (0.0, 0.0)}, (METRICS[0],) * 2),
    "crowded front without bars": lambda: front(crowded(1, bars=False)),
    "front with a gap": lambda: front(
        {"LiNeS": ([0, 0.5, 1], [0.1, NAN, 0.4], [0.9, NAN, 0.3], None, None, [0, 2])}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_word_can_be_read(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts lie within the figure, none over another, none smaller than 6.5 points."""
    figure = CASES[case]()
    drawn: list[Text] = []
    draw = Text.draw

    def noted(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", noted)
    figure.draw_without_rendering()
    assert len(drawn) > 4
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in drawn]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (one, other)
    assert min(text.get_fontsize() for text in drawn) >= 6.5
    assert min(axes.get_window_extent().height for axes in figure.axes) >= 1.9 * figure.dpi


def saved(call: Callable[..., None], path: Path) -> None:
    """Each of the four pictures, drawn as a command draws it."""
    with figures.page(path) as figure:
        call(figure)


def one_panel(figure: Any) -> None:
    panels = {"accuracy (%)": LINES}
    figures.sweep_panels(figure, "beta", BETAS, panels, 0.3, {"accuracy (%)": BASELINES})


def two_panels(figure: Any) -> None:
    panels = {"a": LINES, "b": LINES}
    figures.sweep_panels(figure, "beta", BETAS, panels, 0.3, {"a": BASELINES})


def two_maps(figure: Any) -> None:
    grids = {"LiNeS": [[1.0, 2.0]], "unscaled": [[0.5, 1.5]]}
    figures.sweep_heat(figure, "beta", [1, 2], "alpha", [3], grids, (1, 3), "accuracy")


def two_fronts(figure: Any) -> None:
    figures.soup_front(figure, ("joy", "length"), FRONTS)


FOUR = [one_panel, two_panels, two_maps, two_fronts]


@pytest.mark.parametrize("call", FOUR)
def test_file(call: Callable[..., None], tmp_path: Path) -> None:
    """Each picture is one PNG file, 1,600 pixels wide and higher than 600."""
    saved(call, tmp_path / "a.png")
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.rstrip().endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1600
    assert 600 < height < 1600


def test_size_of_the_file(tmp_path: Path) -> None:
    """The file has the pixels of the figure: axes of 3.3 inches at 200 dots per inch, and texts."""
    saved(one_panel, tmp_path / "a.png")
    figure = sweep()
    (axes,) = figure.axes
    assert axes.get_window_extent().height == pytest.approx(3.3 * 200, abs=4)
    _, height = struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24])
    assert height == pytest.approx(figure.bbox.height, abs=2)


@pytest.mark.parametrize("call", FOUR)
def test_without_matplotlib(
    call: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the extra is named, and no file is left."""
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    path = tmp_path / "a.png"
    with pytest.raises(LinesError) as caught:
        saved(call, path)
    assert re.fullmatch(
        rf"\[lines\] {re.escape(str(path))}: matplotlib is not installed \(.+\)\. "
        r"Install it with `pip install 'mergekit-lines\[plot\]'`\.",
        str(caught.value.message),
    )
    assert not path.exists()


@pytest.mark.parametrize("call", FOUR)
def test_file_that_cannot_be_written(call: Callable[..., None], tmp_path: Path) -> None:
    """A path that is a folder is refused in words."""
    with pytest.raises(LinesError) as caught:
        saved(call, tmp_path)
    wanted = f"[lines] {tmp_path}: cannot be written (Is a directory). Choose another file."
    assert caught.value.message == wanted


def test_nothing_to_draw() -> None:
    """A figure without any point is refused, not drawn empty."""
    wanted = "a.png: there is nothing to draw: no point has a value yet"
    with pytest.raises(LinesError, match=wanted):
        sweep([0.3], {"m": {"LiNeS": ([NAN], None)}}, None, {})
    with pytest.raises(LinesError, match=wanted):
        heat([1], [1], {"LiNeS": [[NAN]], "unscaled": [[NAN]]})
    with pytest.raises(LinesError, match=wanted):
        front({"LiNeS": ([], [], [], None, None, [])})


def test_importing_needs_no_matplotlib() -> None:
    """matplotlib is imported where a figure is made, not before."""
    code = "import sys, mergekit_lines.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.1, 0.5, 1], ["0.1", "0.5", "1.0"]),
        ([1000, 25000], ["1,000", "25,000"]),
        ([-0.25, 0, 0.25], ["−0.25", "0.00", "0.25"]),
        ([0.30000000000000004], ["0.3"]),
        ([1e-9, 1.0], ["1e−09", "1"]),
        ([-0.0], ["0"]),
    ],
)
def test_numbers(values: list[float], wanted: list[str]) -> None:
    """The numbers of an axis share their decimals, and their thousands are parted."""
    assert numbers(values) == wanted


@pytest.mark.parametrize(
    ("text", "width", "wanted"),
    [
        ("short", 10, "short"),
        ("two words", 6, "two\nwords"),
        ("parameters.alpha_of_all", 12, "parameters.\nalpha_of_all"),
        ("abcdefghij", 4, "abcd\nefgh\nij"),
        ("a $5 bill and $6", 40, r"a \$5 bill and \$6"),
        ("", 5, ""),
    ],
)
def test_wrapped(text: str, width: int, wanted: str) -> None:
    """Lines break at spaces, then within names, and a dollar begins no formula."""
    assert wrapped(text, width) == wanted
