"""The example of learnt coefficients, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml

from tests.e2e import runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "learn.py"


def test_the_table_shows_what_was_learnt(tmp_path: Path) -> None:
    """The held-out losses of the file that is left; the recipe has the learnt values; a figure."""
    folder = tmp_path / "work"
    command = (sys.executable, EXAMPLE, "--tiny", "--folder", folder, "--num-threads", "1")
    text = runner.run(command, tmp_path, runner.ONE_THREAD).succeeded().stdout
    report = json.loads((folder / "learnt" / "learned.json").read_text(encoding="utf-8"))
    rows = {"learned": "learnt", "own": "LiNeS, the recipe's own", "uniform": "uniform, best"}
    for way, label in rows.items():
        (cells,) = re.findall(rf"^{label}  +(.*)$", text, re.MULTILINE)
        held_out = re.split(r"  +", cells.strip())[3]
        assert held_out == f"{report[way]['held_out']['loss']:.4g}"
    assert report["learned"]["training"]["loss"] < report["own"]["training"]["loss"]
    written = yaml.safe_load((folder / "learnt" / "learned.yml").read_text(encoding="utf-8"))
    values = [float(value) for value in written["parameters"]["schedule"].split(",")]
    assert values == report["learned"]["coefficients"]["blocks"]
    assert (folder / "learnt" / "figure.png").read_bytes().startswith(b"\x89PNG")
    texts = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(report["measured"]) == len(set(texts)) == 16
