"""``mergekit-lines sweep``, ``soup`` and ``greedy``: the real commands on real checkpoints.

What a live model measured is held against models that were merged to disk, loaded by
transformers and measured by the same functions.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lines import LinesError, sweep
from mergekit_lines.report.metadata import read_results
from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED
from tests import models
from tests.e2e import runner
from tests.e2e.runner import ForkServer

# Evaluators' functions, written beside each recipe. The examples differ between the splits.
PROBES = '''
import os, signal, torch
from pathlib import Path

CALLS = Path("calls.txt")

def scores(model, split):
    generator = torch.Generator().manual_seed({"validation": 1, "test": 2}[split])
    ids = torch.randint(4, 128, (4, 6), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids).logits.double().abs().mean((1, 2)).tolist()

def size(model, tokenizer, split):
    """Mean magnitude of the logits per example; dies at the call that die_at.txt names."""
    calls = len(CALLS.read_text()) if CALLS.exists() else 0
    CALLS.write_text("x" * (calls + 1))
    if Path("die_at.txt").exists() and Path("die_at.txt").read_text() == str(calls + 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"size": scores(model, split)}

def fixed(model, tokenizer):
    return 1.0

def length(prompts, completions):
    return [float(len(text)) for text in completions]

def vowels(prompts, completions):
    return [float(sum(letter in "aeiou0123456789" for letter in text)) for text in completions]
'''
Shell = Callable[[Sequence[str], Path], runner.Result]
PROMPTS = ["tok10 tok11 tok12", "tok20 tok21", "tok30 tok31 tok32 tok33"]


@pytest.fixture(scope="module")
def shell(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Runs commands, each in a process of its own, that are forked off one start of mergekit."""
    folder = tmp_path_factory.mktemp("shell")
    return lambda command, cwd: server.run(command, cwd, folder)


@pytest.fixture
def place(tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path) -> Path:
    """A folder with a recipe and the evaluators' functions, in which commands run."""
    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}, {"model": str(llama_b)}],
        "parameters": {"alpha": 0.25, "wrap": "ties", "density": 0.5},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "probes.py").write_text(PROBES)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def probes() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(PROBES, "probes.py", "exec"), namespace)
    return namespace


def merged(recipe: Mapping[str, Any], out: Path) -> Any:
    """The model that mergekit-yaml's merge of a recipe writes, as transformers loads it."""
    runner.in_process(recipe, out)
    return AutoModelForCausalLM.from_pretrained(out).eval()


