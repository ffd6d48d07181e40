"""Pareto sets, hypervolumes and their bootstrap, against definitions, counts and known answers."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mergekit_lines.search.pareto import bootstrap, hypervolume, pareto_set


def dominated(points: np.ndarray, index: int) -> bool:
    """The definition, written out: some other point is as good in both and better in one."""
    x, y = points[index]
    return any(u >= x and v >= y and (u > x or v > y) for u, v in points)


def random_points(seed: int, count: int) -> np.ndarray:
    """Points of a coarse lattice: many equal coordinates and equal points."""
    return np.random.default_rng(seed).integers(0, 6, size=(count, 2)).astype(float)


# --- the set -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([], []),
        ([[2, 3]], [0]),
        ([[3, 1], [2, 2], [1, 3]], [2, 1, 0]),
        ([[1, 1], [2, 2]], [1]),
        ([[1, 2], [2, 2]], [1]),  # equal in one, lower in the other
        ([[2, 1], [2, 2]], [1]),
        ([[1, 1], [0, 2], [1, 1]], [1, 0]),  # of equal points the first
        ([[-1, -5], [-2, -4], [-3, -6]], [1, 0]),
    ],
)
def test_set_by_hand(points: list[list[float]], wanted: list[int]) -> None:
    """What no other point dominates, by the first coordinate."""
    assert pareto_set(points) == wanted


@pytest.mark.parametrize("seed", range(40))
def test_set_is_its_definition(seed: int) -> None:
    """The indices are those of the O(n²) definition, each value once, first coordinate rising."""
    points = random_points(seed, seed)
    found = pareto_set(points)
    wanted = [n for n in range(len(points)) if not dominated(points, n)]
    first = {tuple(points[n]): n for n in reversed(wanted)}
    assert sorted(found) == sorted(first.values())
    assert list(points[found, 0]) == sorted(points[found, 0])


# --- the area ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "reference", "wanted"),
    [
        ([], (0, 0), 0.0),
        ([[2, 3]], (0, 0), 6.0),
        ([[2, 3]], (1, 1), 2.0),
        ([[3, 1], [2, 2], [1, 3]], (0, 0), 6.0),  # steps of 3 + 2 + 1
        ([[3, 1], [2, 2], [1, 3], [1, 1], [2, 2]], (0, 0), 6.0),
        ([[5, -1], [-1, 5], [0, 4], [4, 0]], (0, 0), 0.0),  # not above in both
        ([[5, -1], [2, 1]], (0, 0), 2.0),
        ([[-1, -3], [-2, -1]], (-3, -4), 2 * 1 + 1 * 3 - 1 * 1),
    ],
)
def test_area_by_hand(
    points: list[list[float]], reference: tuple[float, float], wanted: float
) -> None:
    """Rectangles that can be added up by hand."""
    assert hypervolume(points, reference) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_area_is_a_count_of_cells(seed: int) -> None:
    """On a lattice the area is the number of unit cells that some point dominates."""
    points = random_points(seed, 2 + seed)
    reference = (seed % 3, seed % 2)
    cells = sum(
        bool(((points[:, 0] >= x + 1) & (points[:, 1] >= y + 1)).any())
        for x in range(reference[0], 6)
        for y in range(reference[1], 6)
    )
    assert hypervolume(points, reference) == cells


def test_area_is_a_share_of_random_points() -> None:
    """A Monte-Carlo estimate agrees within five of its standard errors."""
    rng = np.random.default_rng(3)
    points = rng.random((12, 2))
    thrown = rng.random((200_000, 2))
    share = (thrown[:, None, :] < points).all(-1).any(-1).mean()
    error = np.sqrt(share * (1 - share) / len(thrown))
    assert abs(hypervolume(points, (0, 0)) - share) < 5 * error


# --- the bootstrap -----------------------------------------------------------------------


def curve(bulge: float) -> np.ndarray:
    """Eleven points between (0, 1) and (1, 0)."""
    c = np.linspace(0, 1, 11)
    over = 4 * bulge * c * (1 - c)
    return np.stack([c + over, 1 - c + over], axis=-1)


def drawn(means: np.ndarray, prompts: int, rng: np.random.Generator, own: float) -> np.ndarray:
    """Scores [points, 2, prompts] of variance 1, a share ``own`` of it each point's own."""
    common = rng.normal(size=(1, 2, prompts))
    alone = rng.normal(size=(*means.shape, prompts))
    return means[:, :, None] + np.sqrt(1 - own) * common + np.sqrt(own) * alone


