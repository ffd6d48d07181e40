"""Axes of a sweep: what ``--set`` may say, and the grid that comes of it."""

from __future__ import annotations

import re

import pytest

from mergekit_lines import LinesError
from mergekit_lines.search.axes import grid, parse_axis


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("parameters.beta=0.1:1.0:0.1", "parameters.beta", [k / 10 for k in range(1, 11)]),
        ("beta=0:1:0.25", "parameters.beta", [0, 0.25, 0.5, 0.75, 1]),
        ("beta=1:0:-0.5", "parameters.beta", [1, 0.5, 0]),
        ("num_blocks=2:6:2", "parameters.num_blocks", [2, 4, 6]),
        ("beta=0.3:0.3:1", "parameters.beta", [0.3]),
        ("beta=0:1:0.4", "parameters.beta", [0, 0.4, 0.8]),
        ("schedule=linear,sqrt,2", "parameters.schedule", ["linear", "sqrt", 2]),
        ("alpha=1e-3,auto", "parameters.alpha", [0.001, "auto"]),
        (
            "schedule=0.1,0.5;0.3, 0.3 ;linear;2",
            "parameters.schedule",
            ["0.1,0.5", "0.3, 0.3", "linear", 2],
        ),
        ("schedule=0.1, 0.5;", "parameters.schedule", ["0.1, 0.5"]),
        ("models[1].parameters.weight=0.5,1", "models.1.parameters.weight", [0.5, 1]),
        ("parameters.normalize=true,false", "parameters.normalize", [True, False]),
    ],
)
def test_reads_an_axis(text: str, key: str, values: list[object]) -> None:
    """A range holds both ends in decimal steps; a list holds numbers and words."""
    axis = parse_axis(text)
    assert axis.key == key
    assert list(axis.values) == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("beta", "wanted KEY=START:STOP:STEP or KEY=VALUE"),
        ("beta=", "wanted KEY=START:STOP:STEP"),
        ("=1,2", "wanted KEY=START:STOP:STEP"),
        ("beta=0:1", "found '0:1', wanted START:STOP:STEP"),
        ("beta=0:1:0", "a STEP that leads from START to STOP"),
        ("beta=0:1:-0.1", "a STEP that leads from START to STOP"),
        ("beta=a:b:c", "three numbers"),
        ("beta=0:nan:1", "three numbers"),
        ("beta=0:1:5", "the STEP 5 leads past 1 at once, so that 0 is the only value"),
        ("beta=0:1:1e-9", "1,000,000,001 values, wanted 10,000 at most"),
        ("beta=0:1:1e-99999", "1.0e+99999 values, wanted 10,000 at most"),
        ("beta=0:1:1e-9999999", "a STEP that leads from START to STOP"),
        ("beta=1e999:1e999:1", "three numbers"),
        ("beta=2020-13-45", "found '2020-13-45' among the values"),
        ("beta=1," + "9" * 5000, "among the values, wanted finite numbers"),
        ("beta=0.1,0.1", "a value stands there twice"),
        ("beta=1,,2", "found '' among the values"),
        ("schedule=0.1,0.5;;2", "found '' among the values"),
        ("beta=[1],2", "found '[1]' among the values"),
        ("beta=.inf,1", "found '.inf' among the values"),
    ],
)
def test_refuses_what_is_no_axis(text: str, told: str) -> None:
    """A slip in --set is told with what was found and what is wanted."""
    with pytest.raises(LinesError, match=re.escape(told)) as found:
        parse_axis(text)
    assert f"--set {text}" in str(found.value)


def test_grid_has_every_pair_with_the_first_axis_slowest() -> None:
    """Two axes give all pairs of their values."""
    points = grid([parse_axis("beta=1,2"), parse_axis("alpha=3,4,5")])
    pairs = [(b, a) for b in (1, 2) for a in (3, 4, 5)]
    assert points == [{"parameters.beta": b, "parameters.alpha": a} for b, a in pairs]


def test_grid_refuses_no_three_and_equal_axes() -> None:
    """One or two different keys make a grid."""
    axis, other = parse_axis("beta=1,2"), parse_axis("parameters.beta=3,4")
    third = parse_axis("alpha=1,2")
    with pytest.raises(LinesError, match="found 0 axes, wanted one or two"):
        grid([])
    with pytest.raises(LinesError, match="found 3 axes"):
        grid([axis, third, parse_axis("outside=1,2")])
    with pytest.raises(LinesError, match=re.escape("found parameters.beta twice")):
        grid([axis, other])
