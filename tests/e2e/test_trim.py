"""``trim: model``: TIES as its paper's code has it, on whole flattened task vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mergekit.merge_methods import get, merge_state_dicts
from mergekit.merge_methods.base import TensorGroup

from mergekit_lines import LinesError, LiveModel
from mergekit_lines.cli import main
from mergekit_lines.engine import engine
from mergekit_lines.plan import calibrate
from tests import models
from tests.e2e.runner import in_process, recipe_text
from tests.e2e.test_own_merges import assert_near, check, recipe, weights_of
from tests.flattened import consensus, task_vectors, tensors_of, ties
from tests.live.compare import assert_as_merged


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


def test_goes_on_after_an_interrupt_without_counting_again(
    llama_base: Path,
    llama_a: Path,
    llama_b: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cuts stand in the state: the run that goes on reads none of it, and writes the same."""
    around = around_ties(llama_base, llama_a, llama_b, alpha=0.5, beta=1.0)
    sizes = {"out_shard_size": 30_000, "write_model_card": False}
    whole = in_process(around, tmp_path / "whole", **sizes)
    merged: list[str] = []
    merge = engine.merge_tensor

    def stopping(job: Any, *rest: Any) -> None:
        if len(merged) == 20:
            raise KeyboardInterrupt
        merged.append(job.name)
        merge(job, *rest)

    monkeypatch.setattr(engine, "merge_tensor", stopping)
    with pytest.raises(KeyboardInterrupt):
        in_process(around, tmp_path / "out", **sizes)
    monkeypatch.setattr(engine, "merge_tensor", merge)
    monkeypatch.setattr(calibrate, "find", None)
    monkeypatch.setattr(calibrate, "majority", None)
    out = in_process(around, tmp_path / "out", **sizes)
    assert weights_of(out) == weights_of(whole)
    reports = [json.loads((at / "lines_report.json").read_text("utf-8")) for at in (whole, out)]
    assert reports[0]["trim"] == reports[1]["trim"]
    assert reports[1]["run"]["resumed"]


def test_bytes_told_are_the_bytes_read(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``inspect`` counts the passes: what the report says was read is what was told before."""
    around = around_ties(llama_base, llama_a, llama_b)
    (tmp_path / "recipe.yml").write_text(recipe_text(around), encoding="utf-8")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "recipe.yml"), "--json"])
    assert done.exit_code == 0, done.output
    (inspection,) = json.loads(done.stdout)["documents"]
    out = in_process(around, tmp_path / "out")
    report = json.loads((out / "lines_report.json").read_text(encoding="utf-8"))
    size = sum(tensor.nbytes for tensor in models.read(llama_base).values())
    assert [model["cuts"] for model in inspection["inputs"]] == [3 * size] * 3
    # A small tensor's own pass, for mergekit's cut, is no pass of this one: each is merged once.
    assert report["run"]["bytes_read"] == inspection["totals"]["read"] == 3 * 4 * size


def test_a_live_model_is_the_merge(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Live weights are those of the files, to the bit; other coefficients count nothing again."""
    around = around_ties(llama_base, llama_a, llama_b, alpha="auto", beta=0.7)
    around = json.loads(json.dumps(around, default=str))
    with LiveModel(around, quiet=True) as live:
        assert_as_merged(live, tmp_path / "auto")
        live.set(alpha=0.3)
        assert_as_merged(live, tmp_path / "fixed")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibrate, "find", None)
            live.set(beta=0.1)
        assert_as_merged(live, tmp_path / "again")
        live.set(density=0.6)
        assert_as_merged(live, tmp_path / "denser")


def test_state_dicts_are_cut_alike(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``merge_state_dicts`` gives the tensors of the recipe, to the bit."""
    out = in_process(around_ties(llama_base, llama_a, llama_b), tmp_path / "out")
    states = {
        name: models.read(path)
        for name, path in {"base": llama_base, "a": llama_a, "b": llama_b}.items()
    }
    parameters = {"wrap": "ties", "trim": "model", "alpha": 1.0, "beta": 0.0, "density": 0.2}
    merged = merge_state_dicts(states, "lines", parameters=parameters, base="base")
    for name, tensor in models.read(out).items():
        assert torch.equal(merged[name], tensor), name


def test_one_tensor_at_a_time_is_refused() -> None:
    """mergekit's own call of one tensor cannot cut over a model, and says by what to merge."""
    group = TensorGroup.from_tensors([torch.ones(3), torch.zeros(3)], base_index=0)
    with pytest.raises(LinesError, match=r"parameters\.trim: found 'model'.*mergekit-yaml"):
        get("consensus_ties")([group], parameters={"trim": "model", "min_agree": 1})
