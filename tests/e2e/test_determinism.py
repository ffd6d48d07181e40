"""Threads, the order of execution and an interruption in between leave no trace in the bytes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines.engine import pieces as merging
from tests import models
from tests.e2e.runner import recipe_text
from tests.e2e.torture import Torturer, output_digest, partial_of

PIECE = 4096  # entries; smaller than usual, so that every matrix has several
FLAGS = ("--out-shard-size", "250K")
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"density": 0.3},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.8, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.8, "gamma": 0.05},
    "consensus_ta": {},
    "consensus_ties": {"density": 0.3, "trim": "model"},
}
OTHERWISE: dict[str, tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]] = {
    "two threads": (("--num-threads", "2"), ()),
    "four threads": (("--num-threads", "4"), ()),
    "another order": (("--num-threads", "2"), (("shuffle", 1),)),
    "a third order": (("--num-threads", "1"), (("shuffle", 2),)),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three fine-tuned models; embeddings and layers are larger than a piece."""
    folder = tmp_path_factory.mktemp("inputs")
    base = models.llama(folder / "base", hidden=128, vocab=500, dtype=torch.bfloat16)
    for number, name in enumerate("abc"):
        models.finetuned(base, folder / name, seed=number, scale=0.05)
    sizes = {name: tensor.numel() for name, tensor in models.read(base).items()}
    assert sizes["model.embed_tokens.weight"] > 10 * PIECE
    assert sizes["model.layers.0.mlp.up_proj.weight"] > 3 * PIECE
    return folder


def write_recipe(folder: Path, method: str, **parameters: Any) -> None:
    made = {
        "merge_method": "lines",
        "base_model": "base",
        "models": [{"model": name} for name in "abc"],
        "parameters": {"wrap": method, "beta": 0.5, "seed": 3, **METHODS[method], **parameters},
    }
    (folder / "recipe.yml").write_text(recipe_text(made), encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_each_time(method: str, torturer: Torturer, inputs: Path) -> None:
    """One thread or four, any kernels and order, killed and resumed: every file is the same."""
    # Without alpha: Eq. 2 sums up norms over all tensors, whose order must not matter either.
    write_recipe(inputs, method)
    pieces = ("pieces", PIECE)
    name = f"{method}-one"
    by_torch = [pieces, ("kernels", "torch")]
    torturer.merge(
        inputs, *FLAGS, "--num-threads", "1", out=f"{name}/out", hooks=by_torch
    ).succeeded()
    wanted = output_digest(inputs / name / "out")
    assert sum(file.endswith(".safetensors") for file in wanted) > 3
    for other, (flags, hooks) in OTHERWISE.items():
        out = f"{method} {other}/out"
        compiled = [pieces, ("kernels", "compiled"), *hooks]
        torturer.merge(inputs, *FLAGS, *flags, out=out, hooks=compiled).succeeded()
        assert output_digest(inputs / out) == wanted, other
    out = f"{method} resumed/out"
    dying = [pieces, ("shuffle", 4), ("die", 4, "after", "rename")]
    assert torturer.merge(inputs, *FLAGS, out=out, hooks=dying).returncode == -signal.SIGKILL
    assert list(partial_of(inputs / out).glob("partial-*"))
    again = torturer.merge(inputs, *FLAGS, out=out, hooks=[pieces, ("shuffle", 5)]).succeeded()
    assert "shards in " in again.stderr
    assert output_digest(inputs / out) == wanted


def test_the_order_is_another_one(torturer: Torturer, inputs: Path) -> None:
    """What the test above calls another order is one: shards become whole in other turns."""
    write_recipe(inputs, "task_arithmetic", alpha=0.4)
    turns = []
    for seed in (None, 1, 2):
        calls = inputs / f"calls-{seed}.json"
        hooks: list[tuple[Any, ...]] = [("record", str(calls), "pwrite")]
        hooks += [("shuffle", seed)] if seed else []
        torturer.merge(
            inputs, *FLAGS, "--num-threads", "1", out=f"turns-{seed}/out", hooks=hooks
        ).succeeded()
        turns.append([place for _, place, _ in json.loads(calls.read_text())])
    assert turns[0] == sorted(turns[0])
    assert turns[0] != turns[1] != turns[2] and turns[0] != turns[2]


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_real_pieces(method: str, torturer: Torturer, tmp_path: Path) -> None:
    """The same with pieces of the size that users have, in a tensor of more than three."""
    base = models.llama(tmp_path / "base", hidden=256, vocab=6500, layers=2, dtype=torch.bfloat16)
    for number, name in enumerate("abc"):
        models.finetuned(base, tmp_path / name, seed=number, scale=0.05)
    assert models.read(base)["model.embed_tokens.weight"].numel() > 3 * merging.PIECE
    write_recipe(tmp_path, method)
    digests = []
    for number, threads in enumerate(("1", "2", "3")):
        hooks = [("shuffle", number)] if number else []
        out = f"{number}/out"
        torturer.merge(tmp_path, "--num-threads", threads, out=out, hooks=hooks).succeeded()
        digests.append(output_digest(tmp_path / out))
    assert digests[0] == digests[1] == digests[2]
