"""The story of robust fine-tuning, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e import runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "robust.py"
SEEDS = 2
WAYS = ("WiSE-FT + LiNeS", "WiSE-FT", "WiSE-FT × 0.75")


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run, of a random encoder."""
    folder = tmp_path_factory.mktemp("robust") / "work"
    flags = ("--tiny", "--folder", folder, "--seeds", str(SEEDS), "--num-threads", "1")
    command = (sys.executable, EXAMPLE, *flags)
    text = runner.run(command, folder.parent, runner.ONE_THREAD).succeeded().stdout
    return Told(folder, text, json.loads((folder / "robust.json").read_text("utf-8")))


def chosen(row: dict[str, Any], way: str) -> dict[str, float]:
    """Test accuracies of a way at the c that was chosen, or of an encoder as it is."""
    name = f"{way}, c = {row['chosen'][way]:g}" if way in row["chosen"] else way
    accuracies: dict[str, float] = row["test"][name]
    return accuracies


def test_the_table_shows_the_means(told: Told) -> None:
    """Accuracy in distribution and under shift, mean and standard error over seeds."""
    assert [row["seed"] for row in told.rows] == list(range(SEEDS))
    for way in ("pre-trained", "fine-tuned", *WAYS):
        (cells,) = re.findall(rf"^{re.escape(way)}  +(\d.*±.*)$", told.text, re.MULTILINE)
        for task, cell in zip(("animals", "zoo"), re.split(r"  +", cells), strict=False):
            values = [100 * chosen(row, way)[task] for row in told.rows]
            error = statistics.stdev(values) / SEEDS**0.5
            assert cell == f"{statistics.fmean(values):.1f} ± {error:.1f}"


def test_the_whole_way_is_the_fine_tuned_encoder(told: Told) -> None:
    """At c = 1 WiSE-FT is what it began with; every way has its accuracies at every c."""
    for row in told.rows:
        assert row["test"]["WiSE-FT, c = 1"] == row["test"]["fine-tuned"]
        names = {f"{way}, c = {share}" for way in WAYS for share in ("0.5", "1")}
        assert set(row["test"]) == names | {"pre-trained", "fine-tuned"}


def test_the_choice_is_by_validation_in_distribution(told: Told) -> None:
    """The c of the highest accuracy on the source's validation texts, of equals the least."""
    for row in told.rows:
        path = told.folder / f"seed-{row['seed']}" / "robust" / "search" / "results.jsonl"
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert {record["split"] for record in records} == {"validation"}
        scores: dict[str, dict[float, float]] = {way: {} for way in WAYS}
        for record in records:
            if "parameters" not in record["recipe"]:
                continue
            words = record["recipe"]["parameters"]
            way = {(0.5, 0.5): WAYS[0], (1.0, 0.0): WAYS[1], (0.75, 0.0): WAYS[2]}
            share = record["recipe"]["models"][0]["parameters"]["weight"]
            accuracy = record["metrics"]["animals"]["value"]
            scores[way[words["alpha"], words["beta"]]][share] = accuracy
        for way, of_share in scores.items():
            best = max(of_share.values())
            least = min(share for share, score in of_share.items() if score == best)
            assert row["chosen"][way] == least


def test_the_figure_is_drawn(told: Told) -> None:
    """A PNG file."""
    assert (told.folder / "robust.png").read_bytes().startswith(b"\x89PNG")
