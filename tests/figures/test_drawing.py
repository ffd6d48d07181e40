"""What any figure must be: readable, one file, refused where there is nothing to draw."""

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
from mergekit_lines.figures.drawing import numbers, wrapped
from tests.figures.pictures import (
    BASELINES,
    BETAS,
    FRONTS,
    GRIDS,
    LINES,
    LONG,
    NAN,
    crowded,
    front,
    heat,
    sweep,
    three,
)

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
    "curve": lambda: sweep(),
    "one point": lambda: sweep([0.3], {"m": {"LiNeS": ([71.0], [0.5])}}, 0.3, {}),
    "thousands": lambda: sweep([1000, 20000], {"m": {"LiNeS": ([12345.6, 0.5], None)}}, 1000, {}),
    "three panels": lambda: sweep(panels={m: MANY[m] for m in METRICS[:3]}),
    "four panels": lambda: sweep(panels=MANY, baselines=dict.fromkeys(METRICS, BASELINES)),
    "five panels of choices": lambda: sweep(
        LONG[:4], {f"metric {n}": LINES for n in range(5)}, LONG[0]
    ),
    "long names": lambda: sweep(
        LONG, {METRICS[1]: WORDY}, LONG[3], {METRICS[1]: {"a long base " * 6: 3.0}}
    ),
    "many points": lambda: sweep(
        np.linspace(0, 1, 60), {"m": {"LiNeS": (np.arange(60.0), None)}}, None, {}
    ),
    "uneven points": lambda: sweep(
        [0.001, 0.01, 0.1, 1.0], {"m": {"LiNeS": (np.arange(4.0), None)}}, 1.0, {}
    ),
    "heat 3 x 2": lambda: heat([0.2, 0.4, 0.6], [0.0, 0.5], GRIDS, (0.4, 0.0)),
    "heat 11 x 8": lambda: heat(
        np.linspace(0, 1, 11), np.linspace(0.1, 0.8, 8), three(11, 8), (0, 0.1)
    ),
    "heat 41 x 31": lambda: heat(
        np.linspace(0, 1, 41), np.linspace(0, 1.5, 31), three(41, 31), (0.5, 0.5)
    ),
    "heat of thousands": lambda: heat(np.linspace(0, 1, 11), [1, 2], three(11, 2, 400)),
    "heat of one": lambda: heat([0.1], [0.2], three(1, 1), (0.1, 0.2)),
    "heat of choices": lambda: heat(["sqrt", "cbrt"], ["ties", True], three(2, 2), ("sqrt", True)),
    "heat of long names": lambda: heat(
        LONG, LONG[:6], three(8, 6), (LONG[0], LONG[1]),
        (f"parameters.{LONG[0]}.{LONG[1]}.{LONG[2]}", f"parameters.{LONG[0]}"), METRICS[0],
    ),
    "few columns of long names": lambda: heat(
        [0.1, 0.2], LONG[:2], three(2, 2), (0.1, LONG[1]),
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
