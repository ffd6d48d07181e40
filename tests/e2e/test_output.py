"""What lies on disk afterwards: the output folder, its texts, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import (
    BIN,
    STUCK,
    ForkServer,
    environment,
    in_process,
    mergekit_multi,
    mergekit_yaml,
    recipe_text,
)
from tests.e2e.torture import Torturer


def recipe(base: Path | str, *others: Path | str, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(other)} for other in others],
        "parameters": {"beta": 0.5, **parameters},
    }


def test_relative_paths_with_spaces_and_other_letters(server: ForkServer, tmp_path: Path) -> None:
    """Offline, short relative paths with blanks and non-ASCII letters merge, card and all."""
    place = tmp_path / "mes modèles 模型"
    place.mkdir()
    models.llama(place / "base modèle")
    models.finetuned(place / "base modèle", place / "affiné", seed=1)
    text = recipe("base modèle", "./affiné")
    done = mergekit_yaml(text, "sortie é", cwd=place, server=server).succeeded()
    out = place / "sortie é"
    assert "Traceback" not in done.stderr
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }
    assert [path.name for path in place.iterdir() if "partial" in path.name] == []
    assert out.name in (out / "README.md").read_text(encoding="utf-8")


def test_a_recipe_without_its_text(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Python's ``run_merge`` needs no text of the recipe, but where mergekit cannot write one."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(recipe(llama_base, llama_a))
    run_merge(config, str(tmp_path / "out"), MergeOptions(quiet=True))
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == config.to_yaml()
    blank = MergeConfiguration.model_validate(recipe(llama_base, tmp_path / "a b"))
    with pytest.raises(LinesError, match=r"a space or a quote\. Give run_merge .* config_source"):
        run_merge(blank, str(tmp_path / "blank"), MergeOptions(quiet=True))


def test_an_empty_out_is_no_folder(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """OUT of an unset shell variable is refused, and not taken for the working folder."""
    with pytest.raises(LinesError, match="OUT: found an empty text"):
        in_process(recipe(llama_base, llama_a), "")


def test_the_card_reads_back(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """The front matter passes huggingface_hub's own classes; the recipe stands in the card."""
    from huggingface_hub import ModelCard

    text = recipe_text(recipe(llama_base, llama_a))
    out = in_process(text, tmp_path / "out")
    assert (out / "mergekit_config.yml").read_text(encoding="utf-8") == text
    card = ModelCard.load(out / "README.md")
    assert card.data.tags == ["mergekit", "merge", "lines"]
    assert card.data.library_name == "transformers"
    # Local folders are no Hub ids.
    assert card.data.base_model is None
    for place in (llama_base, llama_a):
        text = text.replace(str(place), f"./{place.name}")  # where they lay is nobody's business
    assert text.strip() in card.text
    assert str(llama_base.parent) not in (out / "README.md").read_text(encoding="utf-8")
    assert "| block 4 | 1.5 |" in card.text


