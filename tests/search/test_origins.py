"""A metric comes with what it was measured on, into the results and the model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_lines import sweep
from mergekit_lines.search.telling import write_results
from tests.search.lm_tasks import write_task

PROBES = """
def one(model, tokenizer, split):
    return 1.0

def two(model, tokenizer, split):
    return {"x": 2.0, "y": 3.0}

def length(prompts, completions):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with functions and files to evaluate by."""
    (tmp_path / "origin_probes.py").write_text(PROBES)
    (tmp_path / "choose.txt").write_text("tok1 tok2 tok3")
    (tmp_path / "first.txt").write_text("tok4 tok5 tok6")
    (tmp_path / "second.txt").write_text("tok7 tok8 tok9")
    (tmp_path / "prompts.txt").write_text("tok10 tok11\ntok12")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def datasets(base: Path, tuned: Path, test: list[str]) -> dict[str, str]:
    """Sweep one point, and return what the card says each test metric was measured on."""
    recipe = {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"alpha": 0.25},
    }
    choose = ["perplexity:choose.txt"]
    swept = sweep(recipe, "beta=0.5", choose, "out", test=test, objective="-perplexity", quiet=True)
    write_results(swept, Path("results.json"))
    results = json.loads(Path("results.json").read_text())["results"]
    return {result["metrics"][0]["name"]: result["dataset"]["name"] for result in results}


def test_names_that_begin_alike_keep_their_own_data(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """``acc_b`` is not reported on the file of ``acc``, nor a function's metric on another's."""
    test = ["acc=perplexity:first.txt", "acc_b=perplexity:second.txt"]
    test += ["a=python:origin_probes:one", "a_x=python:origin_probes:two"]
    test += ["r=rewards:origin_probes:length?prompts=prompts.txt&max_new_tokens=2"]
    assert datasets(llama_base, llama_a, test) == {
        "acc": "first.txt",
        "acc_b": "second.txt",
        "a": "origin_probes:one",
        "a_x_x": "origin_probes:two",
        "a_x_y": "origin_probes:two",
        "r": "prompts.txt",
    }


def test_a_task_is_its_metrics_data(llama_base: Path, llama_a: Path, place: Path) -> None:
    """Several tasks of one evaluator, and one beside another evaluator, are each named."""
    pytest.importorskip("lm_eval")
    for number, name in enumerate(("red", "red_two", "blue")):
        write_task(place, name, [f"tok{20 + number}"])
    test = [f"lm_eval:red,red_two?include_path={place}", f"b=lm_eval:blue?include_path={place}"]
    assert datasets(llama_base, llama_a, test) == {"red": "red", "red_two": "red_two", "b": "blue"}
