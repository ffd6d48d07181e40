"""The example of searches, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e import runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "search.py"


def test_the_table_shows_what_was_chosen(tmp_path: Path) -> None:
    """Each way's choice with the perplexities of results.jsonl, which no other one of it beats."""
    pytest.importorskip("optuna")
    folder = tmp_path / "work"
    command = (sys.executable, EXAMPLE, "--tiny", "--folder", folder, "--num-threads", "1")
    text = runner.run(command, tmp_path, runner.ONE_THREAD).succeeded().stdout
    ways = ("sweep", "tpe-0", "random-0", "blocks-0")
    for way in ways:
        lines = (folder / way / "results.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        best = yaml.safe_load((folder / way / "best.yml").read_text(encoding="utf-8"))
        own = {
            one["split"]: one["metrics"]["perplexity"]["value"]
            for one in records
            if one["recipe"] == best
        }
        (cells,) = re.findall(rf"^{way}  +(.*)$", text, re.MULTILINE)
        found = re.split(r"  +", cells.strip())
        assert found[1:3] == [f"{own[split]:.4f}" for split in ("validation", "test")]
    examples = [
        set((folder / f"{n}.jsonl").read_text().splitlines()) for n in ("validation", "test")
    ]
    assert [len(each) for each in examples] == [8, 8]
    assert not examples[0] & examples[1]
