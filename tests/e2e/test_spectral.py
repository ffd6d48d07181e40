"""CART, TSV-M and the isotropic merges in recipes: alone, around which λ goes by depth, again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mergekit.options import MergeOptions

from mergekit_lines.cli import main
from mergekit_lines.kernels import low_rank
from mergekit_lines.lines.alpha import NormCollector
from mergekit_lines.methods.spectral import temporaries
from mergekit_lines.plan.memory import Allocations, peak
from mergekit_lines.plan.sizes import Sized, Sizes
from mergekit_lines.verify.spectral import spectral_vector
from tests import models, singular
from tests.allocated import allocated
from tests.e2e.runner import in_process, recipe_text
from tests.e2e.torture import Torturer, output_digest, partial_of
from tests.plan.preparing import configuration, prepared

SCALE = 1.2
RULES: dict[str, Callable[..., Any]] = {
    "cart": partial(singular.cart, rank=0.08),
    "tsv_m": partial(singular.tsv_m, rank=None),
    "iso_c": singular.iso_c,
    "iso_cts": partial(singular.iso_cts, rank=0.8),
}
BOUND = 2e-6  # of max|tensor|


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three models of it, in fp32."""
    folder = tmp_path_factory.mktemp("inputs")
    base = models.llama(folder / "base", hidden=32, vocab=60, dtype=torch.float32)
    for number, name in enumerate("abc"):
        models.finetuned(base, folder / name, seed=number, scale=0.05)
    return folder


def recipe(inputs: Path, method: str, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": inputs / "base",
        "models": [{"model": inputs / name} for name in "abc"],
        "parameters": {"lambda": SCALE, **parameters},
        "dtype": "float32",
    }


def vectors(inputs: Path, method: str) -> dict[str, torch.Tensor]:
    averaged = 1.0 if method == "cart" else SCALE
    tuned = [inputs / name for name in "abc"]
    return singular.merged(inputs / "base", tuned, RULES[method], SCALE, averaged)


def check(out: Path, base: Path, expected: dict[str, torch.Tensor]) -> None:
    """Hold every tensor against its oracle, and let `verify` do so by formulas of its own."""
    got, origin = models.read(out), models.read(base)
    assert set(got) == set(expected)
    for name, vector in expected.items():
        want = origin[name].double() + vector
        assert models.max_error_ratio(got[name], want) <= BOUND, name
    done = CliRunner().invoke(main, ["verify", str(out), "--all", "--json"])
    assert done.exit_code == 0, done.output
    assert not [note for note in json.loads(done.stdout)["notes"] if "own code" in note]


@pytest.mark.parametrize("method", RULES)
def test_alone(method: str, inputs: Path, torturer: Torturer) -> None:
    """The stock command writes θ_0 + M's change, killed and resumed, on one thread or two."""
    folder = inputs / f"alone-{method}"
    folder.mkdir()
    (folder / "recipe.yml").write_text(recipe_text(recipe(inputs, method)), encoding="utf-8")
    flags = ("--out-shard-size", "20K")
    torturer.merge(folder, *flags, "--num-threads", "1", out="one/out").succeeded()
    check(folder / "one/out", inputs / "base", vectors(inputs, method))
    dying = [("shuffle", 3), ("die", 3, "after", "rename")]
    ending = torturer.merge(folder, *flags, out="two/out", hooks=dying)
    assert ending.returncode == -signal.SIGKILL
    assert list(partial_of(folder / "two/out").glob("*.safetensors"))
    torturer.merge(folder, *flags, "--num-threads", "2", out="two/out").succeeded()
    assert output_digest(folder / "one/out") == output_digest(folder / "two/out")


@pytest.mark.parametrize("alpha", [0.3, "auto"])
@pytest.mark.parametrize("method", RULES)
def test_around(method: str, alpha: float | str, inputs: Path, tmp_path: Path) -> None:
    """λ scales M − θ_0 by depth; α of Eq. 2 from the norms over the whole model."""
    words = recipe(inputs, "lines", wrap=method, alpha=alpha, beta=0.9)
    out = in_process(words, tmp_path / "out")
    merged, origin = vectors(inputs, method), models.read(inputs / "base")
    first = alpha
    if alpha == "auto":
        tuned = [models.read(inputs / name) for name in "abc"]
        total = sum(
            float(sum(one[name].double() - tensor.double() for one in tuned).abs().sum())
            for name, tensor in origin.items()
        )
        first = total / sum(float(vector.abs().sum()) for vector in merged.values()) / 3
    scaled = {}
    for name, vector in merged.items():
        parts = name.split(".")
        depth = int(parts[2]) / 3 if parts[1] == "layers" else 0.0
        scaled[name] = (first + 0.9 * depth) * vector
    check(out, inputs / "base", scaled)


