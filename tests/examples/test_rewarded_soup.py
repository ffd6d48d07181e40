"""The rewarded soup's example, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import importlib
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from mergekit_lines.search.pareto import Difference
from tests import models
from tests.e2e import runner

EXAMPLES = Path(__file__).parents[2] / "examples"
REWARDS = ("vader_compound", "minus_ari")
WAYS = ("LiNeS", "unscaled", "uniform, equal mean")


SEEDS = 2


class Told(NamedTuple):
    """What a run left and said of one seed."""

    folder: Path
    text: str
    records: list[dict[str, Any]]


class Run(NamedTuple):
    """What a run left and said: all of it, and of each seed."""

    folder: Path
    text: str
    seeds: list[Told]


def start(folder: Path) -> runner.Result:
    flags = ("--tiny", "--folder", folder, "--seeds", str(SEEDS))
    command = (sys.executable, EXAMPLES / "rewarded_soup.py", *flags)
    return runner.run(command, folder.parent, runner.ONE_THREAD)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run of two seeds, of a random LLaMA."""
    folder = tmp_path_factory.mktemp("soup") / "work"
    text = start(folder).succeeded().stdout
    seeds = []
    for seed in range(SEEDS):
        place = folder / "rewarded-soup" / f"seed-{seed}"
        lines = (place / "soup" / "results.jsonl").read_text(encoding="utf-8").splitlines()
        part = text.split(f"2/5  seed {seed}:", 1)[1].split("== 2/5", 1)[0].split("== 5/5", 1)[0]
        seeds.append(Told(place, part, [json.loads(line) for line in lines]))
    return Run(folder, text, seeds)


@pytest.fixture(params=range(SEEDS))
def told(whole: Run, request: pytest.FixtureRequest) -> Told:
    """One seed of that run."""
    return whole.seeds[request.param]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``examples/rewarded_soup.py`` as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield importlib.import_module("rewarded_soup")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]


def way_of(record: dict[str, Any]) -> str:
    """Which of the three ways a record was measured, by its coefficients."""
    parameters = record["recipe"]["parameters"]
    if parameters["beta"]:
        return "LiNeS"
    return "unscaled" if parameters["alpha"] == 1 else "uniform, equal mean"


def share_of(record: dict[str, Any]) -> float:
    return record["recipe"]["models"][0]["parameters"]["weight"]


def scores_of(record: dict[str, Any]) -> list[list[float]]:
    return [record["metrics"][name]["examples"] for name in REWARDS]


def points(told: Told, way: str) -> list[tuple[float, float]]:
    """The mean rewards of a way's points."""
    found = [r for r in told.records if "merge_method" in r["recipe"] and way_of(r) == way]
    assert sorted(map(share_of, found)) == [0, 0.5, 1]
    return [tuple(map(statistics.fmean, scores_of(record))) for record in found]


def test_the_table_shows_the_scores(told: Told) -> None:
    """Every point is there three ways, with the mean and the standard error of its scores."""
    shown = 0
    for record in told.records:
        if "merge_method" not in record["recipe"]:
            continue
        row = re.search(rf"^{share_of(record):g} +{way_of(record)} +(.*)$", told.text, re.MULTILINE)
        assert row
        mean, *cells = re.split(r"  +", row[1].strip())[:3]
        assert mean == ("1" if way_of(record) == "unscaled" else "1.5")
        for cell, scores in zip(cells, scores_of(record), strict=True):
            error = statistics.stdev(scores) / math.sqrt(len(scores))
            assert cell == f"{statistics.fmean(scores):.4g} ± {error:.2g}"
        shown += 1
    assert shown == 9


def test_the_change_from_the_base(told: Told) -> None:
    """The rewards of both policies and their differences from the base, prompt by prompt."""
    (base,) = [scores_of(record) for record in told.records if "model" in record["recipe"]]
    for policy, share in (("glad", 1), ("readable", 0)):
        (record,) = [
            record
            for record in told.records
            if "models" in record["recipe"]
            and (way_of(record), share_of(record)) == ("unscaled", share)
        ]
        want = []
        for after, before in zip(scores_of(record), base, strict=True):
            change = torch.tensor(after).double() - torch.tensor(before).double()
            error = change.std().item() / len(change) ** 0.5
            want.append(f"{statistics.fmean(after):.3f}, {change.mean():+.3f} ± {error:.3f}")
        (row,) = re.findall(rf"^   {policy} +\| (.*)$", told.text, re.MULTILINE)
        assert re.split(r"  +", row) == want


