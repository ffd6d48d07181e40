"""The figure of two rewards: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text

from tests.figures.pictures import ALL, FRONTS, crowded, front, lines_of


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