def test_two_models_of_cart_are_their_mean(inputs: Path, tmp_path: Path) -> None:
    """What two centred task vectors keep cancels, whatever rank and λ."""
    words = recipe(inputs, "cart", rank=0.5)
    words["models"].pop()
    out = models.read(in_process(words, tmp_path / "out"))
    for name, tensor in models.read(inputs / "a").items():
        want = (tensor.double() + models.read(inputs / "b")[name].double()) / 2
        assert models.max_error_ratio(out[name], want) <= BOUND


def test_only_linear_maps_are_decomposed() -> None:
    """Embeddings, heads, projections, kernels and narrow ones are averaged; experts one by one."""
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorGroup

    generator = torch.Generator().manual_seed(0)

    def merged(name: str, *shape: int, vocabulary_axis: int | None = None) -> tuple[Any, Any]:
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        group = TensorGroup.from_tensors(
            tensors, base_index=0, name=name, vocabulary_axis=vocabulary_axis
        )
        (result,) = get("iso_c")([group])
        return result - tensors[0], [(one - tensors[0]).numpy() for one in tensors[1:]]

    averaged: list[tuple[str, tuple[int, ...], int | None]] = [
        ("model.embed_tokens.weight", (6, 4), None),
        ("model.tokens.weight", (6, 4), 0),
        ("lm_head.weight", (6, 4), None),
        ("text_projection.weight", (4, 4), None),
        ("visual_projection.weight", (4, 4), None),
        ("classifier.weight", (3, 4), None),
        ("encoder.position_embedding.weight", (6, 4), None),
        ("stem.convolution.weight", (3, 4, 2, 2), None),
        ("encoder.conv1.weight", (4, 5, 3), None),
        ("encoder.cls_token", (1, 7), None),
        ("model.norm.weight", (7,), None),
        ("model.scale", (), None),
    ]
    for name, shape, axis in averaged:
        vector, deltas = merged(name, *shape, vocabulary_axis=axis)
        np.testing.assert_allclose(vector.numpy(), np.mean(deltas, axis=0), atol=1e-12)
    vector, deltas = merged("layers.0.mlp.up_proj.weight", 6, 4)
    np.testing.assert_allclose(vector.numpy(), singular.iso_c(deltas, 1.0), atol=1e-8)
    for name in ("layers.0.mlp.experts.gate_up_proj", "h.0.block_sparse_moe.input_linear.weight"):
        vector, deltas = merged(name, 3, 6, 4)
        for number in range(3):
            expected = singular.iso_c([delta[number] for delta in deltas], 1.0)
            np.testing.assert_allclose(vector[number].numpy(), expected, atol=1e-8)


