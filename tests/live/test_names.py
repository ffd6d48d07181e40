"""Live models whose files name or hold their parameters otherwise than their classes do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergekit_lines import LinesError, LiveModel
from mergekit_lines.live.blueprint import Blueprint
from tests import models
from tests.architectures import DECODER, IMAGE, ROWS, TOKENS, Row
from tests.e2e.runner import in_process
from tests.live.compare import same_bits, weights

ROW = {row.name: row for row in ROWS}
TIES = {"wrap": "ties", "density": 0.5, "alpha": 0.4, "beta": 0.5}


def mixtral() -> Any:
    """Return the config of a model whose files hold experts one by one."""
    return transformers.MixtralConfig(**DECODER, **TOKENS, num_local_experts=4)


def qwen3_moe() -> Any:
    """Return another, of three patterns of names."""
    more = {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}
    return transformers.Qwen3MoeConfig(**DECODER, **TOKENS, **more)


FUSED = (
    Row("MixtralForCausalLM", mixtral, {"model.layers": 3}),
    Row("Qwen3MoeForCausalLM", qwen3_moe, {"model.layers": 3}),
    ROW["DeepseekV3ForCausalLM"],
)


def made(row: Row, path: Path) -> dict[str, Any]:
    """Make a base and a fine-tuned model, and return a recipe of TIES over them."""
    base = row.save(path / "base")
    tuned = [models.finetuned(base, path / name, seed=n) for n, name in enumerate("ab", 1)]
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in tuned],
        "parameters": dict(TIES),
    }


def assert_as_loaded(live: LiveModel, kind: str, out: Path) -> None:
    """Assert that the weights are those which transformers loads of the same merge, on disk."""
    in_process(live.recipe, out, write_model_card=False)
    loaded = getattr(transformers, kind).from_pretrained(out).state_dict()
    held = weights(live)
    assert set(held) == set(loaded)
    assert [name for name, want in loaded.items() if not same_bits(held[name], want)] == []


@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
@pytest.mark.parametrize("on_disk", [False, True], ids=["held", "disk"])
def test_experts_that_a_class_fuses_are_set(row: Row, on_disk: bool, tmp_path: Path) -> None:
    """Each expert of the files is a part of a fused parameter, bit for bit, wherever that lies."""
    recipe = made(row, tmp_path)
    limits = {"cpu": Blueprint(recipe).working + 60_000} if on_disk else None
    with LiveModel(recipe, quiet=True, max_memory=limits) as live:
        fused = [name for name in live.model.state_dict() if name.endswith(".experts.gate_up_proj")]
        assert fused, "this transformers does not fuse them"
        assert ("disk" in live.accounting.weights) == on_disk
        live.set(alpha=0.9, beta=-0.3)
        live.set(density=0.7)
        assert_as_loaded(live, row.name, tmp_path / "out")


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "ViTForImageClassification"])
def test_names_that_transformers_changes_are_followed(name: str, tmp_path: Path) -> None:
    """A file's names that are not the class's lead to its parameters."""
    recipe = made(ROW[name], tmp_path)
    with LiveModel(recipe, quiet=True) as live:
        stored, held = set(models.read(recipe["base_model"])), set(live.model.state_dict())
        assert name != "Gemma3ForConditionalGeneration" or stored - held
        live.set(alpha=0.9, beta=-0.3)
        assert_as_loaded(live, name, tmp_path / "out")


@pytest.mark.parametrize("on_disk", [False, True], ids=["held", "disk"])
def test_a_tensor_that_becomes_several_parameters_is_set(on_disk: bool, tmp_path: Path) -> None:
    """A DINOv2's gated layers, stored as one and loaded as two, are set by runs of entries."""
    config = transformers.Dinov2Config(**IMAGE, use_swiglu_ffn=True)
    recipe = made(Row("Dinov2Model", lambda: config, {"encoder.layer": 3}), tmp_path)
    limits = {"cpu": Blueprint(recipe).working + 60_000} if on_disk else None
    with LiveModel(recipe, quiet=True, max_memory=limits) as live:
        assert ("disk" in live.accounting.weights) == on_disk
        live.set(alpha=0.9, beta=-0.3)
        live.set(density=0.7)
        assert_as_loaded(live, "Dinov2Model", tmp_path / "out")
        live.load()
        base = transformers.Dinov2Model.from_pretrained(recipe["base_model"]).state_dict()
        assert all(same_bits(tensor, base[name]) for name, tensor in weights(live).items())


@pytest.mark.parametrize("on_disk", [False, True], ids=["held", "disk"])
def test_positions_that_a_class_computes_are_there(on_disk: bool, tmp_path: Path) -> None:
    """Marian's files hold no tables of positions; the live model's are those of a loaded one."""
    row = ROW["MarianMTModel"]
    recipe = made(row, tmp_path)
    limits = {"cpu": Blueprint(recipe).working + 60_000} if on_disk else None
    with LiveModel(recipe, quiet=True, max_memory=limits) as live:
        assert "model.encoder.embed_positions.weight" in live.model.state_dict()
        live.set(alpha=0.9, beta=-0.3)
        assert_as_loaded(live, row.name, tmp_path / "out")


