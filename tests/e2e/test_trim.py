"""``trim: model``: TIES as its paper's code has it, on whole flattened task vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mergekit_lines.cli import main
from tests import models
from tests.e2e.runner import in_process
from tests.e2e.test_own_merges import assert_near, check, recipe, weights_of
from tests.flattened import consensus, task_vectors, tensors_of, ties


def around_ties(*sources: Path, **words: Any) -> dict[str, Any]:
    parameters = {"wrap": "ties", "trim": "model", "alpha": 1, "beta": 0, "density": 0.2, **words}
    return recipe("lines", *sources, **parameters)


def stepped(path: Path, base: Path, seed: int, lean: float = 0.0) -> Path:
    """A copy of the base whose entries moved by −2 … 2 steps of 1/64: equals and zero sums."""
    models.finetuned(base, path, seed=seed)
    origin = models.read(base)
    generator = torch.Generator().manual_seed(seed)

    def move(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in origin.items():
            steps = torch.randn(tensor.shape, generator=generator).add_(lean).round().clamp(-2, 2)
            tensors[name] = tensor + steps / 64

    models.rewrite(path, move)
    return path


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose entries are multiples of 1/1024 below 2, so that fp32 is exact."""
    folder = tmp_path_factory.mktemp("exact")
    base = models.llama(folder / "base", seed=3)

    def coarse(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = (tensor * 1024).round().clamp(-1024, 1024) / 1024

    models.rewrite(base, coarse)
    return base


@pytest.mark.parametrize("lean", [0.3, -0.3])
def test_equals_and_zero_sums(lean: float, exact: Path, tmp_path: Path) -> None:
    """Equal magnitudes at the cut all stay, and sums of 0 take the sign of most of the model."""
    tuned = [stepped(tmp_path / f"{seed}", exact, seed, lean) for seed in (1, 2, 3)]
    out = in_process(around_ties(exact, *tuned), tmp_path / "out")
    deltas = task_vectors(exact, tuned)
    assert_near(models.read(out), tensors_of(exact, ties(deltas, 0.2)))
    # What it is about is there: sums of 0 of what stays, and more than density of the entries.
    kept = np.where(np.abs(deltas) >= 2 / 64, deltas, 0)
    assert ((kept.sum(axis=0) == 0) & (kept != 0).any(axis=0)).sum() > 100
    assert (np.abs(deltas) >= 1 / 64).mean() > 0.5
    report = json.loads((out / "lines_report.json").read_text(encoding="utf-8"))
    assert report["trim"]["zero_sign"] == np.sign(lean)
    check(out)


@pytest.mark.parametrize("alpha", [0.4, "auto"])
def test_a_model_of_every_dtype(
    alpha: float | str, llama_bf16_base: Path, llama_bf16_a: Path, llama_a: Path, tmp_path: Path
) -> None:
    """bf16 beside fp32, fixed and automatic α: the original's merge, scaled by depth."""
    sources = (llama_bf16_base, llama_bf16_a, llama_a)
    around = around_ties(*sources, alpha=alpha, beta=1.4, density=0.3)
    out = in_process(around, tmp_path / "out")
    deltas = task_vectors(sources[0], sources[1:])
    merged = ties(deltas, 0.3)
    first = alpha
    if alpha == "auto":
        first = np.abs(deltas.sum(axis=0)).sum() / np.abs(merged).sum() / 2
    zero, vector = models.read(llama_bf16_base), tensors_of(llama_bf16_base, merged)
    want = {}
    for name, tensor in zero.items():
        parts = name.split(".")
        depth = int(parts[2]) / 3 if parts[1] == "layers" else 0.0
        want[name] = tensor.double() + (first + 1.4 * depth) * (vector[name] - tensor.double())
    assert_near(models.read(out), want)
    check(out)


def test_consensus_of_the_papers_ties(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``consensus_ties`` with ``trim: model`` alone is the authors' merge, whatever the threads."""
    alone = recipe("consensus_ties", llama_base, llama_a, llama_b, trim="model", min_agree=1)
    out = in_process(alone, tmp_path / "out", num_threads=1, out_shard_size=40_000)
    deltas = task_vectors(llama_base, [llama_a, llama_b])

    def summed(vectors: np.ndarray) -> np.ndarray:
        return ties(vectors, 0.2, mean=False)

    want = tensors_of(llama_base, consensus(deltas, [0.4, 0.4], 1, summed))
    assert_near(models.read(out), want)
    two = in_process(alone, tmp_path / "two", num_threads=2, out_shard_size=40_000)
    assert weights_of(two) == weights_of(out)
    check(out)


def test_an_edited_cut_is_noticed(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """A report with another magnitude, or the other sign, is not that of its inputs."""
    out = in_process(around_ties(llama_base, llama_a, llama_b), tmp_path / "out")
    file = out / "lines_report.json"
    report = json.loads(file.read_text(encoding="utf-8"))
    name, magnitude = next(iter(report["trim"]["magnitudes"].items()))
    sign = report["trim"]["zero_sign"]
    assert abs(sign) == 1
    trims = (
        {"magnitudes": {**report["trim"]["magnitudes"], name: magnitude * 1.001}},
        {"zero_sign": -sign},
    )
    for changes, words in zip(trims, ("magnitude", "zero_sign"), strict=True):
        edited = {**report, "trim": {**report["trim"], **changes}}
        file.write_text(json.dumps(edited), encoding="utf-8")
        done = CliRunner().invoke(main, ["verify", str(out), "--all"])
        assert done.exit_code == 1, done.output
        assert f"the {words} " in done.output, done.output
