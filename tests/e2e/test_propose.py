"""``mergekit-lines search``: the real command on real checkpoints, killed, refused and resumed.

What a live model measured is held against models that were merged to disk, loaded by
transformers and measured by the same functions.
"""

from __future__ import annotations

import json
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from mergekit_lines import sweep
from mergekit_lines.cli import main
from tests.e2e import runner
from tests.e2e.runner import ForkServer

optuna = pytest.importorskip("optuna")

PROBES = '''
import os, signal, torch
from pathlib import Path

CALLS, DIE, FAIL = Path("calls.txt"), Path("die_at.txt"), Path("fail_at.txt")

def numbers(model, split):
    """Mean and largest logit of four prompts, which differ between the splits."""
    generator = torch.Generator().manual_seed({"validation": 1, "test": 2}[split])
    ids = torch.randint(4, 128, (4, 6), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    return {"size": logits.abs().mean((1, 2)).tolist(), "top": logits.amax((1, 2)).tolist()}

def size(model, tokenizer, split):
    """Dies, or fails, at the calls that a file names."""
    with CALLS.open("a") as file:
        file.write("x")
    call = str(CALLS.stat().st_size)
    if DIE.exists() and call in DIE.read_text().split():
        os.kill(os.getpid(), signal.SIGKILL)
    if FAIL.exists() and call in FAIL.read_text().split():
        raise ValueError("no number")
    return numbers(model, split)
'''
Shell = Callable[..., runner.Result]
BY = ("--evaluate", "python:probes:size")
GOAL = ("--objective", "size - 2*top")
SEARCH = ("mergekit-lines", "search", "recipe.yml", "--set", "alpha=0:1", "--set", "beta=0.1:2",
          *BY, *GOAL)  # fmt: skip


@pytest.fixture(scope="module")
def shell(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Runs commands, each in a process of its own, that are forked off one start of mergekit."""
    folder = tmp_path_factory.mktemp("shell")
    return lambda command, cwd, **options: server.run(command, cwd, folder, **options)


@pytest.fixture
def place(tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path) -> Path:
    """A folder with a recipe and the evaluators' functions, in which commands run."""
    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}, {"model": str(llama_b)}],
        "parameters": {"alpha": 0.25, "beta": 0.5},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "probes.py").write_text(PROBES)
    return tmp_path


