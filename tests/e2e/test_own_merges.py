"""Merges of this package alone in a stock recipe, and as a wrap of ``lines``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mergekit.merge_methods import get
from mergekit.merge_methods.base import TensorGroup

from mergekit_lines.cli import main
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process, recipe_text, run
from tests.flattened import consensus, task_vectors, tensors_of

BOUND = 1e-6  # of max|tensor|


def recipe(method: str, base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model} for model in tuned],
        "parameters": parameters,
        "dtype": "float32",
    }


def assert_near(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    assert set(got) == set(want)
    for name in want:
        assert models.max_error_ratio(got[name], want[name]) <= BOUND, name


def weights_of(out: Path) -> dict[str, str]:
    return {name: one for name, one in models.digest(out).items() if name.endswith(".safetensors")}


def check(out: Path) -> None:
    """Verify every tensor by the formula, not by the method's own code."""
    done = CliRunner().invoke(main, ["verify", str(out), "--all", "--json"])
    assert done.exit_code == 0, done.output
    verdict = json.loads(done.stdout)
    assert not [note for note in verdict["notes"] if "own method" in note]


def test_stock_command_merges_alone(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``mergekit-yaml`` alone gives the paper's consensus, with a report that verifies."""
    text = recipe_text(recipe("consensus_ta", llama_base, llama_a, llama_b, tall_lambda=0.5))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    run(["mergekit-yaml", "recipe.yml", "out"], tmp_path).succeeded()
    deltas = task_vectors(llama_base, [llama_a, llama_b])
    want = tensors_of(llama_base, consensus(deltas, [0.5, 0.5], 2))
    assert_near(models.read(tmp_path / "out"), want)
    report = json.loads((tmp_path / "out" / "lines_report.json").read_text(encoding="utf-8"))
    assert (report["merge_method"], report["wrap"]) == ("consensus_ta", ["consensus_ta"])
    assert set(report["outside"].values()) == {1.0}
    assert "LiNeS" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for shown in (tmp_path / "recipe.yml", tmp_path / "out"):
        done = CliRunner().invoke(main, ["inspect", str(shown)])
        assert "merge_method consensus_ta, not scaled by depth" in done.stdout
        assert "beta has no effect" not in done.output
    check(tmp_path / "out")


def test_alone_is_lines_with_a_coefficient_of_one(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """α = 1 and β = 0 around it give the same bytes, with one thread and with two."""
    words = {"tall_lambda": 0.3, "weight": 0.7, "lambda": 0.9}
    alone = recipe("consensus_ta", llama_base, llama_a, llama_b, **words)
    around = recipe("lines", llama_base, llama_a, llama_b, **words)
    around["parameters"] |= {"wrap": "consensus_ta", "alpha": 1, "beta": 0}
    one = in_process(alone, tmp_path / "one", num_threads=1)
    two = in_process(alone, tmp_path / "two", num_threads=2)
    lines = in_process(around, tmp_path / "lines", num_threads=2)
    assert weights_of(one) == weights_of(two) == weights_of(lines)


@pytest.mark.parametrize("alpha", [0.3, "auto"])
def test_scaled_by_depth(
    alpha: float | str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Around it α is Eq. 2 of the merged vector before λ, or the recipe's; weights per model."""
    around = recipe("lines", llama_base, llama_a, llama_b, alpha=alpha, beta=0.9, min_agree=1)
    around["parameters"] |= {"wrap": "consensus_ta"}
    around["models"][0]["parameters"] = {"weight": 0.5, "tall_lambda": 0.6}
    out = in_process(around, tmp_path / "out")
    whole = task_vectors(llama_base, [llama_a, llama_b])
    merged = consensus(whole * np.array([[0.5], [1.0]]), [0.6, 0.4], 1)
    first = alpha
    if alpha == "auto":
        first = np.abs(whole.sum(axis=0)).sum() / np.abs(merged).sum() / 2
    zero, vector = models.read(llama_base), tensors_of(llama_base, merged)
    want = {}
    for name, tensor in zero.items():
        parts = name.split(".")
        depth = int(parts[2]) / 3 if parts[1] == "layers" else 0.0
        want[name] = tensor.double() + (first + 0.9 * depth) * (vector[name] - tensor.double())
    assert_near(models.read(out), want)
    check(out)


def test_mergekits_own_call_merges_in_memory() -> None:
    """``get("consensus_ta")(groups)`` is the method without a recipe: fp32, rounded once."""
    group = TensorGroup.from_tensors(
        [torch.tensor([1.0, 1, 1]), torch.tensor([2.0, 1, 3]), torch.tensor([2.0, 3, 0])],
        base_index=0,
    )
    (merged,) = get("consensus_ta")([group], parameters={"min_agree": 2})
    # τ: (1, 0, 2) and (1, 2, −1); at λ = 0.4 both want the first and the last entry.
    assert merged.tolist() == [3.0, 1.0, 2.0]


def test_more_agreement_than_models_is_refused(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """One model and the default of two says what to give."""
    with pytest.raises(LinesError, match=r"parameters\.min_agree: found 2 .* at most 1"):
        in_process(recipe("consensus_ta", llama_base, llama_a), tmp_path / "out")


def test_a_search_wants_coefficients(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A sweep of a merge alone is told how to have some."""
    path = tmp_path / "recipe.yml"
    path.write_text(recipe_text(recipe("consensus_ta", llama_base, llama_a)), encoding="utf-8")
    words = ["--set", "tall_lambda=0.3,0.4", "--evaluate", "perplexity:none.txt", "--out", "s"]
    done = CliRunner().invoke(main, ["sweep", str(path), *words])
    assert done.exit_code == 1
    assert "`merge_method: lines` and `wrap: consensus_ta`" in done.stderr


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16"])
def test_of_ties_in_16_bits(
    out_dtype: str, llama_bf16_base: Path, llama_bf16_a: Path, llama_bf16_b: Path, tmp_path: Path
) -> None:
    """bf16 inputs, a wrap with automatic α: every entry by the formula, shuffled models alike."""
    around = recipe("lines", llama_bf16_base, llama_bf16_a, llama_bf16_b, beta=1.0, density=0.4)
    around["parameters"] |= {"wrap": "consensus_ties", "min_agree": 2}
    around |= {"dtype": "bfloat16", "out_dtype": out_dtype}
    out = in_process(around, tmp_path / "out", out_shard_size=50_000)
    check(out)
    merged = models.read(out)
    base = models.read(llama_bf16_base)
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, out_dtype)}
    up = "model.layers.2.mlp.up_proj.weight"
    changed = (merged[up] != base[up].to(merged[up].dtype)).double().mean()
    assert 0 < changed < 0.7


def test_dare_by_its_papers_share_is_right(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``rescale_by: p`` multiplies what stays by 1/density, and nothing by a norm."""
    around = recipe("lines", llama_base, llama_a, llama_b, alpha=1, beta=0, density=0.25)
    around["parameters"] |= {"wrap": "dare_linear"}
    plain = in_process(
        around | {"parameters": around["parameters"] | {"rescale": False}}, tmp_path / "plain"
    )
    around["parameters"] |= {"rescale_by": "p"}
    out = in_process(around, tmp_path / "out")
    check(out)
    zero, one = models.read(llama_base), models.read(plain)
    want = {name: t.double() + 4 * (one[name].double() - t.double()) for name, t in zero.items()}
    got = models.read(out)
    for name, tensor in want.items():
        assert (got[name] - tensor).abs().max() <= 4e-6 * tensor.abs().max(), name
