"""Searches on several live models: the values of one, whatever dies in between."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import runner

pytest.importorskip("ray")
optuna = pytest.importorskip("optuna")

PROBES = '''
import os, signal, torch
from pathlib import Path

CALLS, DIE = Path("calls.txt"), Path("die_at.txt")

def size(model, tokenizer, split):
    """Dies at the calls that a file names."""
    with CALLS.open("a") as file:
        file.write("x")
    if DIE.exists() and str(CALLS.stat().st_size) in DIE.read_text().split():
        os.kill(os.getpid(), signal.SIGKILL)
    ids = torch.arange(24).reshape(4, 6) + 5 + (split == "test")
    return {"size": model(input_ids=ids).logits.double().abs().mean((1, 2)).tolist()}
'''
BY = ("--evaluate", "python:probes:size", "--objective", "size")
KEYS = ("--set", "alpha=0:1", "--set", "beta=0.1:2", "--set", "wrap=task_arithmetic,ties")
SEARCH = ("search", "recipe.yml", *KEYS, *BY)


@pytest.fixture
def place(tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path) -> Path:
    """A folder with a recipe and the evaluator's function, in which commands run."""
    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}, {"model": str(llama_b)}],
        "parameters": {"alpha": 0.25, "beta": 0.5},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "probes.py").write_text(PROBES)
    return tmp_path


def started(place: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(runner.BIN / "mergekit-lines"), *words],
        cwd=place,
        env=runner.environment(runner.ONE_THREAD),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(place: Path, *words: str, status: int = 0) -> tuple[str, str]:
    """Run a command to its end; return what it printed."""
    process = started(place, words)
    out, errors = process.communicate(timeout=runner.STUCK)
    assert process.returncode == status, errors
    return out, errors


def records(place: Path, out: str) -> dict[str, dict[str, Any]]:
    """What was measured, by split and recipe; each once."""
    path = place / out / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    measured = {json.dumps([line["split"], line["recipe"]]): line["metrics"] for line in lines}
    assert len(measured) == len(lines)
    return measured


def trials(place: Path, out: str) -> list[Any]:
    url = f"sqlite:///{place / out / 'trials.db'}"
    (name,) = optuna.get_all_study_names(url)
    there = optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)
    return [(trial.number, trial.params, trial.values) for trial in there]


def _kill_after(place: Path, words: Sequence[str], count: int, delay: float) -> None:
    """Start a command and kill it a moment after so many results are on the disk."""
    process = started(place, words)
    path = place / words[-1] / "results.jsonl"
    end = time.monotonic() + runner.STUCK
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            time.sleep(delay)
            break
        time.sleep(0.002)
    process.kill()  # nothing where it has ended by itself
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def test_two_workers_killed_five_times_find_what_one_process_finds(place: Path) -> None:
    """Thirty trials, none lost and none measured twice, with the values of one live model."""
    words = (*SEARCH, "--trials", "30", "--sampler", "random", "--quiet", "--out")
    alone, _ = finished(place, *words, "alone")
    calls = (place / "calls.txt").stat().st_size
    (place / "calls.txt").unlink()
    shared = (*words[:-1], "--workers", "2", "--out", "shared")
    moments = random.Random(0)
    for count in (1, 7, 13, 20, 27):
        _kill_after(place, shared, count, moments.uniform(0, 0.2))
    output, _ = finished(place, *shared)
    assert output == alone
    assert trials(place, "shared") == trials(place, "alone")
    assert records(place, "shared") == records(place, "alone")
    # At each kill two measurements were under way at most.
    assert calls <= (place / "calls.txt").stat().st_size <= calls + 5 * 2


def test_a_lost_worker_has_its_trial_measured_again(place: Path) -> None:
    """Two that die in a measurement are told and opened anew; the sweep's table is as without."""
    words = ("sweep", "recipe.yml", "--set", "beta=0.2:0.8:0.2", *BY, "--out")
    alone, _ = finished(place, *words, "alone")
    calls = (place / "calls.txt").stat().st_size
    (place / "calls.txt").unlink()
    (place / "die_at.txt").write_text("4 8")
    output, errors = finished(place, *words, "shared", "--workers", "2")
    assert output == alone
    assert records(place, "shared") == records(place, "alone")
    assert (place / "calls.txt").stat().st_size == calls + 2
    assert errors.count("a worker was lost (") >= 1


def test_what_kills_three_workers_is_a_failure_of_its_trial(place: Path) -> None:
    """It is told and tried again by the next run; the other trials are measured."""
    (place / "die_at.txt").write_text("5 6 7")
    words = (*SEARCH, "--trials", "3", "--workers", "1", "--out", "out")
    _, errors = finished(place, *words, status=1)
    assert "3 workers were lost while they measured it" in errors
    assert len(trials(place, "out")) == 3
    finished(place, *words)
    assert [values is None for *_, values in trials(place, "out")].count(False) == 3


def test_the_front_of_a_soup_is_that_of_one_process(place: Path) -> None:
    """Points that two live models measured give the same tables and recipes."""
    (place / "rewards.py").write_text(
        "def length(prompts, completions):\n    return [float(len(text)) for text in completions]\n"
        "def tokens(prompts, completions):\n    return [float(text.count('1')) for text in "
        "completions]\n"
    )
    (place / "prompts.txt").write_text("tok10 tok11\ntok12\ntok13 tok14\n")
    rewards = ["--rewards", "rewards:rewards:length", "--rewards", "rewards:rewards:tokens"]
    words = ["soup", "recipe.yml", "--points", "3", *rewards, "--prompts", "prompts.txt",
             "--max-new-tokens", "4", "--out"]  # fmt: skip
    alone, _ = finished(place, *words, "alone")
    output, _ = finished(place, *words, "shared", "--workers", "2")
    assert output == alone
    assert records(place, "shared") == records(place, "alone")
