"""A point that fails is a record: the search goes on, tells it, and tries it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mergekit_lines import LinesError, greedy, soup, sweep
from mergekit_lines.cli import main
from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.telling import draw_sweep, show_greedy, show_soup, show_sweep

PROBES = '''
import os, sys, torch
from pathlib import Path

def fails():
    """Whether this is the call that fail_at.txt names."""
    calls, place = Path("calls.txt"), Path("fail_at.txt")
    calls.write_text((calls.read_text() if calls.exists() else "") + "x")
    return place.exists() and int(place.read_text()) == len(calls.read_text())

def size(model, tokenizer, split):
    if fails():
        sys.exit()
    ids = torch.arange(8)[None] + 4 + (split == "test")
    return {"size": model(input_ids=ids).logits.double().abs().mean(-1)[0].tolist()}

def hooked(model, tokenizer, split):
    value = size(model, tokenizer, split)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.5)
    return value

def moving(model, tokenizer, split):
    os.chdir("/")
    return 1.0

def broken(model, tokenizer):
    return torch.zeros(3) @ torch.zeros(4)

def length(prompts, completions):
    if fails():
        raise ValueError("no score")
    return [float(len(text)) for text in completions]

def tokens(prompts, completions):
    return [float(len(text.split())) for text in completions]
'''
BY = "python:failure_probes:size"


@pytest.fixture
def place(
    tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current directory, with recipes and functions to evaluate by."""
    (tmp_path / "failure_probes.py").write_text(PROBES)
    (tmp_path / "prompts.txt").write_text("tok10 tok11\ntok12\n")
    for name, tuned in {"one": [llama_a], "two": [llama_a, llama_b]}.items():
        recipe = {
            "merge_method": "lines",
            "base_model": str(llama_base),
            "models": [{"model": str(model)} for model in tuned],
            "parameters": {"alpha": 0.25, "beta": 0.5},
        }
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "results.jsonl").read_text().splitlines()]


def metrics(out: str) -> dict[str, Any]:
    """What was measured, by split and recipe."""
    return {
        json.dumps([record["split"], record["recipe"]], sort_keys=True): record["metrics"]
        for record in records(out)
        if not record.get("problems")
    }


def run(*command: str) -> Any:
    return CliRunner().invoke(main, [*command, "--quiet"])


SWEEP = ("sweep", "one.yml", "--set", "beta=0.2,0.4", "--evaluate", BY, "--objective", "size")


def test_a_failed_point_ends_no_sweep_and_is_tried_again(place: Path) -> None:
    """Its neighbours are measured, one is chosen, the exit status is 1; then it is made whole."""
    assert run(*SWEEP, "--out", "whole").exit_code == 0
    Path("calls.txt").unlink()
    Path("fail_at.txt").write_text("3")  # after base and tuned: LiNeS at the first point
    failed = run(*SWEEP, "--out", "found")
    assert failed.exit_code == 1
    assert "found: 1 measurement failed, as told above" in failed.output
    assert "The same command tries it again." in failed.output
    assert "'beta': 0.2}: python:failure_probes:size: the function raised SystemExit" in (
        failed.output
    )
    (problem,) = [record for record in records("found") if record.get("problems")]
    assert problem["recipe"]["parameters"]["beta"] == 0.2
    assert problem["metrics"] == {}
    whole = metrics("whole")
    found = metrics("found")
    assert len(found) == len(whole) - 1
    assert all(whole[key] == value for key, value in found.items())
    assert yaml.safe_load(Path("found", "best.yml").read_text())["parameters"]["beta"] == 0.4
    assert Path("found", "figure.png").exists()
    Path("fail_at.txt").unlink()
    Path("calls.txt").unlink()
    again = run(*SWEEP, "--out", "found")
    assert again.exit_code == 0
    assert Path("calls.txt").read_text() == "x"
    assert metrics("found") == whole
    assert Path("found", "best.yml").read_text() == Path("whole", "best.yml").read_text()
    assert "failed" not in again.output


def test_where_nothing_can_be_measured_the_search_ends(place: Path) -> None:
    """After three failures, with the first one's words: it is the evaluator's, and no point's."""
    broken = [*SWEEP[:4], "beta=0.1:0.9:0.1", "--evaluate", "python:failure_probes:broken"]
    ended = run(*broken[:3], *broken[4:], "--objective", "broken", "--out", "found")
    assert ended.exit_code == 1
    assert "python:failure_probes:broken: the function raised RuntimeError" in ended.output
    assert len(records("found")) == 3


def test_test_data_that_fails_writes_no_card(place: Path) -> None:
    """What was chosen stays; a card of an earlier choice goes."""
    Path("fail_at.txt").write_text("10")
    (place / "found").mkdir()
    first = run(*SWEEP, "--test", BY, "--out", "found")
    assert first.exit_code == 1, first.output
    calls = len(Path("calls.txt").read_text())
    # Two inputs, two points and one unscaled; two inputs and three on test, as 1 is the best
    # uniform coefficient.
    assert calls == 7 + 5
    assert not Path("found", "results.json").exists()
    Path("fail_at.txt").unlink()
    assert run(*SWEEP, "--test", BY, "--out", "found").exit_code == 0
    assert Path("found", "results.json").exists()
    assert len(Path("calls.txt").read_text()) == calls + 1


