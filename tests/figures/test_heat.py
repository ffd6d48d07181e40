"""The figure of two swept keys: what is drawn is what was given."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.figures.pictures import ALL, GRIDS, LONG, NAN, heat, three


def test_heat_draws_what_is_given() -> None:
    """Cells, their texts, the ring and the words are those that were passed, panel by panel."""
    figure = heat([0.1, 0.2, 0.3], [1, 2], GRIDS, (0.2, 1))
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