def test_hypervolumes(told: Told) -> None:
    """Areas above the worst means, counted strip by strip."""
    every = [point for way in WAYS for point in points(told, way)]
    worst = [min(values) for values in zip(*every, strict=True)]
    table = told.text.split("hypervolumes above", 1)[1]
    for way in WAYS:
        area, left = 0.0, worst[0]
        for x, _ in sorted(points(told, way)):
            height = max(y for right, y in points(told, way) if right >= x) - worst[1]
            area, left = area + (x - left) * height, x
        (shown,) = re.findall(rf"^{way} +([\d.e+-]+) +\S+ to \S+$", table, re.MULTILINE)
        assert float(shown) == pytest.approx(area, rel=1e-3)


def test_policies_learn_the_best(told: Told) -> None:
    """Of each prompt the best sample, by that policy's own reward; the loss falls."""
    samples = json.loads((told.folder / "samples" / "samples.json").read_text())
    assert {len(of_prompt) for of_prompt in samples} == {8}
    for policy, name in zip(("glad", "readable"), REWARDS, strict=True):
        note = json.loads((told.folder / policy / "made.json").read_text())
        assert note["chosen"] > note["drawn"]
        assert note["losses"][-1] < note["losses"][0]
        assert f"{name} of all samples {note['drawn']:.2f}" in told.text


@pytest.mark.parametrize("seed", range(3))
def test_held_out_prompts_are_held_out(example: ModuleType, seed: int) -> None:
    """No opening is there twice, what is measured on was not trained on; each seed has its own."""
    size = example.FULL
    training, held_out = example.prompts_of(size, seed)
    assert (len(training), len(held_out)) == (size.training, size.held_out)
    assert len({*training, *held_out}) == len(training) + len(held_out)
    assert (training, held_out) == example.prompts_of(size, seed)
    assert set(training) != set(example.prompts_of(size, seed + 1)[0])


def test_seeds_share_neither_prompts_nor_policies(whole: Run) -> None:
    """Each has its own held-out prompts in its own order, samples, and weights."""
    first, second = (seed.folder for seed in whole.seeds)
    for file in ("held_out.txt", "samples/samples.json", "glad/model.safetensors"):
        assert (first / file).read_bytes() != (second / file).read_bytes()


def area_of(changes: list[tuple[float, float]], lowest: list[float]) -> float:
    """The area that points dominate above the lowest values, counted strip by strip."""
    area, left = 0.0, lowest[0]
    for x, _ in sorted(changes):
        height = max(y for right, y in changes if right >= x) - lowest[1]
        area, left = area + (x - left) * height, x
    return area


def test_seeds_are_compared_above_one_reference(whole: Run) -> None:
    """Hypervolumes of the changes from each seed's base, and their difference over seeds.

    The interval is Student's t of one degree of freedom.
    """
    changes: list[dict[str, list[tuple[float, float]]]] = []
    for seed in whole.seeds:
        (record,) = [each for each in seed.records if "model" in each["recipe"]]
        base = [statistics.fmean(scores) for scores in scores_of(record)]
        changes.append(
            {way: [(x - base[0], y - base[1]) for x, y in points(seed, way)] for way in WAYS}
        )
    every = [point for of_seed in changes for way in WAYS for point in of_seed[way]]
    lowest = [min(values) for values in zip(*every, strict=True)]
    areas = {way: [area_of(of_seed[way], lowest) for of_seed in changes] for way in WAYS}
    end = whole.text.split("== 5/5", 1)[1]
    for way in WAYS:
        (row,) = re.findall(rf"^{way}  +(.*±.*)$", end, re.MULTILINE)
        *cells, _ = re.split(r"  +", row)
        assert cells == [f"{area:.3f}" for area in areas[way]]
    (row,) = re.findall(r"^mean, over seeds  +(.*)$", end, re.MULTILINE)
    for cell, way in zip(re.split(r"  +", row.strip()), WAYS[1:], strict=True):
        differences = [one - other for one, other in zip(areas["LiNeS"], areas[way], strict=True)]
        mean = statistics.fmean(differences)
        reach = 12.706 * statistics.stdev(differences) / 2**0.5
        shown = [float(number) for number in re.findall(r"[+-][\d.]+", cell)]
        assert shown == pytest.approx([mean, mean - reach, mean + reach], abs=6e-4)
    assert (whole.folder / "rewarded-soup" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_written_model(whole: Run) -> None:
    """The model of c = 0.5 is base + λ(ℓ)·(both task vectors)/2, with λ from 1 to 2."""
    place = whole.seeds[0].folder
    base, glad, readable = (
        {name: tensor.double() for name, tensor in models.read(folder).items()}
        for folder in (whole.folder / "base", place / "glad", place / "readable")
    )
    moved = 0
    for name, tensor in models.read(place / "soup-c0.5").items():
        block = re.search(r"layers\.(\d)\.", name)
        scale = 1 + int(block[1]) / 3 if block else 1.0
        change = 0.5 * (glad[name] - base[name]) + 0.5 * (readable[name] - base[name])
        assert models.max_error_ratio(tensor, base[name] + scale * change) <= 1e-6
        moved += not torch.equal(tensor.double(), base[name])
    assert moved == len(base)


def test_an_interrupted_run_goes_on(whole: Run) -> None:
    """With some points gone only these are measured again, to the same end."""
    place = whole.seeds[1].folder
    results = place / "soup" / "results.jsonl"
    before = results.read_text(encoding="utf-8")
    kept = before.splitlines(keepends=True)[:6]
    results.write_text("".join(kept) + '{"half', encoding="utf-8")
    folders = (whole.folder / "base", place / "glad", place / "readable")
    files = [folder / "model.safetensors" for folder in folders]
    times = [file.stat().st_mtime_ns for file in files]
    text = start(whole.folder).succeeded().stdout
    assert [file.stat().st_mtime_ns for file in files] == times
    again = results.read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:6] == kept

    def lasting(lines: list[str]) -> list[dict[str, Any]]:
        return [{**json.loads(line), "seconds": None} for line in lines]

    assert lasting(again) == lasting(before.splitlines())
    ends = [part.split("5/5", 1)[1].split("\nDone", 1)[0] for part in (whole.text, text)]
    assert ends[0] == ends[1]


