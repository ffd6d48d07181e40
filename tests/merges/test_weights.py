"""Weights of models by depth: values in one text as ``weight``, and ``weight_outside``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.merge_methods import merge_state_dicts

from mergekit_lines import LinesError, LiveModel
from mergekit_lines.cli import main
from tests import models
from tests.e2e import runner
from tests.e2e.runner import in_process
from tests.live.compare import assert_as_merged

BLOCKS = 4  # of the tiny LLaMA
WEIGHTS = ((0.1, 0.9, 0.2, 0.6), (-0.5, 0.5, 1.5, 2.5))
TEXTS = ("0.1, 0.9, 0.2, 0.6", "-0.5, 2.5")  # two values over four blocks are a line
OUTSIDE = (0.3, -0.5)  # of the second model: its first value


def recipe(base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    """Return a recipe whose two models have weights by depth."""
    first, second = ({"model": str(path), "parameters": {}} for path in tuned)
    first["parameters"] = {"weight": TEXTS[0], "weight_outside": OUTSIDE[0]}
    second["parameters"] = {"weight": TEXTS[1]}
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [first, second],
        "parameters": parameters,
        "dtype": "float32",
    }


def by_filters(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same recipe with mergekit's own filters, one for each block."""
    result = copy.deepcopy(dict(document))
    for entry, weights, outside in zip(result["models"], WEIGHTS, OUTSIDE, strict=True):
        blocks = [
            {"filter": f"model.layers.{block}.", "value": value}
            for block, value in enumerate(weights)
        ]
        entry["parameters"] = {"weight": [*blocks, {"value": outside}]}
    return result


