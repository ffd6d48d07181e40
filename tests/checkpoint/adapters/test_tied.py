"""Adapters of tied embeddings: trained as one they merge as one; else the way out is sound."""

from __future__ import annotations

import json
import re
import shutil
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
    edit_config,
    load,
    load_config,
    merged_by_peft,
    quietly,
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


def untie(message: str, base: Path, path: Path) -> Path:
    """Run the code that a message advises."""
    (code,) = re.findall(r"`(.*)`", message)
    names = {"AutoModelForCausalLM": transformers.AutoModelForCausalLM, "torch": torch}
    exec(code, {**names, "BASE": str(base), "NEW": str(path)})
    return path


@pytest.mark.parametrize("layers", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_the_advice_to_the_letter(base: Path, tmp_path: Path, layers: list[str]) -> None:
    """Layers trained apart: over the base that the message tells to make they merge as in PEFT.

    The code is taken out of the message and run.
    """
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": layers}
    path = adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(LinesError, match="Untie the base first") as refusal:
        opened(path, base)
    untied = models.read(untie(str(refusal.value), base, tmp_path / "untied"))
    assert torch.equal(untied[HEAD], models.read(base)[EMBEDDING])
    assert not json.loads((tmp_path / "untied" / "config.json").read_text())["tie_word_embeddings"]
    wanted = merged_by_peft(base, path)
    result = changed(path, tmp_path / "untied")
    assert set(result) == set(wanted)
    for name, tensor in wanted.items():
        assert models.max_error_ratio(result[name], tensor) < 1e-6, name


def refused(path: Path, base: Path) -> str:
    with pytest.raises(LinesError) as refusal:
        opened(path, base)
    return str(refusal.value)


@pytest.mark.parametrize("layers", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("tying", [True, False])
def test_low_rank_and_left_to_peft(
    base: Path, tmp_path: Path, layers: list[str], tying: bool
) -> None:
    """Refused: PEFT's merge has the update twice, or has it in a layer that was not trained.

    That it has is shown against B·A in float64.
    """
    targets = ["q_proj", *layers]
    path = adapter(base, tmp_path / "adapter", ensure_weight_tying=tying, target_modules=targets)
    tensors = {name: one.double() for name, one in models.read(path).items()}
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    ends = [tensors.get(f"{prefix}{end}") for end in "BA"]
    if ends[0] is None or ends[1] is None:
        ends = [tensors[f"base_model.model.lm_head.lora_{end}.weight"] for end in "AB"]
        ends = [end.T for end in ends]
    change = 2 * (ends[0] @ ends[1]).T  # lora_alpha 8 over rank 4
    before = models.read(base)[EMBEDDING].double()
    doubled = before + (2 if tying else 1) * change
    if tying or len(layers) == 1:
        merged = merged_by_peft(base, path)[EMBEDDING]
        assert models.max_error_ratio(merged, doubled) < 1e-5
    edit_config(path, init_lora_weights="olora")
    text = refused(path, base)
    assert "count it twice" in text if tying else "change both, and it was trained on one" in text
    assert "Untie the base first" in text


def test_over_a_pickled_base(base: Path, tmp_path: Path) -> None:
    """There too a low-rank update of both layers is refused, and what is saved whole is right."""
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    path = adapter(base, tmp_path / "saved", ensure_weight_tying=True, **options)
    targets = ["embed_tokens"]
    low_rank = adapter(base, tmp_path / "low", ensure_weight_tying=True, target_modules=targets)
    pickled = Path(shutil.copytree(base, tmp_path / "pickled"))
    torch.save(models.read(base), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()

    def merged(adapter: Path, out: str) -> models.Tensors:
        recipe = {
            "merge_method": "lines_postprocess",
            "base_model": str(pickled),
            "models": [{"model": f"{pickled}+{adapter}"}],
            "parameters": {"gamma": 0.25},
        }
        return models.read(runner.in_process(recipe, tmp_path / out))

    before = models.read(base)[EMBEDDING].double()
    trained = models.read(path)[f"base_model.model.{EMBEDDING}"].double()
    result = merged(path, "out")[EMBEDDING]
    assert models.max_error_ratio(result, before + 0.25 * (trained - before)) < 1e-6
    with pytest.raises(LinesError, match=r"changes lm_head\.weight, which .* would count it twice"):
        merged(low_rank, "other")
    assert not (tmp_path / "other").exists()


def test_the_advice_where_peft_merges(base: Path, tmp_path: Path) -> None:
    """A LoHa of the head alone: over the untied base that the message makes the head has it once.

    B·A is (w1_a·w1_b) ⊙ (w2_a·w2_b) there, alpha/rank 2, in float64.
    """
    options = peft.LoHaConfig(r=4, alpha=8, target_modules=["lm_head"])
    with quietly():
        model = peft.get_peft_model(load(base), options)
        with torch.no_grad():
            for number, one in enumerate(p for p in model.parameters() if p.requires_grad):
                one.copy_(0.1 * torch.randn(one.shape, generator=torch.manual_seed(number)))
        model.save_pretrained(str(tmp_path / "adapter"))
    text = refused(tmp_path / "adapter", base)
    assert "change both, and it was trained on one" in text
    untied = untie(text, base, tmp_path / "untied")
    recipe = {
        "merge_method": "lines_postprocess",
        "base_model": str(untied),
        "models": [{"model": f"{untied}+{tmp_path / 'adapter'}"}],
        "parameters": {"gamma": 0.25},
    }
    merged = models.read(runner.in_process(recipe, tmp_path / "out"))
    held = models.read(tmp_path / "adapter")
    w1_a, w1_b, w2_a, w2_b = (
        held[f"base_model.model.lm_head.hada_{end}"].double()
        for end in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    before = models.read(base)[EMBEDDING]
    change = 2 * (w1_a @ w1_b) * (w2_a @ w2_b)
    assert models.max_error_ratio(merged[HEAD], before.double() + 0.25 * change) < 1e-6
    assert torch.equal(merged[EMBEDDING], before)


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
