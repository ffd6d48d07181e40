"""The story of forgetting, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import statistics
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.e2e import runner

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = ("animals", "plants", "tools")
TARGETS = ("animals", "plants")
SEEDS = 2


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    encoders: list[dict[str, Any]]


def start(folder: Path) -> runner.Result:
    flags = ("--tiny", "--folder", folder, "--seeds", str(SEEDS), "--num-threads", "1")
    command = (sys.executable, EXAMPLES / "forgetting.py", *flags)
    return runner.run(command, folder.parent, runner.ONE_THREAD)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run, of a random encoder."""
    folder = tmp_path_factory.mktemp("forgetting") / "work"
    text = start(folder).succeeded().stdout
    return Told(folder, text, json.loads((folder / "forgetting.json").read_text("utf-8")))


def ratios(encoder: dict[str, Any], accuracies: dict[str, float], kind: str) -> list[float]:
    """Accuracy on the target over the fine-tuned one's, on the others over the base's."""
    target, table = encoder["target"], encoder[kind]
    controls = [task for task in TASKS if task != target]
    base = table["pre-trained"]
    kept = statistics.fmean(accuracies[task] / base[task] for task in controls)
    return [accuracies[target] / table["fine-tuned"][target], kept]


def by_seed(told: Told, way: str, place: int) -> list[float]:
    return [
        statistics.fmean(
            ratios(encoder, encoder["test"][way], "test")[place]
            for encoder in told.encoders
            if encoder["seed"] == seed
        )
        for seed in range(SEEDS)
    ]


def test_every_encoder_is_edited(told: Told) -> None:
    """Each target with each seed; every way is measured on every task."""
    pairs = [(encoder["seed"], encoder["target"]) for encoder in told.encoders]
    assert pairs == [(seed, target) for seed in range(SEEDS) for target in TARGETS]
    for encoder in told.encoders:
        assert len(encoder["test"]) == 8
        for accuracies in encoder["test"].values():
            assert set(accuracies) == set(TASKS)
            assert all(0 <= value <= 1 for value in accuracies.values())


def test_the_choice_is_the_best_on_validation(told: Told) -> None:
    """2·M_target + M_control of every γ, by the validation accuracies: no test text has a say."""
    for encoder in told.encoders:

        def score(key: str, encoder: dict[str, Any] = encoder) -> float:
            target, control = ratios(encoder, encoder["validation"][key], "validation")
            return 2 * target + control

        ways = {
            "LiNeS": ["0,1", "0.5,1", "1,1"],
            "reversed": ["1,0", "1,0.5", "1,1"],
            "uniform, best": ["0.5,0.5", "0.75,0.75", "1,1"],
        }
        for way, keys in ways.items():
            best = max(map(score, keys))
            assert encoder["chosen"][way] in keys
            assert score(encoder["chosen"][way]) == pytest.approx(best)
        first, last = map(float, encoder["chosen"]["LiNeS"].split(","))
        mean = (first + last) / 2
        assert encoder["chosen"]["uniform, equal mean"] == f"{mean:g},{mean:g}"


def test_the_table_shows_the_means(told: Told) -> None:
    """Normalised accuracies, mean over targets, then mean and standard error over seeds."""
    for way in ("pre-trained", "fine-tuned", "LiNeS", "uniform, best", "LiNeS, outside 0"):
        (row,) = re.findall(rf"^{way}  +(\d.*±.*)$", told.text, re.MULTILINE)
        cells = re.split(r"  +", row.strip())
        for place in (0, 1):
            values = by_seed(told, way, place)
            error = statistics.stdev(values) / SEEDS**0.5
            assert cells[2 + place] == f"{100 * statistics.fmean(values):.1f} ± {100 * error:.1f}"