def with_words(place: Path, **words: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load((place / "recipe.yml").read_text())
    recipe["parameters"] |= words
    return recipe


SWEEP = (
    "mergekit-lines",
    "sweep",
    "recipe.yml",
    "--set",
    "parameters.beta=0.2:0.6:0.2",
    "--evaluate",
    "python:probes:size",
    "--objective",
    "size",
    "--out",
    "found",
)


def results(place: Path, out: str = "found") -> list[dict[str, Any]]:
    text = (place / out / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_sweep_measures_what_the_merges_are(shell: Shell, place: Path, llama_base: Path) -> None:
    """Every point has the scores of the model that mergekit-yaml writes for it.

    With it the unscaled merge, the uniform coefficient of equal mean, the inputs as they
    are; the choice is the best of the LiNeS points by the objective, and best.yml gives it.
    """
    told = shell([*SWEEP, "--test", "python:probes:size"], place).succeeded()
    size = probes()["scores"]
    expected: dict[str, float] = {}

    def mean(recipe: Mapping[str, Any], name: str, split: str = "validation") -> float:
        scores = size(merged(recipe, place / "merged" / name), split)
        return float(sum(scores) / len(scores))

    for beta in (0.2, 0.4, 0.6):
        expected[f"{beta}"] = mean(with_words(place, beta=beta), f"lines{beta}")
        flat = with_words(place, alpha=0.25 + beta / 2, beta=0)
        expected[f"uniform {beta}"] = mean(flat, f"uniform{beta}")
    expected["plain"] = mean(with_words(place, alpha=1, beta=0), "plain")
    base = AutoModelForCausalLM.from_pretrained(llama_base).eval()
    expected["base"] = sum(size(base, "validation")) / 4

    records = results(place)
    validation = [record for record in records if record["split"] == "validation"]
    found = {}
    for record in validation:
        words = record["recipe"].get("parameters")
        value = record["metrics"]["size"]["value"]
        if words is None:
            found[record["recipe"]["model"]] = value
        elif words["beta"]:
            found[f"{words['beta']}"] = value
        else:
            found["plain" if words["alpha"] == 1 else f"alpha {words['alpha']:.6g}"] = value
    assert found[str(llama_base)] == pytest.approx(expected["base"], rel=1e-6)
    assert found["plain"] == pytest.approx(expected["plain"], rel=1e-6)
    for beta in (0.2, 0.4, 0.6):
        assert found[f"{beta}"] == pytest.approx(expected[f"{beta}"], rel=1e-6)
        flat = found[f"alpha {0.25 + beta / 2:.6g}"]
        assert flat == pytest.approx(expected[f"uniform {beta}"], rel=1e-6)
    assert len(validation) == 3 + 3 + 3 + 1  # inputs, LiNeS, uniform, one unscaled

    best = max((0.2, 0.4, 0.6), key=lambda beta: expected[f"{beta}"])
    chosen = yaml.safe_load((place / "found" / "best.yml").read_text())
    assert chosen == with_words(place, beta=best)
    tested = mean(chosen, "tested", "test")
    test = {json.dumps(r["recipe"], sort_keys=True): r for r in records if r["split"] == "test"}
    at_best = test[json.dumps(chosen, sort_keys=True)]
    assert at_best["metrics"]["size"]["value"] == pytest.approx(tested, rel=1e-6)
    (told_to_the_hub,) = read_results(place / "found", "merged") or []
    assert told_to_the_hub.metric_value == at_best["metrics"]["size"]["value"]
    assert told_to_the_hub.dataset_name == "probes:size"
    assert "chosen" in told.stdout
    assert (place / "found" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_killed_sweep_goes_on_and_ends_with_the_same_table(shell: Shell, place: Path) -> None:
    """SIGKILL within a point and between points: nothing is measured twice, one table comes out."""
    whole = shell(SWEEP, place).succeeded()
    calls = len((place / "calls.txt").read_text())
    lines = {json.dumps(r["recipe"], sort_keys=True): r["metrics"] for r in results(place)}
    (place / "calls.txt").unlink()
    killed = (*SWEEP[:-1], "killed")
    (place / "die_at.txt").write_text("4")  # within its fourth measurement
    died = shell(killed, place)
    (place / "die_at.txt").unlink()
    assert died.returncode == -signal.SIGKILL
    assert len(results(place, "killed")) == 3
    _kill_after(place, killed, lines=6)
    left = len(results(place, "killed"))
    assert 6 <= left < calls
    resumed = shell(killed, place).succeeded()
    assert f"found {left} results in killed: going on behind them" in resumed.stderr
    assert resumed.stdout == whole.stdout
    again = {
        json.dumps(r["recipe"], sort_keys=True): r["metrics"] for r in results(place, "killed")
    }
    assert again == lines
    # One call died with its measurement; one more may have been under way at the second kill.
    assert calls + 1 <= len((place / "calls.txt").read_text()) <= calls + 2


def _kill_after(place: Path, command: tuple[str, ...], lines: int) -> None:
    """Start a command and kill it as soon as so many results are on the disk."""
    path = place / command[-1] / "results.jsonl"
    process = subprocess.Popen(
        [str(runner.BIN / command[0]), *command[1:]],
        cwd=place,
        env=runner.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + runner.STUCK
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait(runner.STUCK) == -signal.SIGKILL


def test_sweep_goes_on_only_with_the_same_search(shell: Shell, place: Path) -> None:
    """Another recipe or evaluator is refused; other axes and objectives use what is there."""
    shell(SWEEP, place).succeeded()
    calls = len((place / "calls.txt").read_text())
    more = shell([*SWEEP[:4], "beta=0.2,0.4,0.6", *SWEEP[5:8], "-size", *SWEEP[9:]], place)
    assert more.succeeded()
    assert len((place / "calls.txt").read_text()) == calls
    (place / "recipe.yml").write_text(yaml.safe_dump(with_words(place, density=0.4)))
    other = shell(SWEEP, place)
    assert other.returncode == 1
    assert "holds results of another search: the recipe differ" in other.last_line


def test_sweep_over_two_axes_draws_a_map(shell: Shell, place: Path) -> None:
    """Two axes give every pair; choice keys are swept as numbers are."""
    command = [*SWEEP[:4], "beta=0.2,0.5", "--set", "schedule=linear,sqrt", *SWEEP[5:]]
    told = shell(command, place).succeeded()
    swept = {
        (r["recipe"]["parameters"]["beta"], r["recipe"]["parameters"]["schedule"])
        for r in results(place)
        if "parameters" in r["recipe"] and r["recipe"]["parameters"]["beta"]
    }
    assert swept == {(beta, how) for beta in (0.2, 0.5) for how in ("linear", "sqrt")}
    assert "sqrt" in told.stdout
    assert (place / "found" / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("evaluate", "test", "told"),
    [
        ("perplexity:valid.txt", "perplexity:valid.txt", "valid.txt"),
        ("perplexity:valid.txt", "perplexity:copy.txt", "copy.txt"),
        ("perplexity:valid.txt", "perplexity:overlap.txt", "overlap.txt"),
        ("python:probes:fixed", "python:probes:fixed", "split"),
    ],
)
def test_sweep_refuses_test_data_by_which_it_would_choose(
    shell: Shell, place: Path, evaluate: str, test: str, told: str
) -> None:
    """The same file, a copy, a shared example, a function that cannot tell the splits: refused.

    Before anything is measured.
    """
    texts = {"valid": "tok1 tok2 tok3\n\ntok4 tok5 tok6\n"}
    texts |= {"copy": texts["valid"], "overlap": "tok7 tok8 tok9\n\ntok4 tok5 tok6\n"}
    for name, text in texts.items():
        (place / f"{name}.txt").write_text(text)
    command = [*SWEEP[:5], "--evaluate", evaluate, "--test", test, "--out", "found"]
    refused = shell(command, place)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert told in refused.last_line
    assert not (place / "found" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "bta=0.1,0.2"], "parameters.bta: nobody declares this name"),
        (["--set", "beta=0.1,true"], "(at parameters.beta = True)"),
        (["--set", "dtype.x=1,2"], "found a key outside of parameters"),
        (["--set", "beta=0.1,0.2", "--objective", "sise"], "Did you mean 'size'"),
    ],
)
def test_sweep_refuses_before_it_measures_the_grid(
    shell: Shell, place: Path, words: list[str], told: str
) -> None:
    """A slip in an axis or the objective is told at once, in one message."""
    command = [*SWEEP[:3], "--set", "beta=0.1,0.2", *SWEEP[5:]]
    command = [*SWEEP[:3], *words, "--evaluate", "python:probes:size", "--out", "found"]
    refused = shell(command, place)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert told in refused.stderr
    assert not (place / "found" / "results.jsonl").exists() or len(results(place)) == 1


def test_sweep_of_gamma_keeps_the_uniform_neighbour_plain(
    tmp_path: Path, llama_base: Path, llama_a: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lines_postprocess: gamma becomes the mean coefficient (1 + γ)/2 at every depth."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probes.py").write_text(PROBES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "probes", raising=False)  # another test's, of that name
    recipe = {
        "merge_method": "lines_postprocess",
        "base_model": llama_base,
        "models": [{"model": llama_a}],
        "parameters": {},
    }
    found = sweep(recipe, ["gamma=0,0.5"], ["python:probes:size"], "found", quiet=True)
    for point, gamma in zip(found.points, (0, 0.5), strict=True):
        words = {"alpha": (1 + gamma) / 2, "beta": 0.0}
        assert point.records[UNIFORM].recipe["parameters"] == pytest.approx(words)
        assert point.records[UNSCALED].recipe["parameters"] == {"alpha": 1.0, "beta": 0.0}
    # The objective is the paper's: over the fine-tuned model's own.
    tuned = found.inputs[str(llama_a)].metrics["size"].value
    for point in found.points:
        assert point.scores[LINES] == pytest.approx(point.lines.metrics["size"].value / tuned)
    with pytest.raises(LinesError, match="another search"):
        sweep({**recipe, "dtype": "float32"}, ["gamma=0"], ["python:probes:size"], "found")


def test_soup_traces_the_front_of_the_merges(shell: Shell, place: Path, llama_base: Path) -> None:
    """Every point of the three fronts has the rewards of the model that mergekit-yaml writes."""
    recipe = with_words(place, alpha=1, beta=1, wrap="task_arithmetic")
    del recipe["parameters"]["density"]
    (place / "recipe.yml").write_text(yaml.safe_dump(recipe))
    rewards = ["--rewards", "rewards:probes:length", "--rewards", "rewards:probes:vowels"]
    command = ["mergekit-lines", "soup", "recipe.yml", "--points", "3", *rewards]
    command += ["--prompts", "prompts.txt", "--max-new-tokens", "6", "--out", "found"]
    told = shell(command, place).succeeded()
    tokenizer = AutoTokenizer.from_pretrained(llama_base)
    functions = probes()
    found = {}
    for record in results(place):
        words, entries = record["recipe"].get("parameters"), record["recipe"].get("models")
        key = words and (words["alpha"], words["beta"], entries[0]["parameters"]["weight"])
        found[key] = record["metrics"]
    assert len(found) == 1 + 3 * 3
    for c in (0.0, 0.5, 1.0):
        for way, (alpha, beta) in {"lines": (1, 1), "plain": (1, 0), "uniform": (1.5, 0)}.items():
            point = json.loads(json.dumps(recipe))
            point["parameters"] |= {"alpha": alpha, "beta": beta}
            for entry, weight in zip(point["models"], (c, 1 - c), strict=True):
                entry["parameters"] = {"weight": weight}
            texts = _completions(merged(point, place / "merged" / f"{way}{c}"), tokenizer)
            metrics = found[alpha, beta, c]
            assert metrics["length"]["examples"] == functions["length"](PROMPTS, texts)
            assert metrics["vowels"]["examples"] == functions["vowels"](PROMPTS, texts)
    assert "LiNeS minus unscaled" in told.stdout
    assert (place / "found" / "figure.png").exists()
    written = sorted((place / "found" / "recipes").iterdir())
    assert written
    share = written[0].stem.removeprefix("c")
    one = shell(
        ["mergekit-lines", "soup", "recipe.yml", "--write", f"c={share}", "--out", "model"], place
    ).succeeded()
    assert one
    by_hand = runner.in_process(written[0].read_text(), place / "by_hand")
    assert models.weights_digest(place / "model") == models.weights_digest(by_hand)


def _completions(model: Any, tokenizer: Any) -> list[str]:
    """Greedy completions, one prompt at a time and so without padding."""
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=6,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"merge_method": "lines_postprocess"}, "wanted `lines` and two policies"),
        ({"models": [{"model": "a"}]}, "and 1 models besides the base"),
    ],
)
def test_soup_wants_two_policies(
    shell: Shell, place: Path, changes: dict[str, Any], told: str
) -> None:
    """A front lies between two models."""
    recipe = with_words(place, beta=1) | changes
    (place / "recipe.yml").write_text(yaml.safe_dump(recipe))
    rewards = ["--rewards", "rewards:probes:length", "--prompts", "prompts.txt"]
    refused = shell(["mergekit-lines", "soup", "recipe.yml", *rewards, "--out", "x"], place)
    assert refused.returncode == 1
    assert told in refused.last_line


