"""The story of soups, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e import runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "soups.py"
RUNS = ("run-1", "run-2", "run-3", "run-4")
WAYS = ("plain", "scaled evenly, best", "scaled evenly, equal mean", "LiNeS")


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    row: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run with one seed, of a random encoder."""
    folder = tmp_path_factory.mktemp("soups") / "work"
    flags = ("--tiny", "--folder", folder, "--seeds", "1", "--num-threads", "1")
    command = (sys.executable, EXAMPLE, *flags)
    text = runner.run(command, folder.parent, runner.ONE_THREAD).succeeded().stdout
    (row,) = json.loads((folder / "soups.json").read_text("utf-8"))
    return Told(folder, text, row)


def accuracies(told: Told, search: str) -> dict[str, float]:
    """Validation accuracy of the runs as they are, from the file of a search."""
    path = told.folder / "seed-0" / "soups" / search / "results.jsonl"
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert {record["split"] for record in records} == {"validation"}
    return {
        record["recipe"]["model"].removeprefix("./"): record["metrics"]["animals"]["value"]
        for record in records
        if "model" in record["recipe"]
    }


def test_the_table_shows_test_accuracies(told: Told) -> None:
    """Of the runs, and of both soups every way."""
    names = ["runs, mean", "best run by validation"]
    names += [f"{soup} soup, {way}" for soup in ("uniform", "greedy") for way in WAYS]
    assert list(told.row["test"]) == names
    for name in names:
        (cell,) = re.findall(rf"^{name}  +([\d.]+)", told.text, re.MULTILINE)
        assert cell == f"{100 * told.row['test'][name]:.1f}"


def test_the_best_run_is_chosen_by_validation(told: Told) -> None:
    """The greedy choice begins with it; the test accuracy in the table is that run's."""
    own = accuracies(told, "choice")
    assert set(own) - {"../base"} == set(RUNS)
    first = told.row["kept"][0]
    assert own[first] == max(own[name] for name in RUNS)
    inputs = json.loads((told.folder / "seed-0" / "inputs" / "test.json").read_text("utf-8"))
    assert told.row["test"]["best run by validation"] == inputs[json.dumps(f"./{first}")]["animals"]


def test_coefficients_are_chosen_by_validation(told: Told) -> None:
    """LiNeS at the β of the highest accuracy, of equals the least; scaled evenly likewise."""
    for soup, chosen in told.row["chosen"].items():
        scores = told.row["validation"][soup]
        means = [1.0, 1.25]  # 1 + β/2
        for way, key in (("LiNeS", "LiNeS"), ("scaled evenly, best", "uniform, equal mean")):
            best = scores[key].index(max(scores[key]))
            assert chosen[way] == pytest.approx(means[best])
        assert chosen["plain"] == 1
        assert chosen["scaled evenly, equal mean"] == chosen["LiNeS"]


def test_the_figure_is_drawn(told: Told) -> None:
    """A PNG file; one seed has no intervals to tell of."""
    assert (told.folder / "soups.png").read_bytes().startswith(b"\x89PNG")
    assert "By these intervals" not in told.text