def difference(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, (low, high))


MORE, LESS, OPEN = difference(1, 2), difference(-2, -1), difference(-1, 2)


@pytest.mark.parametrize(
    ("unscaled", "uniform", "sentences"),
    [
        (MORE, MORE, ("a larger area", "a larger area", "depth gave more than the larger step")),
        (MORE, OPEN, ("a larger area", "cannot tell", "of the depth nothing is shown")),
        (MORE, LESS, ("a larger area", "a smaller area", "going with the depth did not")),
        (OPEN, MORE, ("cannot tell", "a larger area")),
        (OPEN, OPEN, ("cannot tell", "cannot tell")),
        (LESS, OPEN, ("a smaller area", "cannot tell")),
    ],
)
def test_the_verdict(
    example: ModuleType, unscaled: Difference, uniform: Difference, sentences: tuple[str, ...]
) -> None:
    """What is said hangs on whether the intervals hold zero."""
    differences = {("LiNeS", "unscaled"): unscaled, ("LiNeS", "uniform, equal mean"): uniform}
    said = example.verdict(differences, "96 prompts")
    assert len(said) == len(sentences)
    for sentence, part in zip(said, sentences, strict=True):
        assert part in sentence
    low, high = unscaled.interval
    assert f"95% interval {low:+g} to {high:+g}" in said[0]


def test_readability(example: ModuleType) -> None:
    """4.71·strokes/words + 0.5·words/sentences - 21.43 (Smith and Senter, 1967), negated."""
    rewards = sys.modules["_rewards"]
    text = "The old cat sat on a warm mat. It slept until noon."  # 40 strokes, 12 words
    endless = " ".join(["internationalization"] * 5)
    found = rewards.minus_ari([], [text, endless, "No more.", ""])
    assert found == pytest.approx([21.43 - 4.71 * 40 / 12 - 0.5 * 12 / 2, -20, -20, -20])


def test_sentiment(example: ModuleType) -> None:
    """The two ends of the scale and two sentences from VADER's own documentation."""
    rewards = sys.modules["_rewards"]
    texts = ["VADER is smart, handsome, and funny.", "VADER is not smart, handsome, nor funny.", ""]
    assert rewards.vader_compound([], texts) == [0.8316, -0.7424, 0.0]


def test_the_best_of_equal_samples_is_the_first(example: ModuleType) -> None:
    """A policy learns one sample of every prompt."""
    policies = sys.modules["_policies"]
    drawn = [[policies.Sample([1], [2], text) for text in row] for row in ("abc", "de")]
    found = policies.best(drawn, [[0.0, 1.0, 1.0], [-1.0, -2.0]])
    assert [sample.text for sample in found] == ["b", "d"]