@pytest.mark.parametrize("whose", ["base", "all"])
def test_a_trunk_under_a_class_with_a_head_is_live_as_the_trunk(whose: str, tmp_path: Path) -> None:
    """A sentence encoder's file lacks the head of the class that its config names."""
    recipe = made(ROW["MPNetModel"], tmp_path)
    others = [entry["model"] for entry in recipe["models"]] if whose == "all" else []
    for folder in (recipe["base_model"], *others):
        models.edit_config(Path(folder), architectures=["MPNetForMaskedLM"])
    with LiveModel(recipe, quiet=True) as live:
        assert type(live.model) is transformers.MPNetModel
        live.set(alpha=0.9, beta=-0.3)
        assert_as_loaded(live, "MPNetModel", tmp_path / "out")


POOLED = {
    "BertForMaskedLM": "cls.",
    "RobertaForSequenceClassification": "classifier.",
    "ViTForImageClassification": "classifier.",
    "ViTForMaskedImageModeling": "decoder.",
    "DeiTForImageClassification": "classifier.",
}


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("on_disk", [False, True], ids=["held", "disk"])
def test_a_trunk_without_a_pooler_is_live_as_its_class_with_the_head_makes_it(
    kind: str, on_disk: bool, tmp_path: Path
) -> None:
    """The trunk's own class would draw a pooler; bit for bit it is what transformers loads."""
    vit = Row(kind, lambda: transformers.ViTConfig(**IMAGE), {"vit.encoder.layer": 3})
    recipe = made(ROW.get(kind, vit), tmp_path)
    for folder in ("base", "a", "b"):
        models.rewrite(
            tmp_path / folder,
            lambda held: {n: t for n, t in held.items() if not n.startswith(POOLED[kind])},
        )
    limits = {"cpu": Blueprint(recipe).working + 60_000} if on_disk else None
    with LiveModel(recipe, quiet=True, max_memory=limits) as live:
        assert ("disk" in live.accounting.weights) == on_disk
        live.set(alpha=0.9, beta=-0.3)
        in_process(live.recipe, tmp_path / "out", write_model_card=False)
        with_head = getattr(transformers, kind).from_pretrained(tmp_path / "out")
        loaded = with_head.base_model.state_dict()
        held = weights(live)
        assert set(held) == set(loaded)
        assert [name for name, want in loaded.items() if not same_bits(held[name], want)] == []


def test_a_trunk_beside_whole_models_of_its_class_is_no_trunk(tmp_path: Path) -> None:
    """A base that has lost its head is refused where the fine-tunes have theirs, by its names."""
    recipe = made(ROW["BertForMaskedLM"], tmp_path)

    def behead(tensors: models.Tensors) -> None:
        for name in [name for name in tensors if name.startswith("cls.")]:
            del tensors[name]

    models.rewrite(recipe["base_model"], behead)
    with pytest.raises(LinesError) as raised:
        LiveModel(recipe, quiet=True)
    (problem,) = raised.value.problems
    assert all(name.startswith("cls.predictions.") for name in problem.tensors)
    assert f"model {recipe['base_model']}: lacks tensors of BertForMaskedLM" in str(problem)
    assert "it is the BertModel alone. Use models that all have the head" in str(problem)


def test_experts_of_two_dtypes_are_refused(tmp_path: Path) -> None:
    """A fused parameter has one dtype; a file whose experts differ is refused by name."""
    recipe = made(FUSED[0], tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"

    def halve(tensors: models.Tensors) -> None:
        tensors[name] = tensors[name].to(torch.float16)

    for folder in (recipe["base_model"], *(entry["model"] for entry in recipe["models"])):
        models.rewrite(folder, halve)
    with pytest.raises(LinesError, match=r"MixtralForCausalLM: .* names that are one-to-one"):
        LiveModel(recipe, quiet=True)


def test_a_buffer_that_old_files_hold_is_passed_over(tmp_path: Path) -> None:
    """BERT's stored position ids, which its class computes, stop no live model."""
    recipe = made(ROW["BertModel"], tmp_path)

    def hold(tensors: models.Tensors) -> None:
        tensors["embeddings.position_ids"] = torch.arange(512)[None]

    for folder in (recipe["base_model"], *(entry["model"] for entry in recipe["models"])):
        models.rewrite(folder, hold)
    with LiveModel(recipe, quiet=True) as live:
        live.set(alpha=0.9, beta=-0.3)
        assert_as_loaded(live, "BertModel", tmp_path / "out")