def test_what_it_tells_of_all_prompts() -> None:
    """Means, standard errors, set and areas are those of the scores, in the order given."""
    rng = np.random.default_rng(0)
    scores = {"LiNeS": rng.normal(size=(5, 2, 30)), "plain": rng.normal(size=(3, 2, 30))}
    told = bootstrap(scores, samples=50)
    assert list(told.fronts) == ["LiNeS", "plain"]
    everything = np.concatenate([one.mean(-1) for one in scores.values()])
    np.testing.assert_allclose(told.reference, [min(everything[:, 0]), min(everything[:, 1])])
    for name, front in told.fronts.items():
        means = scores[name].mean(-1)
        np.testing.assert_allclose(front.means, means)
        spread = ((scores[name] - means[..., None]) ** 2).sum(-1) / 29
        np.testing.assert_allclose(front.errors, np.sqrt(spread / 30))
        assert front.pareto == pareto_set(means)
        assert front.hypervolume == hypervolume(means, told.reference)
    (pair,) = told.differences
    assert pair == ("LiNeS", "plain")
    first, second = told.fronts.values()
    assert told.differences[pair].value == first.hypervolume - second.hypervolume


def test_basic_interval_written_out() -> None:
    """The intervals are those of drawing prompts one by one with the same counts."""
    rng = np.random.default_rng(1)
    scores = {name: drawn(curve(bulge), 9, rng, 0.5) for name, bulge in [("a", 0.3), ("b", 0.2)]}
    told = bootstrap(scores, (-1, -1), samples=40, seed=5, level=0.8)
    counts = np.random.default_rng(5).multinomial(9, [1 / 9] * 9, size=40)
    areas: dict[str, list[float]] = {"a": [], "b": []}
    for row in counts:
        chosen = [prompt for prompt, count in enumerate(row) for _ in range(count)]
        assert len(chosen) == 9
        for name, values in scores.items():
            areas[name].append(hypervolume(values[:, :, chosen].mean(-1), (-1, -1)))
    cases = [(told.fronts[name].hypervolume, told.fronts[name].interval) for name in "ab"]
    cases.append((told.differences["a", "b"].value, told.differences["a", "b"].interval))
    apart = np.subtract(areas["a"], areas["b"])
    for (value, interval), values in zip(cases, [areas["a"], areas["b"], apart], strict=True):
        low, high = np.quantile(values, [0.1, 0.9])
        np.testing.assert_allclose(interval, (2 * value - high, 2 * value - low))


def test_equal_fronts_differ_by_exactly_nothing() -> None:
    """The same prompts are drawn for all: the difference of equal fronts has no spread."""
    values = drawn(curve(0.3), 50, np.random.default_rng(2), 0.5)
    told = bootstrap({"a": values, "b": values.copy()}, (-1, -1))
    assert told.differences["a", "b"].value == 0
    assert told.differences["a", "b"].interval == (0, 0)
    low, high = told.fronts["a"].interval
    assert low < high
    assert told.fronts["a"].interval == told.fronts["b"].interval


def test_pairing_narrows_the_difference() -> None:
    """What every point shares of a prompt's luck falls out of a difference."""
    rng = np.random.default_rng(3)
    base = drawn(curve(0.3), 100, rng, 0.05)
    near = base - 0.05 + 0.05 * rng.normal(size=base.shape)
    told = bootstrap({"a": base, "b": near}, (-1, -1))

    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    assert (
        width(told.differences["a", "b"].interval)
        < width(bootstrap({"a": base}, (-1, -1)).fronts["a"].interval) / 5
    )
    assert told.differences["a", "b"].interval[0] > 0


def test_one_front_and_three() -> None:
    """One front has no differences; of three there are three, the first before the later ones."""
    values = drawn(curve(0.3), 20, np.random.default_rng(4), 0.5)
    assert bootstrap({"a": values}).differences == {}
    told = bootstrap({"z": values, "a": values[:1], "m": values[3:]}, samples=3)
    assert list(told.differences) == [("z", "a"), ("z", "m"), ("a", "m")]


