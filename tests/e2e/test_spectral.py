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

from mergekit_lines.cli import main
from tests import models, singular
from tests.e2e.runner import in_process, recipe_text
from tests.e2e.torture import Torturer, output_digest, partial_of

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
    vector, deltas = merged("layers.0.mlp.experts.gate_up_proj", 3, 6, 4)
    for number in range(3):
        expected = singular.iso_c([delta[number] for delta in deltas], 1.0)
        np.testing.assert_allclose(vector[number].numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (300, 40), (3, 40, 50), (5000,)])
@pytest.mark.parametrize("method", RULES)
def test_memory_is_that_of_real_merges(method: str, shape: tuple[int, ...]) -> None:
    """What `inspect` states is enough, and less than three times, of what torch allocates."""
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorGroup
    from torch.autograd import profiler_legacy

    name = "layers.0.experts.up" if len(shape) == 3 else "layers.0.up"
    for count in (2, 4):
        tensors = [torch.randn(shape) for _ in range(count + 1)]
        group = TensorGroup.from_tensors(tensors, base_index=0, name=name)
        legacy: Any = profiler_legacy
        legacy.profile(profile_memory=True).__enter__()
        try:
            get(method)([group])
        finally:
            threads = legacy._disable_profiler_legacy()
        held = most = 0
        for event in (event for thread in threads for event in thread):
            if event.kind() == "memory_alloc":
                held += event.cpu_memory_usage()
                most = max(most, held)
        stated = get(method).temporaries(group.metadata, shape, count)
        assert most <= stated <= 3.5 * most