def test_the_differences_have_an_interval(told: Told) -> None:
    """LiNeS minus the uniform coefficient of equal mean: Student's t of one degree of freedom."""
    pairs = [
        zip(by_seed(told, "LiNeS", place), by_seed(told, "uniform, equal mean", place), strict=True)
        for place in (0, 1)
    ]
    part = told.text.split("LiNeS minus another way", 1)[1]
    (row,) = re.findall(r"^uniform, equal mean  +(.*)$", part, re.MULTILINE)
    cells = re.split(r"  +", row.strip())
    for pair, cell in zip(pairs, cells, strict=False):
        changes = [100 * (own - other) for own, other in pair]
        reach = 12.706 * statistics.stdev(changes) / 2**0.5
        mean = statistics.fmean(changes)
        assert cell == f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"


def test_figures_are_drawn(told: Told) -> None:
    """Two PNG files."""
    for name in ("forgetting-gammas.png", "forgetting-models.png"):
        assert (told.folder / name).read_bytes().startswith(b"\x89PNG")


def test_splits_share_no_source(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes take turns, pieces of one source stay together, and the seed shuffles."""
    data = modules("data")
    rows = [
        (f"text number {source} of {kind} piece {piece}", kind, str(source))
        for kind in ("one", "two")
        for source in range(20)
        for piece in range(3)
    ]
    task = SimpleNamespace(read=lambda _: iter(rows), prompts={"one": "first", "two": "second"})
    monkeypatch.setitem(data.TASKS, "made up", task)
    sizes = {"validation": 12, "test": 24, "train": 1000}
    splits = data.split("made up", Path(), sizes, 0)
    assert [len(splits[part]) for part in sizes] == [12, 24, 84]
    sources = {part: {(each.label, each.source) for each in splits[part]} for part in sizes}
    assert not sources["validation"] & sources["test"] | sources["test"] & sources["train"]
    assert sum(each.label for each in splits["validation"]) == 6
    assert data.split("made up", Path(), sizes, 0) == splits
    assert data.split("made up", Path(), sizes, 1) != splits


def test_cleaning(modules: Any) -> None:
    """Links, marks of retweets and names of accounts go; entities become characters."""
    clean = modules("data").clean
    assert clean("RT @united: late &amp; rude!  https://t.co/x1 #fail") == ": late & rude! #fail"


def test_weights_of_4_bits(modules: Any) -> None:
    """A group is a scale and 16 bytes: low halves, then high halves, each less 8."""
    stored = struct.pack("<e16B", 0.5, *(16 * (15 - byte) + byte for byte in range(16)))
    want = [0.5 * (value - 8) for value in [*range(16), *reversed(range(16))]]
    values = modules("_e5")._unpacked(stored)
    assert values.dtype == np.float32
    assert values.tolist() == want


def test_an_encoder_of_another_format_is_refused(modules: Any) -> None:
    """What begins otherwise is not read."""
    with pytest.raises(SystemExit, match="begins with b'GGUF', wanted b'E5S1'"):
        modules("_e5").read(b"GGUF" + bytes(64))


def test_few_seeds_show_nothing(modules: Any) -> None:
    """One seed has no interval; of several the sign of the interval decides."""
    stories: ModuleType = modules("_stories")
    one = stories.over_seeds([0.5])
    assert (one.text, one.interval, one.sign) == ("50.0", "+50.0", 0)
    values = {"up": [0.1, 0.12, 0.11], "open": [0.1, -0.1], "down": [-0.3, -0.31]}
    more = {name: stories.over_seeds(each) for name, each in values.items()}
    words = {1: "higher in", -1: "lower in", 0: "not told apart in"}
    told = stories.told_apart(more, words)
    assert told == "higher in up; lower in down; not told apart in open"


def test_intervals_reach_as_far_as_the_tables_of_t_say(modules: Any) -> None:
    """For many seeds too; the values are those that textbooks print."""
    stories: ModuleType = modules("_stories")
    printed = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 10: 2.228, 20: 2.086, 120: 1.980}
    assert {freedom: stories.reach_of(freedom) for freedom in printed} == printed
    eleven = stories.over_seeds([0.0] * 5 + [1.0] * 6)
    assert (eleven.high - eleven.low) / eleven.error == pytest.approx(2 * 2.228)
