"""The picture of ``inspect``: every coefficient is drawn, whatever the model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mergekit_lines.inspection import plot
from mergekit_lines.inspection.findings import Block, Coefficient, Container, Inspection, Outside
from tests.cases.case import Models
from tests.cases.recipes import recipe
from tests.inspection.command import inspect, write


def container(name: str, *values: Coefficient) -> Container:
    return Container(name, tuple(Block(n, (v,), 1, 1, 1) for n, v in enumerate(values, 1)))


def test_plot(sound: Models, tmp_path: Path) -> None:
    """--plot writes a PNG of the recipe's coefficients."""
    picture = tmp_path / "picture.png"
    result = inspect(write(tmp_path, recipe(sound)), "--plot", str(picture))
    assert result.exit_code == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_plot_draws_every_coefficient() -> None:
    """Each container is a line of its coefficients, each coefficient outside a mark."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    outside = (
        Outside("head", Coefficient(0.3), 1, 1),
        Outside("norm", Coefficient(0.3), 1, 1),
        Outside("embed", Coefficient(1.0), 1, 1),
    )
    containers = (
        container("encoder.block", Coefficient(0.3), Coefficient(0.4)),
        container("decoder.block", Coefficient(0.3), Coefficient(0.5), Coefficient(0.7)),
    )
    plot._panel(
        axes, plot.Panel.of(Inspection(None, "lines", containers=containers, outside=outside))
    )
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines["encoder.block"] == [0.3, 0.4]
    assert lines["decoder.block"] == [0.3, 0.5, 0.7]
    marks = [list(line.get_ydata()) for line in axes.get_lines() if line.get_marker() == "X"]
    assert marks == [[0.3], [1.0]]
    assert {"outside: λ = 0.3 (2 tensors)", "outside: λ = 1 (1 tensor)"} <= set(lines)


def test_plot_of_what_lies_on_itself() -> None:
    """Of two like towers the one below shows; a constant has some room; the last block a number."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    towers = [container(name, *[Coefficient(0.5)] * 30) for name in ("text", "vision")]
    plot._panel(axes, plot.Panel.of(Inspection(None, "lines", containers=tuple(towers))))
    above, below = (line for line in axes.get_lines() if line.get_label() in ("text", "vision"))
    assert below.get_zorder() < above.get_zorder()
    assert below.get_linewidth() > above.get_linewidth() + 1
    assert below.get_markersize() > above.get_markersize() + 1
    low, high = axes.get_ylim()
    assert (low, high) == pytest.approx((0.4, 0.6))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["1", "4", "8", "12", "16", "20", "24", "30"]


ALPHA = Coefficient(0.0, plus_alpha=True)


@pytest.mark.parametrize(
    ("inside", "outside", "drawn", "named"),
    [
        ((ALPHA, Coefficient(0.3)), Coefficient(0.5), [0.0], {"λ = 0.3 too", "λ = 0.5 (1 tensor)"}),
        ((Coefficient(0.3), Coefficient(0.6)), ALPHA, [0.3, 0.6], {"λ = α (1 tensor)"}),
    ],
)
def test_plot_mixes_no_axes(
    inside: tuple[Coefficient, ...], outside: Coefficient, drawn: list[float], named: set[str]
) -> None:
    """λ and λ − α do not share an axis: where filters give both, one of them is only named."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    containers = (Container("layers", (Block(1, inside, 1, 1, 1),)),)
    told = Inspection(None, "lines", containers=containers, outside=(Outside("o", outside, 1, 1),))
    plot._panel(axes, plot.Panel.of(told))
    assert [y for line in axes.get_lines() for y in line.get_ydata()] == drawn
    labels = {line.get_label().partition(": ")[2] for line in axes.get_lines()}
    assert labels == {"", *named}
    assert axes.get_ylabel().startswith("λ − α" if inside[0].plus_alpha else "coefficient λ")


def test_plot_of_odd_models(tmp_path: Path) -> None:
    """No blocks, thousands of them, odd names and many marks are drawn."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    outside = tuple(Outside(f"t{n}", Coefficient(n / 10), 1, 1) for n in range(12))
    plot._panel(axes, plot.Panel.of(Inspection(None, "lines", outside=outside)))
    assert axes.get_xlabel() == "no residual blocks were found"
    (marks,) = axes.get_lines()
    assert list(marks.get_ydata()) == [tensor.coefficient.value for tensor in outside]
    assert marks.get_label() == "outside: λ = 0 to 1.1 (12 tensors)"
    names = ("_orig_mod.layers", "$\\frac$.blocks")
    towers = tuple(container(name, *[Coefficient(0.5)] * 1300) for name in names)
    told = Inspection("$a", "lines", wraps=("$b",), containers=towers)
    plot.draw([plot.Panel.of(told)], tmp_path / "odd.png")
    assert (tmp_path / "odd.png").read_bytes().startswith(b"\x89PNG")
    axes = Figure().subplots()
    plot._panel(axes, plot.Panel.of(told))
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == list(names)


def test_plot_without_matplotlib(
    sound: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the extra is named, after the tables."""
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    result = inspect(write(tmp_path, recipe(sound)), "--plot", str(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert "mergekit-lines[plot]" in result.stderr
    assert "model.layers" in result.stdout