GREEDY = '''
import torch
from safetensors.torch import load_file

def near(model, tokenizer, split):
    """Minus the distance from a point in weight space that all checkpoints stand around."""
    goal = load_file(f"goal_{split}.safetensors")
    state = model.state_dict()
    return -sum(float((state[name].double() - goal[name].double()).square().sum()) for name in goal)
'''


def test_greedy_keeps_a_checkpoint_only_if_the_soup_gets_better(
    shell: Shell, tmp_path: Path, llama_base: Path
) -> None:
    """The choice is that of the paper's procedure, done by hand on the state dicts in float64."""
    names = ["c0", "c1", "c2", "c3"]
    for seed, name in enumerate(names):
        models.finetuned(llama_base, tmp_path / name, seed=50 + seed, scale=0.05)
    # The goal: the mean of c1 and c3, and a little of c0; c2 alone is far off.
    states = {name: models.read(tmp_path / name) for name in names}
    models.finetuned(llama_base, tmp_path / "c2", seed=52, scale=0.5)
    states["c2"] = models.read(tmp_path / "c2")
    import safetensors.torch

    for split, tilt in (("validation", 0.1), ("test", 0.0)):
        goal = {
            key: (0.5 - tilt) * (states["c1"][key] + states["c3"][key])
            + 2 * tilt * states["c0"][key]
            for key in states["c1"]
        }
        safetensors.torch.save_file(goal, tmp_path / f"goal_{split}.safetensors")
        if split == "validation":
            target = goal
    (tmp_path / "nearness.py").write_text(GREEDY)
    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": name} for name in names],
        "parameters": {"alpha": 1, "beta": 0.3},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))

    def score(chosen: list[str]) -> float:
        total = 0.0
        for key, wanted in target.items():
            mean = sum(states[name][key].double() for name in chosen) / len(chosen)
            total -= float((mean - wanted.double()).square().sum())
        return total

    ranked = sorted(names, key=lambda name: -score([name]))
    kept, best = [], float("-inf")
    for name in ranked:
        if score([*kept, name]) > best:
            kept, best = [*kept, name], score([*kept, name])
    assert 1 < len(kept) < len(names)  # else the test shows nothing

    command = ["mergekit-lines", "greedy", "recipe.yml", "--evaluate", "python:nearness:near"]
    command += ["--test", "python:nearness:near", "--out", "found"]
    told = shell(command, tmp_path).succeeded()
    chosen = yaml.safe_load((tmp_path / "found" / "greedy.yml").read_text())
    assert [entry["model"] for entry in chosen["models"]] == sorted(kept)
    weights = [entry["parameters"]["weight"] for entry in chosen["models"]]
    assert weights == [1 / len(kept)] * len(kept)
    assert chosen["parameters"] == recipe["parameters"]
    assert "greedy + LiNeS" in told.stdout
    # What greedy.yml gives is what was measured as greedy + LiNeS: the others had weight 0.
    out = shell(["mergekit-yaml", "found/greedy.yml", "merged"], tmp_path).succeeded()
    assert out
    state = models.read(tmp_path / "merged")
    by_hand = -sum(
        float((state[key].double() - wanted.double()).square().sum())
        for key, wanted in target.items()
    )
    measured = [
        r["metrics"]["near"]["value"]
        for r in results(tmp_path)
        if r["split"] == "validation" and r["recipe"].get("parameters", {}).get("beta") == 0.3
    ]
    assert any(value == pytest.approx(by_hand, rel=1e-6) for value in measured)