def test_the_report_holds_what_was_done(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Recipe, versions, α, and λ of every block and outside tensor."""
    text = recipe_text(recipe(llama_base, llama_a, wrap="ties", alpha=0.25, seed=4))
    report = json.loads((in_process(text, tmp_path / "out") / "lines_report.json").read_text())
    assert report["recipe"] == text
    assert report["wrap"] == ["ties"]
    assert report["seed"] == 4
    assert report["alpha"] == {"value": 0.25, "source": "recipe"}
    (container,) = report["containers"]
    assert container["name"] == "model.layers"
    assert container["coefficients"] == pytest.approx([0.25, 0.25 + 0.5 / 3, 0.25 + 1 / 3, 0.75])
    assert report["outside"] == {
        "lm_head.weight": 0.25,
        "model.embed_tokens.weight": 0.25,
        "model.norm.weight": 0.25,
    }
    assert report["versions"]["torch"] == torch.__version__


def test_no_blocks_is_told() -> None:
    """A model without residual blocks gets α everywhere, and the user is told."""
    from mergekit_lines.lines.summary import Summary
    from mergekit_lines.report.file import describe

    summary = Summary((), 0, 0.5, {}, {"classifier.weight": 0.5})
    told = describe(summary)
    assert "no residual blocks found" in told[0]
    assert "beta has no effect" in told[0]


def test_a_tensor_that_the_base_has_not_is_told(
    llama_base: Path, llama_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value head of a fine-tuned model has no place in the base's architecture: dropped, told."""
    policy = tmp_path / "policy"
    shutil.copytree(llama_a, policy)

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["v_head.weight"] = torch.ones(1, 32)

    models.rewrite(policy, add_head)
    out = in_process(recipe(llama_base, policy), tmp_path / "out", quiet=False)
    told = capsys.readouterr().err
    assert "1 tensors that the base lacks are dropped: v_head.weight" in told
    report = json.loads((out / "lines_report.json").read_text())
    assert report["dropped"] == {str(policy): ["v_head.weight"]}
    assert "v_head.weight" not in models.read(out)


def test_integer_buffers_keep_their_dtype(tmp_path: Path) -> None:
    """``dtype`` and ``out_dtype`` are for weights; an integer tensor is written as it was."""
    base = models.llama(tmp_path / "base")

    def count(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.arange(32)

    models.rewrite(base, count)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    made = recipe(base, tuned) | {"dtype": "float32", "out_dtype": "bfloat16"}
    out = models.read(in_process(made, tmp_path / "out"))
    assert out["model.norm.weight"].equal(torch.arange(32))
    assert out["lm_head.weight"].dtype == torch.bfloat16


def test_a_chain_of_merges(
    llama_base: Path, llama_a: Path, llama_b: Path, server: ForkServer, tmp_path: Path
) -> None:
    """``lines_postprocess`` ends a mergekit-multi chain: TIES by mergekit, then the edit."""
    documents = [
        {
            "name": "merged",
            "merge_method": "ties",
            "base_model": str(llama_base),
            "models": [
                {"model": str(path), "parameters": {"weight": 1.0, "density": 0.5}}
                for path in (llama_a, llama_b)
            ],
            "dtype": "float32",
        },
        {
            "merge_method": "lines_postprocess",
            "base_model": str(llama_base),
            "models": [{"model": "merged"}],
            "parameters": {"gamma": 0.0},
            "dtype": "float32",
        },
    ]
    mergekit_multi(documents, "out", cwd=tmp_path, server=server).succeeded()
    zero, out = models.read(llama_base), models.read(tmp_path / "out")
    middle = models.read(tmp_path / "merges" / "steps" / "merged")
    for number in range(4):
        name = f"model.layers.{number}.mlp.up_proj.weight"
        start = zero[name].double()
        want = start + number / 3 * (middle[name].double() - start)
        assert models.max_error_ratio(out[name], want) <= 1e-6
    assert out["model.embed_tokens.weight"].equal(zero["model.embed_tokens.weight"])
    assert (tmp_path / "out" / "lines_report.json").exists()


def test_out_may_exist_empty_or_hold_other_things(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """An empty OUT is filled; a note or a .git in it stays."""
    (tmp_path / "empty").mkdir()
    in_process(recipe(llama_base, llama_a), tmp_path / "empty")
    held = tmp_path / "held"
    (held / ".git").mkdir(parents=True)
    (held / "notes.txt").write_text("mine")
    in_process(recipe(llama_base, llama_a), held)
    assert (held / "notes.txt").read_text() == "mine"
    assert (held / ".git").is_dir()
    names = {path.name for path in (tmp_path / "empty").iterdir()}
    assert {path.name for path in held.iterdir()} == names | {".git", "notes.txt"}
    assert models.weights_digest(tmp_path / "empty") == models.weights_digest(held)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a fine-tuned model and a recipe that takes some seconds."""
    folder = tmp_path_factory.mktemp("slow")
    base = models.llama(folder / "base", hidden=256, vocab=4_000, layers=4)
    models.finetuned(base, folder / "a", seed=1)
    models.finetuned(base, folder / "b", seed=2)
    parameters = {"wrap": "ties", "density": 0.5, "alpha": 0.5}
    text = recipe_text(recipe("base", "a", "b", **parameters))
    (folder / "recipe.yml").write_text(text)
    return folder


SHARDS = ("--out-shard-size", "1M")


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    command = [BIN / "mergekit-yaml", "recipe.yml", out, *SHARDS]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_first_shard(process: subprocess.Popen[str], partial: Path) -> None:
    deadline = time.monotonic() + STUCK
    while not list(partial.glob("*.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_merge_leaves_no_model(
    number: signal.Signals, slow: Path, torturer: Torturer
) -> None:
    """Ctrl-C or a kill after the first shard: no OUT; the next run goes on and finishes."""
    out = f"out{number.value}"
    partial = slow / f".{out}.partial"
    process = start(slow, out)
    wait_for_first_shard(process, partial)
    process.send_signal(number)
    output = process.communicate(timeout=STUCK)[0]
    assert process.returncode != 0
    assert not (slow / out).exists()
    assert not (partial / "config.json").exists()
    if number == signal.SIGINT:
        assert "Run the same command to go on" in output
        assert "Aborted!" in output
    again = torturer.merge(slow, *SHARDS, out=out).succeeded()
    assert "left by a merge that was killed" in again.stderr
    assert [path.name for path in slow.iterdir() if path.name.startswith(".")] == []
    assert "lm_head.weight" in models.read(slow / out)


def test_a_write_that_fails_leaves_nothing(slow: Path, torturer: Torturer) -> None:
    """Where the disk refuses a write, the merge ends with a sentence and nothing is kept."""
    ended = torturer.merge(slow, *SHARDS, out="full", hooks=[("small_files", 500_000)])
    assert ended.returncode == 1
    assert "Error: [lines]" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (slow / "full").exists()
    assert not (slow / ".full.partial").exists()


def test_two_merges_to_one_out(slow: Path, torturer: Torturer) -> None:
    """The second of two merges to the same OUT is refused while the first one runs."""
    first = start(slow, "twice")
    wait_for_first_shard(first, slow / ".twice.partial")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = torturer.merge(slow, *SHARDS, out="twice")
        assert second.returncode == 1
        assert "another merge is writing to it" in second.stderr
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.communicate(timeout=STUCK)
    assert first.returncode == 0
    assert (slow / "twice" / "config.json").exists()