def test_weights_that_cannot_be_set_fail_their_point(place: Path) -> None:
    """What is no number of the dtype is refused; its uniform neighbour has no mean, and no try."""
    recipe = yaml.safe_load(Path("one.yml").read_text())
    recipe["parameters"]["alpha"] = 1e6
    axis = "models.0.parameters.weight=1,3e38"
    swept = sweep(recipe, axis, [BY], "out", objective="size", quiet=True)
    good, bad = swept.points
    assert set(good.scores) == {LINES, UNIFORM, UNSCALED}
    assert set(bad.scores) == {UNSCALED} and set(bad.records) == {LINES, UNSCALED}
    (failure,) = swept.failures
    assert "'alpha': 1000000.0, 'beta': 0.5}: tensor" in failure
    assert swept.best is good
    assert swept.best_uniform == (good.records[UNIFORM], good.scores[UNIFORM])
    show_sweep(swept)
    draw_sweep(swept, Path("figure.png"))


def test_an_objective_without_a_value_fails_its_point(place: Path) -> None:
    """The logarithm of a negative number at one of them: the other is chosen."""
    measured = sweep("one.yml", "beta=0,3", [BY], "sizes", objective="size", quiet=True)
    sizes = [point.lines.metrics["size"].value for point in measured.points]
    assert sizes[0] != sizes[1]
    middle, sign = sum(sizes) / 2, "" if sizes[1] > sizes[0] else "-"
    objective = f"log({sign}(size - {middle}))"
    swept = sweep("one.yml", "beta=0,3", [BY], "out", objective=objective, quiet=True)
    assert swept.best.settings == {"parameters.beta": 3}
    assert LINES not in swept.points[0].scores
    assert any("'beta': 0}: objective" in text for text in swept.failures)


def test_an_input_that_the_objective_compares_with_is_needed(place: Path) -> None:
    """Over a fine-tuned model that failed there is no ratio: told before the grid."""
    Path("fail_at.txt").write_text("2")
    with pytest.raises(LinesError, match=r"--objective mean: .*llama_a: python:failure_probes"):
        sweep("one.yml", "beta=0.2,0.4", [BY], "out", quiet=True)
    assert len(records("out")) == 2


def test_a_hook_that_stays_spoils_no_point(place: Path) -> None:
    """Every point is as without it."""
    alone = sweep("one.yml", "beta=0.2,0.4", [BY], "alone", objective="size", quiet=True)
    by = "python:failure_probes:hooked"
    hooked = sweep("one.yml", "beta=0.2,0.4", [by], "hooked", objective="size", quiet=True)
    assert hooked.best.settings == alone.best.settings
    for one, other in zip(alone.points, hooked.points, strict=True):
        assert {way: record.metrics["size"].value for way, record in one.records.items()} == {
            way: record.metrics["size"].value for way, record in other.records.items()
        }


def test_an_evaluator_that_changes_the_directory_moves_no_result(place: Path) -> None:
    """A relative --out stays where it was named."""
    by = "python:failure_probes:moving"
    sweep("one.yml", "beta=0.2,0.4", [by], "sub/out", objective="moving", quiet=True)
    assert Path.cwd() == place
    assert (place / "sub" / "out" / "best.yml").exists()
    assert len(records("sub/out")) == 7


def test_a_checkpoint_that_fails_is_in_no_greedy_soup(place: Path) -> None:
    """The other one is the soup; the uniform soup of both is measured all the same."""
    Path("fail_at.txt").write_text("1")
    soups = greedy("two.yml", [BY], "out", quiet=True)
    assert len(soups.scores) == len(soups.chosen) == 1
    assert "llama_a: python:failure_probes:size" in soups.failures[0]
    assert set(soups.values) == {"uniform", "greedy", "uniform + LiNeS", "greedy + LiNeS"}
    show_greedy(soups)
    assert run("greedy", "two.yml", "--evaluate", BY, "--out", "out").exit_code == 0


def test_a_front_leaves_out_what_failed(place: Path) -> None:
    """A c that one way lacks is in no front, and in all again once it was measured."""
    kinds = ("length", "tokens")
    rewards = [f"rewards:failure_probes:{kind}?prompts=prompts.txt" for kind in kinds]
    Path("fail_at.txt").write_text("3")  # after the base: LiNeS at c = 0, then uniform
    front = soup("two.yml", rewards, "out", points=3, samples=10, quiet=True)
    assert front.shares == (0.5, 1.0)
    assert all(len(records) == 2 for records in front.fronts.values())
    assert len(front.failures) == 1 and "ValueError: no score" in front.failures[0]
    show_soup(front)
    Path("fail_at.txt").unlink()
    again = soup("two.yml", rewards, "out", points=3, samples=10, quiet=True)
    assert again.shares == (0.0, 0.5, 1.0) and not again.failures