def assert_equal(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_the_stock_command_gives_each_model_a_weight_in_each_block(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """θ_0 + λ(ℓ)·Σ w_t(ℓ)·τ_t in float64, in blocks and outside; verify finds the same."""
    document = recipe(llama_base, llama_a, llama_b, alpha=0.5, beta=0.9, outside=2.0)
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(document))
    runner.run(["mergekit-yaml", "recipe.yml", "out"], tmp_path).succeeded()
    zero, *tuned = (models.read(path) for path in (llama_base, llama_a, llama_b))
    for name, got in models.read(tmp_path / "out").items():
        block = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        start = zero[name].double()
        weights = OUTSIDE if block is None else [each[block] for each in WEIGHTS]
        task = sum(w * (one[name].double() - start) for w, one in zip(weights, tuned, strict=True))
        coefficient = 2.0 if block is None else 0.5 + 0.3 * block
        assert models.max_error_ratio(got, start + coefficient * task) <= 1e-6, name
    verified = CliRunner().invoke(main, ["verify", str(tmp_path / "out"), "--all", "--json"])
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    "words",
    [
        {"alpha": 0.3, "beta": 0.4},
        {"alpha": "auto", "beta": 0.4},  # by the norms: the weights differ
        {"wrap": "ties", "density": 0.5, "alpha": "auto", "beta": 0.4},
        {"wrap": "dare_linear", "density": 0.5, "alpha": 0.3, "beta": 0.4},
        {"wrap": "linear", "normalize": False, "alpha": 0.3, "beta": 0.4},
        {"wrap": "consensus_ta", "min_agree": 1, "schedule": "0.1, 0.7"},
    ],
    ids=["sum", "auto", "ties", "dare", "linear", "consensus"],
)
def test_weights_by_depth_are_those_of_filters(
    words: dict[str, Any], llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Whatever a wrap does with weights, the bytes are those of one filter for each block."""
    document = recipe(llama_base, llama_a, llama_b, **words)
    out = models.read(in_process(document, tmp_path / "out"))
    assert_equal(out, models.read(in_process(by_filters(document), tmp_path / "filters")))


def test_one_weight_may_have_another_outside(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """`weight_outside` stands beside a number too, and under the recipe's own parameters."""
    document = recipe(llama_base, llama_a, llama_b, alpha=1, beta=0)
    document["models"] = [{"model": str(path)} for path in (llama_a, llama_b)]
    document["parameters"] |= {"weight": 0.4, "weight_outside": 0.1}
    out = models.read(in_process(document, tmp_path / "out"))
    blocks = {"filter": "model.layers.", "value": 0.4}
    document["parameters"] = {"alpha": 1, "beta": 0, "weight": [blocks, {"value": 0.1}]}
    assert_equal(out, models.read(in_process(document, tmp_path / "filters")))


def test_memory_and_single_tensors_have_the_same_weights(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """`merge_state_dicts` and `mergekit-pytorch` give what `mergekit-yaml` writes."""
    words = {"alpha": 0.3, "beta": 0.4}
    document = recipe(llama_base, llama_a, llama_b, **words)
    want = models.read(in_process(document, tmp_path / "out"))
    folders = (llama_base, llama_a, llama_b)
    states = {path.name: models.read(path) for path in folders}
    own = {
        "weight": {path.name: text for path, text in zip(folders[1:], TEXTS, strict=True)},
        "weight_outside": {llama_a.name: OUTSIDE[0], llama_b.name: OUTSIDE[1]},
    }
    parameters = {**words, **own}
    got = merge_state_dicts(states, "lines", parameters=parameters, base=llama_base.name)
    assert_equal(got, want)
    raw = {**document, "models": copy.deepcopy(document["models"])}
    for entry in [raw, *raw["models"]]:
        for key in ("base_model", "model"):
            if key in entry:
                entry[key] = f"{entry[key]}/model.safetensors"
    (tmp_path / "raw.yml").write_text(yaml.safe_dump(raw))
    runner.run(["mergekit-pytorch", "raw.yml", "raw"], tmp_path).succeeded()
    assert_equal(models.read(tmp_path / "raw"), want)


def test_blocks_of_slices_are_those_of_the_output(llama_base: Path, llama_a: Path) -> None:
    """A frankenmerge of five blocks has five weights, whichever layers they come from."""
    document = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "slices": [
            {
                "sources": [
                    {"model": str(llama_base), "layer_range": layers},
                    {
                        "model": str(llama_a),
                        "layer_range": layers,
                        "parameters": {"weight": "1, 2, 3, 4, 5"},
                    },
                ]
            }
            for layers in ([0, 3], [1, 3])
        ],
        "parameters": {"alpha": 0.5, "beta": 0.0},
    }
    with LiveModel(document, quiet=True) as live:
        zero, tuned = models.read(llama_base), models.read(llama_a)
        for block, layer in enumerate((0, 1, 2, 1, 2)):
            name = f"model.layers.{layer}.mlp.up_proj.weight"
            start = zero[name].double()
            want = start + 0.5 * (block + 1) * (tuned[name].double() - start)
            got = live.model.state_dict()[f"model.layers.{block}.mlp.up_proj.weight"]
            assert models.max_error_ratio(got, want) <= 1e-6, block


def test_inspect_tells_the_weights(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """A note for each model whose weight hangs on depth, and for no other."""
    document = recipe(llama_base, llama_a, llama_b, alpha=1, beta=0)
    document["models"][1]["parameters"] = {"weight": 0.5}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "recipe.yml"), "--json"])
    assert done.exit_code == 0, done.output
    assert f"{llama_a}: its weight is 0.1 to 0.9 in the blocks, 0.3 outside" in done.output
    assert f"{llama_b}: its weight" not in done.output


def test_a_live_model_holds_what_the_files_hold(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Weights by depth that are set are those of the merge, to the bit; a list is a gradient."""
    start = recipe(llama_base, llama_a, llama_b, wrap="dare_linear", density=0.5, alpha=1, beta=0)
    with LiveModel(start, quiet=True) as live:
        live.set({"models.0.parameters.weight": "1, 0, 2, 0"})
        assert_as_merged(live, tmp_path / "out")
        with pytest.raises(LinesError, match=r"weight: found 'x, 1', wanted finite numbers"):
            live.set({"models.0.parameters.weight": "x, 1"})
