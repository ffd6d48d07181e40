"""The story of many tasks, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e import runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "many_tasks.py"
TASKS = ("animals", "plants")
WAYS = ("plain", "uniform, best", "uniform, equal mean", "LiNeS")


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    inputs: dict[str, Any]
    merges: list[dict[str, Any]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run with one seed, of a random encoder."""
    folder = tmp_path_factory.mktemp("many") / "work"
    flags = ("--tiny", "--folder", folder, "--seeds", "1", "--num-threads", "1")
    command = (sys.executable, EXAMPLE, *flags)
    text = runner.run(command, folder.parent, runner.ONE_THREAD).succeeded().stdout
    report = json.loads((folder / "many-tasks.json").read_text("utf-8"))
    (inputs,) = report["inputs"]
    return Told(folder, text, inputs, report["merges"])


def records(told: Told, merge: str) -> list[dict[str, Any]]:
    """What a search measured."""
    name = merge.replace(", ", "-").replace(" ", "-").replace("'", "")
    path = told.folder / "seed-0" / "many-tasks" / name / "search" / "results.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_table_shows_normalised_accuracies(told: Told) -> None:
    """The mean over tasks of the merge's test accuracy over the fine-tuned encoder's."""
    assert [each["merge"] for each in told.merges] == ["task arithmetic", "TIES, mergekit's"]
    for merged in told.merges:
        rows = re.findall(rf"^{merged['merge']}  +(.*)$", told.text, re.MULTILINE)
        want = [
            100
            * statistics.fmean(
                merged["test"][way][task] / told.inputs["tuned"][task] for task in TASKS
            )
            for way in WAYS
        ]
        assert re.split(r"  +", rows[0].strip()) == [f"{value:.1f}" for value in want]
        chosen = (merged["chosen"]["LiNeS"]["beta"], merged["chosen"]["uniform, best"]["alpha"])
        assert re.split(r"  +", rows[2].strip()) == [f"{value:.4g}" for value in chosen]


def test_the_choice_is_the_best_on_validation(told: Told) -> None:
    """LiNeS among its β, the uniform coefficient among all that were measured: validation alone."""
    for merged in told.merges:
        measured = records(told, merged["merge"])
        assert {record["split"] for record in measured} == {"validation"}
        tuned = {
            task: max(
                record["metrics"][task]["value"]
                for record in measured
                if record["recipe"].get("model") in {f"./{each}" for each in TASKS}
            )
            for task in TASKS
        }
        scores = {
            json.dumps(record["recipe"]["parameters"], sort_keys=True): statistics.fmean(
                record["metrics"][task]["value"] / tuned[task] for task in TASKS
            )
            for record in measured
            if "parameters" in record["recipe"]
        }
        by_depth = {key for key in scores if json.loads(key)["beta"] != 0}
        flat = set(scores) - by_depth
        for way, keys in (("LiNeS", by_depth), ("uniform, best", flat)):
            key = json.dumps(merged["chosen"][way], sort_keys=True)
            assert key in keys
            assert scores[key] == pytest.approx(max(scores[each] for each in keys))
        assert merged["chosen"]["plain"]["alpha"] == 1
        assert {0.15, 0.25, 0.5, 0.8, 1.5, 1} < {json.loads(key)["alpha"] for key in flat}


def test_alpha_is_one_over_the_number_of_models(told: Told) -> None:
    """Of task arithmetic the uniform coefficient of equal mean is 1/N + β/2 (Eq. 2)."""
    merged = told.merges[0]
    assert merged["chosen"]["LiNeS"]["alpha"] == "auto"
    beta = merged["chosen"]["LiNeS"]["beta"]
    assert merged["chosen"]["uniform, equal mean"]["alpha"] == pytest.approx(1 / 2 + beta / 2)


def test_figures_are_drawn(told: Told) -> None:
    """Two PNG files; one seed has no intervals to tell of."""
    for name in ("many-tasks-betas.png", "many-tasks-both.png"):
        assert (told.folder / name).read_bytes().startswith(b"\x89PNG")
    assert "by these intervals" not in told.text
