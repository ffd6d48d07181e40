"""The figure of one swept key: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures.pictures import ALL, BETAS, LINES, NAN, front, lines_of, sweep


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
