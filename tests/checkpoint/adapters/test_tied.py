"""Adapters of tied embeddings: trained as one they merge as one; else the way out is sound."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.checkpoint.sources import HeldTensor, whole
from mergekit_lines.errors import LinesError
from tests import models
from tests.checkpoint.adapters.peft_adapters import (
    CONFIG,
    WEIGHTS,
    adapter,
    load,
    load_config,
    merged_by_peft,
    shapes,
)
from tests.e2e import runner

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llama(tmp_path_factory.mktemp("tied") / "base", layers=2, tied=True)


def opened(path: Path, base: Path) -> Adapter:
    return Adapter.open(path, shapes(base), base_config=load_config(base))


def changed(path: Path, base: Path) -> models.Tensors:
    """Return the base's tensors with the adapter, as a merge reads them."""
    read = opened(path, base)
    assert read.reason is None
    tensors = models.read(base)
    return {name: whole(read.source(name, HeldTensor(one))) for name, one in tensors.items()}


@pytest.mark.parametrize("layers", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_saved_whole_and_trained_as_one(base: Path, tmp_path: Path, layers: list[str]) -> None:
    """What PEFT saves for both layers is one tensor, and merged as PEFT merges it."""
    options = {"target_modules": ["q_proj"], "modules_to_save": layers}
    path = adapter(base, tmp_path / "adapter", ensure_weight_tying=True, **options)
    assert {f"base_model.model.{name}" for name in (EMBEDDING, HEAD)} <= set(models.read(path))
    wanted = merged_by_peft(base, path)
    result = changed(path, base)
    assert set(result) == set(wanted)
    assert not torch.equal(result[EMBEDDING], models.read(base)[EMBEDDING])
    for name, tensor in wanted.items():
        assert models.max_error_ratio(result[name], tensor) < 1e-6, name


@pytest.mark.parametrize("layers", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_low_rank_and_trained_as_one(base: Path, tmp_path: Path, layers: list[str]) -> None:
    """The update counts once: the logits are those of the adapter as it was trained, unmerged.

    PEFT's own merge adds it to the shared tensor once for each layer.
    """
    targets = ["q_proj", *layers]
    path = adapter(base, tmp_path / "adapter", ensure_weight_tying=True, target_modules=targets)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        trained = peft.PeftModel.from_pretrained(load(base), str(path))(ids).logits
        model = load(base)
        model.load_state_dict(changed(path, base), strict=False)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert models.max_error_ratio(model(ids).logits, trained) < 1e-5
        assert models.max_error_ratio(load(base)(ids).logits, trained) > 0.01


def test_updates_that_are_not_one(base: Path, tmp_path: Path) -> None:
    """A file that was changed in one of the two places is refused."""
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    path = adapter(base, tmp_path / "adapter", ensure_weight_tying=True, **options)
    tensors = models.read(path)
    tensors[f"base_model.model.{HEAD}"][0, 0] += 1
    safetensors.torch.save_file(tensors, path / WEIGHTS)
    with pytest.raises(LinesError, match=r"different updates of model\.embed_tokens\.weight and"):
        opened(path, base)


def test_magnitudes_of_two_layers(base: Path, tmp_path: Path) -> None:
    """DoRA gives an embedding's columns and a head's rows lengths: that is no one tensor."""
    targets = ["q_proj", "embed_tokens"]
    options = {"target_modules": targets, "use_dora": True, "ensure_weight_tying": True}
    path = adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(LinesError, match="Untie the base first"):
        opened(path, base)


@pytest.mark.parametrize("layers", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_the_advice_to_the_letter(base: Path, tmp_path: Path, layers: list[str]) -> None:
    """Layers trained apart: over the base that the message tells to make they merge as in PEFT.

    The code is taken out of the message and run.
    """
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": layers}
    path = adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(LinesError, match="Untie the base first") as refusal:
        opened(path, base)
    (code,) = re.findall(r"`(.*)`", str(refusal.value))
    names = {"AutoModelForCausalLM": transformers.AutoModelForCausalLM, "torch": torch}
    exec(code, {**names, "BASE": str(base), "NEW": str(tmp_path / "untied")})
    untied = models.read(tmp_path / "untied")
    assert torch.equal(untied[HEAD], models.read(base)[EMBEDDING])
    assert not json.loads((tmp_path / "untied" / "config.json").read_text())["tie_word_embeddings"]
    wanted = merged_by_peft(base, path)
    result = changed(path, tmp_path / "untied")
    assert set(result) == set(wanted)
    for name, tensor in wanted.items():
        assert models.max_error_ratio(result[name], tensor) < 1e-6, name


def test_merged_by_the_command(base: Path, tmp_path: Path) -> None:
    """γ·(adapter - base) outside the blocks, in a file that stays tied."""
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    path = adapter(base, tmp_path / "adapter", ensure_weight_tying=True, **options)
    assert json.loads((path / CONFIG).read_text())["ensure_weight_tying"]
    recipe = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": f"{base}+{path}"}],
        "parameters": {"gamma": 0.25},
    }
    merged = models.read(runner.in_process(recipe, tmp_path / "out", lazy_unpickle=True))
    before = models.read(base)[EMBEDDING].double()
    trained = models.read(path)[f"base_model.model.{EMBEDDING}"].double()
    wanted = before + 0.25 * (trained - before)
    assert HEAD not in merged
    assert models.max_error_ratio(merged[EMBEDDING], wanted) < 1e-6
