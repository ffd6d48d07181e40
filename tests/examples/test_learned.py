"""The story of learnt coefficients, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.e2e import runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "learned.py"
TASKS = ("animals", "plants")
SEEDS = 2
LEARNT = {"entropy": "learnt, entropy", "loss": "learnt, loss"}


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    rows: list[dict[str, Any]]


def start(folder: Path) -> str:
    flags = ("--tiny", "--folder", folder, "--seeds", str(SEEDS), "--num-threads", "1")
    command = (sys.executable, EXAMPLE, *flags)
    return runner.run(command, folder.parent, runner.ONE_THREAD).succeeded().stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run, of a random encoder."""
    folder = tmp_path_factory.mktemp("learned") / "work"
    text = start(folder)
    return Told(folder, text, json.loads((folder / "learned.json").read_text("utf-8")))


def normalised(told: Told, way: str) -> list[float]:
    """Mean over the merged tasks of test accuracy over the fine-tuned encoder's, by seed."""
    return [
        statistics.fmean(row["test"][way][task] / row["own"]["tuned"][task] for task in TASKS)
        for row in told.rows
    ]


def learnt(told: Told, seed: int, objective: str) -> Path:
    return told.folder / f"seed-{seed}" / "learned" / objective


def test_the_table_shows_accuracies_and_coefficients(told: Told) -> None:
    """Mean and standard error over seeds, of every way; of coefficients the nearest line's β."""
    for way, row in told.rows[0]["curves"].items():
        (cells,) = re.findall(rf"^{way}  +(\S+ ± .*)$", told.text, re.MULTILINE)
        merged, mean, outside, slope = re.split(r"  +", cells.strip())
        values = [100 * value for value in normalised(told, way)]
        error = statistics.stdev(values) / SEEDS**0.5
        assert merged == f"{statistics.fmean(values):.1f} ± {error:.1f}"
        blocks = torch.tensor([each["curves"][way]["blocks"] for each in told.rows]).double()
        assert float(mean.split(" ±")[0]) == pytest.approx(blocks.mean().item(), abs=6e-3)
        own = statistics.fmean(each["curves"][way]["outside"] for each in told.rows)
        assert float(outside.split(" ±")[0]) == pytest.approx(own, abs=6e-3)
        x = torch.linspace(-0.5, 0.5, len(row["blocks"]), dtype=torch.float64)
        line = (blocks @ x / (x @ x)).mean().item()
        assert float(slope.split(" ±")[0]) == pytest.approx(line, abs=6e-3)


def test_what_was_learnt_is_what_is_compared(told: Told) -> None:
    """The recipe of learn has the curve; its rival without depth the mean, and the same outside."""
    for seed, row in enumerate(told.rows):
        for objective, way in LEARNT.items():
            folder = learnt(told, seed, objective) / "learnt"
            recipe = yaml.safe_load((folder / "learned.yml").read_text("utf-8"))
            blocks = [float(value) for value in recipe["parameters"]["schedule"].split(",")]
            assert blocks == row["curves"][way]["blocks"]
            assert recipe["parameters"]["outside"] == row["curves"][way]["outside"]
            flat = row["curves"][f"level, mean of {way}"]
            mean = pytest.approx(statistics.fmean(blocks), abs=1e-6)
            assert flat["blocks"] == [mean] * len(blocks)
            assert flat["outside"] == row["curves"][way]["outside"]


def test_the_line_of_lines_is_that_of_its_recipe(told: Told) -> None:
    """From 1/N on, by a β of the grid; the uniform coefficient of equal mean is its mean."""
    for row in told.rows:
        blocks = row["curves"]["LiNeS"]["blocks"]
        beta = min((0.3, 1.0), key=lambda each: abs(each - (blocks[-1] - blocks[0])))
        want = np.linspace(1 / len(TASKS), 1 / len(TASKS) + beta, len(blocks))
        assert blocks == pytest.approx(want, abs=1e-6)
        assert row["curves"]["LiNeS"]["outside"] == pytest.approx(blocks[0])
        even = row["curves"]["uniform, equal mean"]["blocks"]
        assert even == [pytest.approx(statistics.fmean(blocks))] * len(blocks)


def test_validation_texts_alone_are_learnt_from(told: Told) -> None:
    """Those of the merged tasks, each with its task and the number of its label."""
    for seed in range(SEEDS):
        texts = json.loads((told.folder / f"seed-{seed}" / "texts" / "texts.json").read_text())
        want = [[*row, task] for task in TASKS for row in texts[task]["validation"]]
        for objective in LEARNT:
            lines = (learnt(told, seed, objective) / "texts.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            assert [[row["text"], row["label"], row["task"]] for row in rows] == want


def test_the_loss_is_that_of_the_nearest_label(told: Told) -> None:
    """What learn says of the files of its recipe: by the formula in float64, label by label."""
    from transformers import AutoModel, AutoTokenizer

    place = told.folder / "seed-0"
    folder = learnt(told, 0, "loss")
    runner.run(
        ("mergekit-yaml", folder / "learnt" / "learned.yml", told.folder / "merged"), place
    ).succeeded()
    model = AutoModel.from_pretrained(told.folder / "merged", add_pooling_layer=False).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(told.folder / "merged")
    labels = load_file(place / "texts" / "labels.safetensors")
    losses, entropies = [], []
    for line in (folder / "texts.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = torch.tensor([tokenizer(f"query: {row['text']}")["input_ids"]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].double().mean(0)
        cosines = labels[row["task"]].double() @ (mean / mean.norm())
        logs = (100 * cosines).log_softmax(0)
        losses.append(-logs[row["label"]].item())
        entropies.append(-(logs.exp() * logs).sum().item())
    report = told.rows[0]["learnt"]["loss"]["learned"]
    counts = told.rows[0]["learnt"]["loss"]["measured"]
    for name, values in (("loss", losses), ("entropy", entropies)):
        parts = (report["training"][name], report["held_out"][name])
        whole = sum(count * part for count, part in zip(counts, parts, strict=True))
        assert whole / sum(counts) == pytest.approx(statistics.fmean(values), rel=1e-4)


def test_differences_have_an_interval(told: Told) -> None:
    """Each way minus another: Student's t of one degree of freedom."""
    part = told.text.split("one way minus another", 1)[1]
    (row,) = re.findall(r"^uniform, best  +(.*)$", part, re.MULTILINE)
    ways = (*LEARNT.values(), "LiNeS")
    for cell, way in zip(re.split(r"\)  +", row.strip()), ways, strict=True):
        pairs = zip(normalised(told, way), normalised(told, "uniform, best"), strict=True)
        changes = [100 * (one - other) for one, other in pairs]
        reach = 12.706 * statistics.stdev(changes) / 2**0.5
        mean = statistics.fmean(changes)
        assert cell.rstrip(")") == f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f}"


def test_what_is_there_is_not_learnt_again(told: Told) -> None:
    """Run again, it says the same of the same files; the figure is drawn."""
    files = [
        learnt(told, seed, objective) / "learnt" / "learned.json"
        for seed in range(SEEDS)
        for objective in LEARNT
    ]
    before = [file.stat().st_mtime_ns for file in files]
    text = start(told.folder)
    assert [file.stat().st_mtime_ns for file in files] == before
    ends = [each.split("4/4", 1)[1].split("\nDone", 1)[0] for each in (told.text, text)]
    assert ends[0] == ends[1]
    assert (told.folder / "learned.png").read_bytes().startswith(b"\x89PNG")