def scores(recipe: Any, out: Path, split: str = "validation") -> dict[str, float]:
    """What mergekit-yaml's merge of a recipe scores, as transformers loads it."""
    namespace: dict[str, Any] = {}
    exec(compile(PROBES, "probes.py", "exec"), namespace)
    runner.in_process(recipe, out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    return {name: sum(v) / len(v) for name, v in namespace["numbers"](model, split).items()}


def records(place: Path, out: str = "out") -> list[dict[str, Any]]:
    text = (place / out / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def trials(place: Path, out: str = "out", kind: str = "LiNeS") -> list[Any]:
    """The trials of a search, as Optuna itself reads them from its database."""
    url = f"sqlite:///{place / out / 'trials.db'}"
    (name,) = [one for one in optuna.get_all_study_names(url) if one.startswith(kind)]
    return optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)  # type: ignore[no-any-return]


def test_a_search_measures_what_the_merges_are(shell: Shell, place: Path) -> None:
    """best.yml is the best trial; it scores what mergekit-yaml's model does, on both splits.

    Beside it stand the uniform coefficient of equal mean and the unscaled merge.
    """
    command = [*SEARCH, "--trials", "8", "--test", *BY[1:], "--out", "out"]
    result = shell(command, place).succeeded()
    chosen = yaml.safe_load((place / "out" / "best.yml").read_text())
    words = chosen["parameters"]
    finished = trials(place)
    assert len(finished) == 8
    best = max(finished, key=lambda trial: trial.value)
    assert words == pytest.approx(best.params, rel=1e-5)
    for split in ("validation", "test"):
        expected = scores(chosen, place / split, split)
        (record,) = [
            one for one in records(place) if one["split"] == split and one["recipe"] == chosen
        ]
        values = {name: metric["value"] for name, metric in record["metrics"].items()}
        assert values == pytest.approx(expected, rel=1e-6)
        if split == "validation":
            goal = expected["size"] - 2 * expected["top"]
            assert best.value == pytest.approx(goal, rel=1e-6)
    measured = [one["recipe"].get("parameters") for one in records(place)]
    mean = words["alpha"] + words["beta"] / 2
    assert {"alpha": 1.0, "beta": 0.0} in measured
    assert any(one == pytest.approx({"alpha": mean, "beta": 0}) for one in measured if one)
    assert "depth brought" in result.stdout
    assert (place / "out" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (place / "out" / "results.json").exists()


def test_killed_searches_lose_nothing_and_measure_nothing_twice(shell: Shell, place: Path) -> None:
    """Five SIGKILLs within measurements: the trials are those of a search that went through."""
    command = [*SEARCH, "--trials", "14", "--quiet"]
    whole = shell([*command, "--out", "whole"], place).succeeded()
    calls = (place / "calls.txt").stat().st_size
    (place / "calls.txt").unlink()
    (place / "die_at.txt").write_text("2 5 6 12 19")
    killed = [*command, "--out", "killed"]
    for _ in range(5):
        assert shell(killed, place).returncode == -signal.SIGKILL
    resumed = shell([*killed, "--resume"], place).succeeded()
    assert (place / "calls.txt").stat().st_size == calls + 5
    assert resumed.stdout == whole.stdout
    there, again = ([(t.number, t.params, t.values) for t in trials(place, out)]
                    for out in ("whole", "killed"))  # fmt: skip
    assert again == there
    best = [(place / out / "best.yml").read_text() for out in ("whole", "killed")]
    assert best[0] == best[1]


def test_a_result_without_its_trial_is_not_measured_again(shell: Shell, place: Path) -> None:
    """Killed between the two, or with the database lost: what is in results.jsonl counts."""
    shell([*SEARCH, "--trials", "5", "--out", "out"], place).succeeded()
    calls = (place / "calls.txt").stat().st_size
    before = [(trial.params, trial.values) for trial in trials(place)]
    (place / "out" / "trials.db").unlink()
    shell([*SEARCH, "--trials", "5", "--out", "out"], place).succeeded()
    assert (place / "calls.txt").stat().st_size == calls
    assert [(trial.params, trial.values) for trial in trials(place)] == before


def test_two_objectives_give_the_front_of_what_was_measured(shell: Shell, place: Path) -> None:
    """Choices, blocks and weights by NSGA-II; the recipes are the trials that no other beats."""
    keys = ["--set", "blocks=0:1.5:3", "--set", "wrap=task_arithmetic,ties", "--set", "weights=0:1"]
    goals = ["--objective", "size", "--objective", "-top"]
    command = ["mergekit-lines", "search", "recipe.yml", *keys, *BY, *goals, "--trials", "12"]
    shell([*command, "--out", "out"], place).succeeded()
    finished = trials(place)
    assert len(finished) == 12
    assert {trial.params["wrap"] for trial in finished} == {"task_arithmetic", "ties"}
    beaten = {
        one.number
        for one in finished
        for other in finished
        if all(mine <= its for mine, its in zip(one.values, other.values, strict=True))
        and (one.values != other.values or other.number < one.number)
    }
    front = {trial.number for trial in finished} - beaten
    written = {int(path.stem[6:]): path for path in (place / "out" / "recipes").iterdir()}
    assert written.keys() == front and not (place / "out" / "best.yml").exists()
    number, path = max(written.items())
    recipe = yaml.safe_load(path.read_text())
    params = finished[number].params
    shape = [float(value) for value in recipe["parameters"]["schedule"].split(",")]
    assert shape == pytest.approx([params[f"blocks.{n}"] for n in (1, 2, 3)], rel=1e-5)
    assert recipe["parameters"].keys() == {"schedule", "wrap"}
    expected = scores(recipe, place / "merged")
    assert finished[number].values == pytest.approx([expected["size"], -expected["top"]], rel=1e-6)


def test_uniform_coefficients_are_searched_as_often(shell: Shell, place: Path) -> None:
    """The rival gets as many trials; where it wins, best-uniform.yml is a recipe of what it is."""
    command = [*SEARCH[:-1], "-size", "--set", "outside=0,0.5,1", "--trials", "6"]
    result = shell([*command, "--uniform", "0:0.6", "--out", "out"], place).succeeded()
    flat = trials(place, kind="uniform")
    assert len(flat) == len(trials(place)) == 6
    assert all(trial.params.keys() == {"alpha", "outside"} for trial in flat)
    best = max(flat, key=lambda trial: trial.value)
    assert "of as many trials" in result.stdout
    lines = max(trial.value for trial in trials(place))
    rival = place / "out" / "best-uniform.yml"
    assert rival.exists() == (best.value > lines)
    recipe = yaml.safe_load((place / "recipe.yml").read_text())
    recipe["parameters"] = {"alpha": float(f"{best.params['alpha']:.6g}"), "beta": 0.0,
                            "outside": best.params["outside"]}  # fmt: skip
    assert -scores(recipe, place / "merged")["size"] == pytest.approx(best.value, rel=1e-6)


def test_a_failing_point_is_told_and_tried_again(shell: Shell, place: Path) -> None:
    """Its neighbours are measured, the exit status is 1; the next run has the same values."""
    (place / "fail_at.txt").write_text("6")
    command = [*SEARCH, "--trials", "6", "--out", "out"]
    failed = shell(command, place)
    assert failed.returncode == 1
    assert "ValueError: no number" in failed.stderr
    assert "out: 1 measurement failed, as told above" in failed.last_line
    (bad,) = [trial for trial in trials(place) if trial.state.name == "FAIL"]
    assert (place / "out" / "best.yml").exists()
    calls = (place / "calls.txt").stat().st_size
    assert shell(command, place).succeeded()
    *_, again = trials(place)
    assert again.params == bad.params and again.state.name == "COMPLETE"
    assert (place / "calls.txt").stat().st_size <= calls + 3  # it may be the best of all now


def test_a_shared_database_makes_one_search_of_two_folders(shell: Shell, place: Path) -> None:
    """With --storage, another folder adds what is missing and measures nothing of the first's."""
    shared = ["--storage", f"sqlite:///{place / 'shared.db'}"]
    shell([*SEARCH, "--trials", "4", "--out", "one", *shared], place).succeeded()
    shell([*SEARCH, "--trials", "7", "--out", "two", *shared, "--resume"], place).succeeded()
    (name,) = optuna.get_all_study_names(shared[1])
    study = optuna.load_study(study_name=name, storage=shared[1])
    assert len(study.trials) == 7
    best = yaml.safe_load((place / "two" / "best.yml").read_text())["parameters"]
    assert best == pytest.approx(study.best_params, rel=1e-5)
    validation = [one["recipe"].get("parameters") for one in records(place, "two")]
    own = [one for one in validation if one and one["beta"]]
    assert len(own) <= 4  # three trials, and the best of the other folder
    assert not (place / "two" / "trials.db").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "bta=0.1:1"], "parameters.bta: nobody declares this name. Did you mean 'beta'?"),
        (
            ["--set", "density=0:2"],
            "parameters.density: found 2.0, wanted a share from 0 to 1. (at density = 2.0)",
        ),
        (["--set", "wrap=ties,tise"], "(at wrap = tise)"),
        (["--set", "beta=2:1"], "wanted LOW:HIGH, two finite numbers, the first below the second"),
        (["--set", "dtype.x=1:2"], "found a key outside of parameters"),
        (["--set", "beta=0.1:1", "--uniform=-1e308:1"], "found -1e+308, wanted a finite number"),
        (["--set", "beta=0.1:1", "--resume"], "--resume: sqlite:///"),
        (["--set", "beta=0.1:1", "--sampler", "cmaes"], "--sampler cmaes: found 1 objective"),
        (["--set", "beta=0.1:1", "--storage", "mine"], "--storage mine: found no database's URL"),
        (["--set", "beta=0.1:1", "--objective", "sise"], "Did you mean 'size'"),
    ],
)
def test_a_slip_is_told_before_the_first_trial(
    shell: Shell, place: Path, words: list[str], message: str
) -> None:
    """In one sentence, with exit status 1; no trial is made."""
    goal = () if "--objective" in words else ("--objective", "size")
    command = ["mergekit-lines", "search", "recipe.yml", *words, *BY, *goal, "--out", "out"]
    refused = shell(command, place)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert message in refused.stderr
    path = place / "out" / "results.jsonl"
    assert not path.exists() or len(records(place)) <= 3  # the inputs


