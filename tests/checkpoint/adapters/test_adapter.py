"""Adapters read over their base, against what PEFT merges in fp32."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.checkpoint.adapters.changes import Saved, Shift, Update
from mergekit_lines.checkpoint.sources import HeldTensor, Source
from mergekit_lines.errors import LinesError
from tests import models
from tests.checkpoint.adapters.peft_adapters import (
    CONFIG,
    WEIGHTS,
    adapter,
    edit_config,
    load_config,
    merged_by_peft,
    shapes,
)

TOLERANCE = 1e-6


@dataclass
class Counted:
    """A source that counts the entries that are read of it."""

    source: Source
    entries: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        self.entries += stop - start
        self.source.read_into(start, stop, into)


def read(source: Source, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    result = torch.full(source.shape, torch.nan, dtype=dtype)
    flat = result.view(-1)
    for start in range(0, len(flat), step):
        stop = min(start + step, len(flat))
        source.read_into(start, stop, flat[start:stop])
    return result


def check_same(opened: Adapter, base: models.Tensors, wanted: models.Tensors) -> None:
    """Check every tensor of the base in pieces of several sizes against PEFT's."""
    assert opened.reason is None
    for name, tensor in base.items():
        source = opened.source(name, HeldTensor(tensor))
        if name not in opened.changes:
            assert torch.equal(tensor.float(), wanted[name].float()), name
            assert isinstance(source, HeldTensor)
            continue
        assert not torch.equal(tensor.float(), wanted[name]), f"{name} is not changed"
        for step in (7, 33, 129, tensor.numel()):
            got = read(source, step)
            assert models.max_error_ratio(got, wanted[name]) < TOLERANCE, (name, step)


ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": [*ATTENTION, "up_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"down_proj": 2, r"model\.layers\.1\.self_attn\.q_proj": 3, "oj": 9},
            "alpha_pattern": {"v_proj": 5, r"layers.*_proj": 7},
        },
    ),
    "dora": (
        "llama",
        {"target_modules": ["q_proj", "k_proj", "down_proj", "lm_head"], "use_dora": True},
    ),
    "dora_rslora": ("qwen2", {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True}),
    "gaussian": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    "modules_to_save": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "embed_tokens"]},
    ),
    "bias_all": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias_lora_only": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True, "lora_alpha": 12}),
    "lora_bias_trained": (
        "qwen2",
        {"target_modules": ["q_proj"], "lora_bias": True, "bias": "all", "lora_alpha": 12},
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding_dora": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [101, 3, 4]}),
    "tokens_named": (
        "tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 127]}},
    ),
    # c_proj of the attention is square: its shape does not show that it is stored [in, out].
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"], "bias": "all"}),
    "conv1d_dora": ("gpt2", {"target_modules": ["c_fc", "c_proj"], "use_dora": True}),
    "conv2d": ("vit", {"target_modules": ["projection"], "modules_to_save": ["classifier"]}),
    "conv2d_dora": ("vit", {"target_modules": ["projection", "classifier"], "use_dora": True}),
    # transformers names most of these layers otherwise than checkpoints do.
    "renamed": ("vit", {"target_modules": "all-linear"}),
    "conv1d_audio": ("whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "bf16": ("bf16", {"target_modules": ATTENTION, "dtype": torch.bfloat16}),
    "fp16": ("bf16", {"target_modules": ATTENTION, "dtype": torch.float16, "use_dora": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_is_what_peft_merges(kind: str, folder: Path, bases: Callable[[str], Path]) -> None:
    name, options = KINDS[kind]
    base, path = bases(name), folder / kind
    adapter(base, path, **options)
    opened = Adapter.open(path, shapes(base), base_config=load_config(base))
    assert opened.fingerprint_files == [path / CONFIG, path / WEIGHTS]
    check_same(opened, models.read(base), merged_by_peft(base, path))


def test_listing(folder: Path, bases: Callable[[str], Path]) -> None:
    options = {"target_modules": ["q_proj"], "bias": "all", "lora_bias": True, "use_rslora": True}
    path = adapter(bases("qwen2"), folder / "listing", **options)
    layer = "model.layers.0.self_attn"
    changes = Adapter.open(path, shapes(bases("qwen2"))).changes
    assert {name: [type(change) for change in each] for name, each in changes.items()} == {
        f"{layer}.q_proj.weight": [Update],
        f"{layer}.q_proj.bias": [Saved, Shift],
        f"{layer}.k_proj.bias": [Saved],
        f"{layer}.v_proj.bias": [Saved],
    }
    (update,) = changes[f"{layer}.q_proj.weight"]
    assert update.a.shape[0] == 4 and update.magnitude is None


def test_pickled(folder: Path, bases: Callable[[str], Path]) -> None:
    base, path = (
        bases("llama"),
        adapter(bases("llama"), folder / "pickled", target_modules=ATTENTION),
    )
    wanted = merged_by_peft(base, path)
    torch.save(models.read(path), path / "adapter_model.bin")
    (path / WEIGHTS).unlink()
    opened = Adapter.open(path, shapes(base))
    assert opened.fingerprint_files == [path / CONFIG, path / "adapter_model.bin"]
    check_same(opened, models.read(base), wanted)


def test_flag_of_another_layer(folder: Path, bases: Callable[[str], Path]) -> None:
    """PEFT turns its flag off again when it comes to a Linear after the Conv1Ds."""
    base = bases("gpt2")
    path = adapter(base, folder / "flag", target_modules=["attn.c_proj"])
    wanted = merged_by_peft(base, path)
    edit_config(path, fan_in_fan_out=False)
    check_same(Adapter.open(path, shapes(base)), models.read(base), wanted)


def test_float64_and_no_entries(folder: Path, bases: Callable[[str], Path]) -> None:
    base, path = bases("llama"), adapter(bases("llama"), folder / "double", **KINDS["dora"][1])
    opened, name = Adapter.open(path, shapes(base)), "model.layers.0.self_attn.q_proj.weight"
    source = opened.source(name, HeldTensor(models.read(base)[name].double()))
    assert source.dtype == torch.float64
    got = read(source, 77, torch.float64)
    assert models.max_error_ratio(got, merged_by_peft(base, path)[name]) < TOLERANCE
    assert torch.equal(got, read(source, 32 * 32, torch.float64))
    source.read_into(5, 5, torch.empty(0))


def test_an_adapter_over_an_adapter(folder: Path, bases: Callable[[str], Path]) -> None:
    base = bases("llama")
    path = adapter(base, folder / "twice", target_modules=["q_proj"])
    opened, name = Adapter.open(path, shapes(base)), "model.layers.0.self_attn.q_proj.weight"
    tensor = HeldTensor(models.read(base)[name])
    once, twice = opened.source(name, tensor), opened.source(name, opened.source(name, tensor))
    wanted = 2 * read(once, 100) - tensor.held
    assert models.max_error_ratio(read(twice, 100), wanted) < TOLERANCE


def test_threads_share_a_source(folder: Path, bases: Callable[[str], Path]) -> None:
    base = bases("llama")
    path = adapter(base, folder / "threads", target_modules=["embed_tokens"], use_dora=True)
    opened, name = Adapter.open(path, shapes(base)), "model.embed_tokens.weight"
    tensor = HeldTensor(models.read(base)[name])
    source, wanted = opened.source(name, tensor), merged_by_peft(base, path)[name]
    entries = wanted.numel()
    got = torch.empty(entries)
    bounds = [(start, min(start + 123, entries)) for start in range(0, entries, 123)]

    def work(first: int) -> None:
        for start, stop in bounds[first::4]:
            source.read_into(start, stop, got[start:stop])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert models.max_error_ratio(got.view_as(wanted), wanted) < TOLERANCE
    saved, dora = opened.changes[name]
    assert isinstance(saved, Saved)
    assert dora.a.shape[0] == 4 and dora.magnitude is not None


def test_only_what_is_asked_for_is_read(folder: Path, bases: Callable[[str], Path]) -> None:
    base, name = bases("llama"), "model.layers.0.self_attn.q_proj.weight"
    for kind, wanted in (("lora", 40), ("dora", 64)):  # a norm needs the two rows whole
        path = adapter(
            base, folder / f"read_{kind}", target_modules=["q_proj"], use_dora=kind == "dora"
        )
        tensor = Counted(HeldTensor(models.read(base)[name]))
        Adapter.open(path, shapes(base)).source(name, tensor).read_into(70, 110, torch.empty(40))
        assert tensor.entries == wanted


def test_names_without_the_inner_models_name(folder: Path, bases: Callable[[str], Path]) -> None:
    """As published GPT-2 checkpoints are, and as adapters of a bare model are."""
    base = bases("gpt2")
    path = adapter(base, folder / "inner", target_modules=["c_attn"])
    prefix = "transformer."
    wanted = {key.removeprefix(prefix): one for key, one in merged_by_peft(base, path).items()}
    bare = {key.removeprefix(prefix): one for key, one in models.read(base).items()}
    check_same(
        Adapter.open(path, {key: tuple(one.shape) for key, one in bare.items()}), bare, wanted
    )

    tensors = models.read(path)
    shorter = {key.replace(prefix, ""): one for key, one in tensors.items()}
    safetensors.torch.save_file(shorter, path / WEIGHTS)
    opened = Adapter.open(path, shapes(base))
    check_same(opened, models.read(base), {prefix + key: one for key, one in wanted.items()})


def test_names_of_another_transformers(folder: Path, bases: Callable[[str], Path]) -> None:
    """A checkpoint keeps its first names; an adapter has those of the release it was made with."""
    base = bases("mixtral")
    names, config = shapes(base), load_config(base)
    path = adapter(base, folder / "experts", target_modules=["q_proj"])
    expert = "model.layers.0.block_sparse_moe.experts.1.w1"
    router = "model.layers.0.block_sparse_moe.gate.weight"

    def hold(**tensors: tuple[int, ...]) -> None:
        held = {f"base_model.model.{key}": torch.ones(shape) for key, shape in tensors.items()}
        safetensors.torch.save_file(held, path / WEIGHTS)

    sides = {"A": (4, 32), "B": (names[f"{expert}.weight"][0], 4)}
    hold(**{f"{expert}.lora_{side}.weight": shape for side, shape in sides.items()})
    assert list(Adapter.open(path, names).changes) == [f"{expert}.weight"]
    renamed = router.replace("block_sparse_moe", "mlp")
    hold(**{renamed: names[router]})
    assert list(Adapter.open(path, names, base_config=config).changes) == [router]
    with pytest.raises(LinesError, match="1 of which the base has not"):
        Adapter.open(path, names)
    hold(**{"model.layers.0.mlp.experts.down_proj": (4, 32, 64)})
    opened = Adapter.open(path, names, base_config=config)
    assert opened.reason == "transformers fuses tensors that it changes"
    assert not opened.changes