def test_a_wrong_kernel_is_found(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` does not excuse a merge by the code that made it."""
    wrong = low_rank.isotropic

    def doubled(matrix: torch.Tensor) -> torch.Tensor:
        return 2 * wrong(matrix)

    monkeypatch.setattr(low_rank, "isotropic", doubled)
    out = in_process(recipe(inputs, "iso_c"), tmp_path / "out")
    done = CliRunner().invoke(main, ["verify", str(out), "--all"])
    assert done.exit_code == 1
    assert "self_attn.q_proj.weight" in done.output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", RULES)
def test_memory_is_that_of_real_merges(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What `inspect` states is enough, and at most five times, of what torch allocates.

    Of the inputs' dtypes too, which are cast first, and where Eq. 2 reads the norms.
    """
    base = models.llama(tmp_path / "base", layers=2, hidden=48, vocab=600, dtype=dtype)
    for number in range(5):
        models.finetuned(base, tmp_path / str(number), seed=number)
    for count in (2, 5):
        tuned = [tmp_path / str(number) for number in range(count)]
        words = {"alpha": 0.3, "beta": 0.5, "wrap": method}
        config, options = configuration(base, *tuned, parameters=words), MergeOptions()
        with prepared(config, options) as plan:
            sizes = Sizes(plan.planned, plan.headers, config, options, None)
            allocations = Allocations()
            for tensor in sizes.tensors:
                for calibrating in (False, True):
                    stated = peak(allocations.of(tensor, calibrating=calibrating))
                    most = allocated(merging(tensor, NormCollector(1) if calibrating else None))
                    assert most <= stated <= 5 * most, (tensor.item.weight.name, calibrating)


def merging(tensor: Sized, collector: NormCollector | None) -> Callable[[], object]:
    """Return what merges one tensor of random inputs."""
    task = tensor.item.task.model_copy(update={"coefficient": 0.5})
    inputs = {model: torch.randn(tensor.shape).to(dtype) for model, dtype in tensor.inputs.items()}
    return partial(task.merge_whole, inputs, collector=collector)


@pytest.mark.parametrize("method", RULES)
def test_memory_of_stacked_experts(method: str) -> None:
    """Of a stack, one matrix at a time is decomposed."""
    shape = (16, 40, 50)
    tensors = [torch.randn(shape, dtype=torch.float64) for _ in range(7)]
    stated = temporaries(shape, 6, 8)
    whole = 8 * 16 * 40 * 50
    assert 8 * whole < stated < 11 * whole
    result = merged_alone(method, "layers.0.experts.up", tensors)
    assert result.shape == shape


def merged_alone(method: str, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Merge one tensor as mergekit's own tools do, without a recipe of ours; the base is first."""
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorGroup

    (result,) = get(method)([TensorGroup.from_tensors(tensors, base_index=0, name=name)])
    return torch.as_tensor(result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", RULES)
def test_other_dtypes_are_rounded_once(method: str, dtype: torch.dtype) -> None:
    """mergekit's own tools get the formula's result of half precision, rounded once."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 30, generator=generator)
    tensors = [base.to(dtype)]
    tensors += [(base + torch.randn(40, 30, generator=generator)).to(dtype) for _ in range(3)]
    result = merged_alone(method, "layers.0.up.weight", tensors)
    origin = tensors[0].double()
    deltas = [(one.double() - origin).numpy() for one in tensors[1:]]
    want = origin + torch.from_numpy(RULES[method](deltas, scale=1.0))
    assert result.dtype == dtype
    assert (result == want.to(dtype)).float().mean() > 0.99 or dtype == torch.float64
    assert models.max_error_ratio(result, want.to(dtype)) < (1e-9 if dtype.itemsize > 2 else 0.01)


@pytest.mark.parametrize("method", RULES)
def test_what_is_no_number_spreads(method: str) -> None:
    """With NaN or infinity in one model's matrix no entry of it is a number, for none can be."""
    for value in (float("nan"), float("inf")):
        tensors = [torch.randn(2, 6, 5) for _ in range(3)]
        tensors[1][0, 0, 0] = value
        result = merged_alone(method, "layers.0.experts.up", tensors)
        assert result[0].isnan().all()
        assert result[1].isfinite().all()
        whole = merged_alone(method, "layers.0.up", [one[0] for one in tensors])
        assert whole.isnan().all()


def test_switches_and_tables_of_biases() -> None:
    """Buffers of booleans and integers come back in their dtype; stacked biases are averaged."""
    for dtype in (torch.bool, torch.int64):
        tensors = [torch.ones(3, 3, dtype=dtype)] * 3
        assert torch.equal(merged_alone("cart", "attn.mask", tensors), tensors[0])
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    for name in ("experts.gate_up_proj_bias", "experts.bias", "relative_attention_bias.weight"):
        result = merged_alone("iso_c", f"layers.0.{name}", tensors)
        torch.testing.assert_close(result, (tensors[1] + tensors[2]) / 2)
        vector = spectral_vector(
            "iso_c",
            name,
            [one - tensors[0] for one in tensors[1:]],
            {"lambda": 1},
            vocabulary=False,
        )
        torch.testing.assert_close(tensors[0] + vector, result)


def test_adapters_are_verified(tmp_path: Path) -> None:
    """Changes of few directions have no own ones beside the common: rounding alone is none."""
    base = models.llama(tmp_path / "base")
    adapters = [models.lora(base, tmp_path / str(n), seed=n) for n in range(2)]
    listed = [{"model": f"{base}+{adapter}"} for adapter in adapters]
    out = in_process({**recipe(tmp_path, "iso_cts"), "models": listed}, tmp_path / "out")
    done = CliRunner().invoke(main, ["verify", str(out), "--all"])
    assert done.exit_code == 0, done.output