def test_another_recipe_does_not_go_on_in_the_same_folder(shell: Shell, place: Path) -> None:
    """Its numbers would mix; wider ranges of the same recipe make a study beside the first."""
    shell([*SEARCH, "--trials", "2", "--out", "out"], place).succeeded()
    wider = [*SEARCH[:6], "beta=0.1:3", *SEARCH[7:], "--trials", "2", "--out", "out"]
    shell(wider, place).succeeded()
    names = optuna.get_all_study_names(f"sqlite:///{place / 'out' / 'trials.db'}")
    assert len(names) == 2
    recipe = yaml.safe_load((place / "recipe.yml").read_text())
    recipe["parameters"]["lambda"] = 0.5
    (place / "recipe.yml").write_text(yaml.safe_dump(recipe))
    other = shell([*SEARCH, "--trials", "2", "--out", "out"], place)
    assert other.returncode == 1
    assert "holds results of another search: the recipe differ" in other.last_line


def test_a_full_disk_is_one_sentence_and_the_search_goes_on(shell: Shell, place: Path) -> None:
    """The database may not grow: what refuses is told, and nothing is lost for the next run."""
    shell([*SEARCH, "--trials", "2", "--out", "out"], place).succeeded()
    size = (place / "out" / "trials.db").stat().st_size
    words = ["--trials", "30", "--out", "out", "--quiet"]
    command = [str(runner.BIN / "mergekit-lines"), *SEARCH[1:], *words]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    full = subprocess.run(
        command,
        cwd=place,
        env=runner.environment(runner.ONE_THREAD),
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "Mend that, and run the same command again" in full.stderr
    calls = (place / "calls.txt").stat().st_size
    shell([*SEARCH, *words], place).succeeded()
    finished = [trial for trial in trials(place) if trial.state.name == "COMPLETE"]
    assert len(finished) == len(trials(place)) == 30
    assert calls < (place / "calls.txt").stat().st_size <= 30 + 3 + 3 + 1  # inputs, beside, one


@pytest.fixture
def without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)