@pytest.mark.parametrize("own", [0.2, 1.0])
def test_coverage(own: float) -> None:
    """Intervals of 95% hold the true area and the true difference in 95% of 300 repetitions.

    Three standard errors of the count at 95% are 3.8 points. Plain percentiles would hold the
    area only in about 70% with own = 1, because the area of noisy means is too large.
    """
    rng = np.random.default_rng(6)
    upper, lower, reference = curve(0.3), curve(0.2), (0.0, 0.0)
    area = hypervolume(upper, reference)
    apart = area - hypervolume(lower, reference)
    held = np.zeros(2)
    for seed in range(300):
        scores = {"a": drawn(upper, 200, rng, own), "b": drawn(lower, 200, rng, own)}
        told = bootstrap(scores, reference, samples=200, seed=seed)
        for place, told_of, true in [
            (0, told.fronts["a"], area),
            (1, told.differences["a", "b"], apart),
        ]:
            low, high = told_of.interval
            held[place] += low <= true <= high
    assert (held / 300 > 0.95 - 0.038).all(), held / 300


def test_seed() -> None:
    """One seed tells the same twice; another one does not."""
    values = {"a": drawn(curve(0.3), 50, np.random.default_rng(7), 0.5)}
    first, again, other = (bootstrap(values, (-1, -1), seed=seed) for seed in (1, 1, 2))
    assert first.fronts["a"].interval == again.fronts["a"].interval
    assert first.fronts["a"].interval != other.fronts["a"].interval


def test_an_area_is_never_below_nothing() -> None:
    """A point near the reference keeps its interval at or above zero."""
    values = drawn(np.array([[0.01, 0.01]]), 20, np.random.default_rng(8), 1.0)
    assert min(bootstrap({"a": values}, (0, 0)).fronts["a"].interval) >= 0


def test_intervals_of_a_soup_take_no_minutes() -> None:
    """1000 samples of 3 x 11 points and 200 prompts: a second of computing, or two."""
    rng = np.random.default_rng(9)
    scores = {name: drawn(curve(0.3), 200, rng, 0.5) for name in ("LiNeS", "plain", "uniform")}
    began = time.process_time()
    bootstrap(scores)
    assert time.process_time() - began < 20


SOUND = np.zeros((2, 2, 4))


@pytest.mark.parametrize(
    ("scores", "given", "wanted"),
    [
        ({}, {}, "scores: found no front, wanted at least one"),
        ({"a": []}, {}, "scores of 'a': found no point, wanted at least one"),
        ({"a": SOUND[..., 0]}, {}, "scores of 'a': found the shape [2, 2], wanted [points, 2, "),
        ({"a": np.zeros((2, 3, 4))}, {}, "found the shape [2, 3, 4], wanted [points, 2, prompts]"),
        ({"a": SOUND, "b": SOUND[..., :3]}, {}, "('a' has 4, 'b' has 3), wanted the same prompts"),
        ({"a": SOUND[..., :1]}, {}, "found 1 prompt, wanted at least 2"),
        ({"a": SOUND[..., :0]}, {}, "found 0 prompts, wanted at least 2"),
        ({"a": np.where(np.arange(4) == 2, np.nan, SOUND)}, {}, "found nan at [0, 0, 2] of "),
        ({"a": SOUND}, {"reference": (0, np.inf)}, "reference: found (0, inf), wanted two finite"),
        ({"a": SOUND}, {"reference": (0, 0, 0)}, "wanted two finite numbers"),
        ({"a": SOUND}, {"samples": 0}, "samples: found 0, wanted at least 1"),
        ({"a": SOUND}, {"level": 95}, "level: found 95, wanted a number between 0 and 1"),
    ],
)
def test_refusals(scores: dict[str, np.ndarray], given: dict[str, object], wanted: str) -> None:
    """What cannot be told is refused in words, never told as NaN."""
    with pytest.raises(ValueError, match="found") as caught:
        bootstrap(scores, **given)  # type: ignore[arg-type]
    assert wanted in str(caught.value)


def test_points_that_are_none() -> None:
    """A point that is no number has no place in a set or an area."""
    with pytest.raises(ValueError, match="points: found nan at \\[1, 0\\]"):
        pareto_set([[0, 1], [float("nan"), 2]])
    with pytest.raises(ValueError, match="points: found the shape \\[3\\], wanted \\[n, 2\\]"):
        hypervolume([1, 2, 3], (0, 0))
