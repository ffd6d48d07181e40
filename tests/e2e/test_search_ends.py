"""How a search ends when it is told to: with a line of where its results are, and no traceback."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from tests.e2e import runner

# The third measurement is the first point's. A signal that a process sends itself has arrived
# when the next line runs; what is registered runs when Python ends.
PROBES = """
import atexit, os, signal
from pathlib import Path

def ended(model, tokenizer):
    calls = Path("calls.txt")
    calls.write_text((calls.read_text() if calls.exists() else "") + "x")
    if len(calls.read_text()) == 3:
        if "{more}":
            atexit.register(os.kill, os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.{name})
        for _ in range(10 ** 6):
            pass
    return 1.0
"""


@pytest.mark.parametrize(
    ("name", "more", "status"),
    [("SIGINT", "", 1), ("SIGINT", "again", -signal.SIGINT), ("SIGTERM", "", 143)],
)
def test_a_signal_in_an_evaluator_ends_the_search(
    tmp_path: Path, llama_base: Path, llama_a: Path, name: str, more: str, status: int
) -> None:
    """It is no failure of the point; a second Ctrl-C while Python ends prints no traceback."""
    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}],
        "parameters": {"alpha": 0.25},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "ending.py").write_text(PROBES.format(name=name, more=more))
    command = ["mergekit-lines", "sweep", "recipe.yml", "--set", "beta=0.1,0.2"]
    command += ["--evaluate", "python:ending:ended", "--objective", "ended", "--out", "out"]
    ended = runner.run(command, tmp_path)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert "what was measured is kept in out: the same command goes on" in ended.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [bool(json.loads(line).get("problems")) for line in lines] == [False, False]
    assert not (tmp_path / "out" / ".work").exists()