def test_without_optuna_a_search_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, without_optuna: None
) -> None:
    """In one sentence, before a model is opened; a sweep works as ever."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "probes", raising=False)  # another test's, of that name
    refused = CliRunner().invoke(main, [*SEARCH[1:], "--out", "out"])
    assert refused.exit_code == 1
    assert "pip install 'mergekit-lines[search]'" in refused.output
    assert len(refused.output.splitlines()) == 1
    assert not (place / "out").exists()
    swept = sweep(
        "recipe.yml", "beta=0.1,0.4,0.9", [*BY[1:]], "swept", objective="size", quiet=True
    )
    assert len(swept.points) == 3


def test_a_choice_at_the_end_of_an_axis_is_told(shell: Shell, place: Path) -> None:
    """By a sweep too, with the key to widen; one in the middle is not."""
    goal = ("--objective", "size")
    ends: Sequence[str] = ("beta=0.1,0.5,2", "beta=0.1:2")
    for command, axis in zip(("sweep", "search"), ends, strict=True):
        words = [
            "mergekit-lines",
            command,
            "recipe.yml",
            "--set",
            axis,
            *BY,
            *goal,
            "--out",
            command,
        ]
        output = shell(words, place).succeeded().stdout
        best = yaml.safe_load((place / command / "best.yml").read_text())["parameters"]["beta"]
        end = {"larger": best >= 1.96, "smaller": best <= 0.14}
        for word, there in end.items():
            assert (f"widen beta to see whether {word} is better" in output) == there
        assert command == "search" or any(end.values()) or best == 0.5


def test_trials_below_the_median_are_pruned(shell: Shell, place: Path) -> None:
    """The second evaluator is not asked where the first puts a trial below most whole ones.

    The rule is done again by hand: of five whole trials or more the median, step by step.
    """
    (place / "slow.py").write_text(
        "from pathlib import Path\n\ndef last(model, tokenizer, split):\n"
        "    with Path('slow.txt').open('a') as file:\n        file.write('x')\n    return 1.0\n"
    )
    goal = ("--evaluate", "python:slow:last", "--objective", "size", "--prune")
    command = [*SEARCH[:-2], *goal, "--trials", "16", "--sampler", "random", "--out", "out"]
    result = shell(command, place).succeeded()
    whole: list[float] = []
    expected = []
    for trial in trials(place):
        value = trial.intermediate_values[0]
        below = len(whole) >= 5 and value < statistics.median(whole)
        expected.append("PRUNED" if below else "COMPLETE")
        whole += [] if below else [value]
    assert [trial.state.name for trial in trials(place)] == expected
    assert (count := expected.count("PRUNED")) >= 2
    assert f"{count} more trials were given up early" in result.stdout
    beside = 3 + 2  # inputs, uniform and unscaled
    assert (place / "slow.txt").stat().st_size == 16 - count + beside
    calls = (place / "calls.txt").stat().st_size
    shell(command, place).succeeded()
    assert (place / "calls.txt").stat().st_size == calls


def test_parts_measured_for_another_objective_prune_nothing(shell: Shell, place: Path) -> None:
    """The same folder with another objective: what is kept of the first one's parts is not used."""
    (place / "slow.py").write_text("def last(model, tokenizer, split):\n    return 1.0\n")
    command = [*SEARCH[:-2], "--evaluate", "python:slow:last", "--prune", "--sampler", "random",
               "--out", "out"]  # fmt: skip
    shell([*command, "--objective", "100 + size", "--trials", "8"], place).succeeded()
    shell([*command, "--objective", "size", "--trials", "12"], place).succeeded()
    url = f"sqlite:///{place / 'out' / 'trials.db'}"
    steps, pruned = dict[bool, list[float]](), dict[bool, int]()
    for name in optuna.get_all_study_names(url):
        own = optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)
        values = [value for trial in own for value in trial.intermediate_values.values()]
        steps[len(own) == 8] = values
        pruned[len(own) == 8] = sum(trial.state.name == "PRUNED" for trial in own)
        # The part that is heard is the objective's one metric.
        assert all(
            list(trial.intermediate_values.values()) in ([], trial.values)
            for trial in own
            if trial.state.name == "COMPLETE"
        )
    # Those that the first gave up are measured again; of too few whole ones there is no median.
    assert (len(steps[True]), len(steps[False])) == (8, 4 + pruned[True])
    assert min(steps[True]) > 50 > max(steps[False])


def test_a_front_gives_no_trial_up(shell: Shell, place: Path) -> None:
    """Of several objectives none is above another: refused."""
    refused = shell([*SEARCH, "--objective", "top", "--prune", "--out", "out"], place)
    assert refused.returncode == 1
    assert "--prune: found several objectives, wanted one" in refused.last_line
