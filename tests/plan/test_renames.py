"""One tensor under other names: old releases, prefixes of heads, experts one by one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from safetensors.torch import load_file, save_file

from mergekit_lines.errors import LinesError
from mergekit_lines.plan import renames
from tests import models
from tests.architectures import ALPHA, BETA, DECODER, ENCODER, IMAGE, ROWS, Row
from tests.e2e.runner import in_process

ROW = {row.name: row for row in ROWS}
WEIGHT = 0.5
HEADS = ("lm_head.weight", "embed_out.weight")  # of language models


def rename(path: Path, change: Callable[[str], str]) -> None:
    """Give a checkpoint's tensors other names."""
    file = path / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def recipe(base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    """Return a recipe of ``lines`` around task arithmetic with equal weights."""
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": ALPHA, "beta": BETA, "weight": WEIGHT, **parameters},
    }


def check(
    out: Path, base: Path, tuned: Mapping[str, Any], depth: Callable[[str], float | None]
) -> None:
    """Assert that a merge has the base's names, and the formula's values in float64.

    ``tuned`` has the fine-tuned tensors by the base's names; what it lacks stays the base's.
    """
    origin, merged = models.read(base), models.read(out)
    assert set(merged) == set(origin)
    changed = 0
    for name, tensor in merged.items():
        start = origin[name].double()
        vector = tuned[name].double() - start if name in tuned else torch.zeros(())
        expected = start + (ALPHA + BETA * (depth(name) or 0.0)) * WEIGHT * vector
        assert models.max_error_ratio(tensor, expected) <= 1e-6, name
        changed += bool((tensor != origin[name]).any())
    assert changed > len(merged) / 2


# Names as the Hub has them, and as transformers 5 saves the same model.
OLD = {
    "Gemma3ForConditionalGeneration": lambda name: name.replace(
        "vision_tower.", "vision_tower.vision_model."
    ),
    "LlavaForConditionalGeneration": lambda name: name.replace(
        "vision_tower.", "vision_tower.vision_model."
    ),
}


@pytest.mark.parametrize("kind", OLD)
@pytest.mark.parametrize("renamed", ["base", "a"])
def test_old_and_new_names_are_brought_together(kind: str, renamed: str, tmp_path: Path) -> None:
    """A base of old names and a model of new ones merge, and the other way round."""
    base = ROW[kind].save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    by_base = models.read(tuned)
    if any(".vision_model." in name for name in by_base):
        release = transformers.__version__
        pytest.skip(f"transformers {release} saves {kind} under the old names, and knows no others")
    rename(tmp_path / renamed, OLD[kind])
    if renamed == "base":
        by_base = {OLD[kind](name): tensor for name, tensor in by_base.items()}
    in_process(recipe(base, tuned), tmp_path / "out")

    def depth(name: str) -> float | None:
        return ROW[kind].depth(name.replace(".vision_model.", "."))

    check(tmp_path / "out", base, by_base, depth)
    loader = getattr(transformers, kind)
    _, loading = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]


def vit(kind: str) -> Row:
    """Return a row of a vision transformer's class."""
    prefix = "" if kind == "ViTModel" else "vit."
    return Row(kind, lambda: transformers.ViTConfig(**IMAGE), {f"{prefix}encoder.layer": 3})


def test_a_model_with_a_head_merges_into_a_base_without(tmp_path: Path) -> None:
    """The head is dropped, and the base's pooler, which the model lacks, stays as it is."""
    row = vit("ViTModel")
    base, tuned = row.save(tmp_path / "base"), vit("ViTForImageClassification").save(tmp_path / "a")
    in_process(recipe(base, tuned), tmp_path / "out")
    trunk = {n.removeprefix("vit."): t for n, t in models.read(tuned).items() if "vit." in n}
    assert "pooler.dense.weight" not in trunk
    check(tmp_path / "out", base, trunk, row.depth)


def test_a_model_without_a_head_merges_into_a_base_with_one(tmp_path: Path) -> None:
    """The base's head stays as it is."""
    row = vit("ViTForImageClassification")
    base, tuned = row.save(tmp_path / "base"), vit("ViTModel").save(tmp_path / "a")
    in_process(recipe(base, tuned), tmp_path / "out")
    trunk = {f"vit.{name}": tensor for name, tensor in models.read(tuned).items()}
    check(tmp_path / "out", base, trunk, row.depth)


def test_a_trunk_under_the_class_of_its_first_training(tmp_path: Path) -> None:
    """A sentence encoder has no head, and says the class that has one: its fine-tune merges."""
    row = ROW["MPNetModel"]
    base, tuned = row.save(tmp_path / "base"), tmp_path / "a"
    models.finetuned(base, tuned, seed=2)
    models.edit_config(base, architectures=["MPNetForMaskedLM"])
    in_process(recipe(base, tuned), tmp_path / "out")
    check(tmp_path / "out", base, models.read(tuned), row.depth)


@pytest.mark.parametrize("name", ["MPNetModel", "LlamaModel"])
def test_models_that_all_lack_their_head_are_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is merged is the trunk that they are; the line names the class that they are not."""
    kind = name.replace("Model", "ForMaskedLM" if name == "MPNetModel" else "ForCausalLM")
    row = ROW.get(name) or Row(name, ROW[kind].config, {"layers": 3})
    base, tuned = row.save(tmp_path / "base"), tmp_path / "a"
    models.finetuned(base, tuned, seed=2)
    for folder in (base, tuned):
        models.edit_config(folder, architectures=[kind])
    in_process(recipe(base, tuned), tmp_path / "out", quiet=False)
    check(tmp_path / "out", base, models.read(tuned), row.depth)
    said = capsys.readouterr().err
    assert f"its files hold the {name} alone, and no head of {kind}" in said


def test_a_trunk_by_an_inferred_layout_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mergekit's layout does without the head that no model has, and the line says so."""
    row = ROW["ModernBertForMaskedLM"]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    for folder in (base, tuned):
        lose(folder, "head.", "decoder.")
    in_process(recipe(base, tuned), tmp_path / "out", quiet=False)
    check(tmp_path / "out", base, models.read(tuned), row.depth)
    assert "ModernBertModel alone, and no head of ModernBertForMaskedLM" in capsys.readouterr().err


def without_head(row: Row, folder: Path, seed: int | None = None) -> Path:
    """Write a language model, or one fine-tuned from the base beside it, and leave out its head."""
    if seed is None:
        row.save(folder)
    else:
        models.finetuned(folder.parent / "base", folder, seed=seed)
    models.rewrite(folder, lambda held: {n: t for n, t in held.items() if n not in HEADS})
    return folder


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPTNeoXForCausalLM", "FalconForCausalLM"])
def test_language_models_that_all_lack_an_untied_head_are_refused(
    name: str, tmp_path: Path
) -> None:
    """A head that is no embedding is a part of the model: loaded, it would be random."""
    row = ROW[name]
    base = without_head(row, tmp_path / "base")
    tuned = without_head(row, tmp_path / "a", seed=2)
    for folder in (base, tuned):
        models.edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(LinesError, match=r"lm_head\.weight|embed_out\.weight"):
        in_process(recipe(base, tuned), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("headless", ["base", "a", "base a"])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2MoeForCausalLM"])
def test_an_embedding_is_not_merged_with_untied_heads(
    name: str, headless: str, tmp_path: Path
) -> None:
    """A model that lacks its own head is refused where its config does not tie it."""
    config = ROW[name].config()
    config.tie_word_embeddings = False
    base, tuned = models.save(name, config, tmp_path / "base", seed=1), tmp_path / "a"
    assert "lm_head.weight" in models.read(base)
    models.finetuned(base, tuned, seed=2)
    for folder in (base, tuned):
        models.edit_config(folder, tie_word_embeddings=False)
    for one in headless.split():
        lose(tmp_path / one, *HEADS)
    blamed = "no model holds" if headless == "base a" else f"{headless}: lacks"
    with pytest.raises(LinesError, match=rf"{blamed} lm_head\.weight, and (its )?config"):
        in_process(recipe(base, tuned), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def lose(folder: Path, *names: str) -> None:
    """Take the tensors with these beginnings out of a checkpoint."""
    models.rewrite(folder, lambda held: {n: t for n, t in held.items() if not n.startswith(names)})


# What the losers' files lack, of a class that mergekit has no layout for, of one that it has a
# wrong one for, and of one whose layout it infers and calls optional what not all models have.
LOSSES = {
    "ViTForImageClassification": ("classifier.bias",),
    "BertForMaskedLM": (
        "cls.predictions.bias",
        *(
            f"cls.predictions.transform.{part}.{kind}"
            for part in ("LayerNorm", "dense")
            for kind in ("bias", "weight")
        ),
    ),
    "SmolLM3ForCausalLM": ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"),
    "LlamaForCausalLM": ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"),
}


@pytest.mark.parametrize("losers", ["base", "a", "b", "base a", "a b"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_some_models_lack_is_named_and_nothing_else(
    name: str, losers: str, tmp_path: Path
) -> None:
    """No layout is blamed, no sound model, and no tensor that none of the models has."""
    row = ROW.get(name) or vit(name)
    base = row.save(tmp_path / "base")
    for seed, one in enumerate("ab", 2):
        models.finetuned(base, tmp_path / one, seed=seed)
    for one in losers.split():
        lose(tmp_path / one, *LOSSES[name])
    with pytest.raises(LinesError) as raised:
        in_process(recipe(base, tmp_path / "a", tmp_path / "b"), tmp_path / "out")
    blamed = {problem.key.rsplit("/", 1)[-1] for problem in raised.value.problems}
    assert blamed == set(losers.split())
    for problem in raised.value.problems:
        assert set(problem.tensors) == set(LOSSES[name]), problem
        assert "lacks tensors" in problem.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["GPTNeoXForCausalLM", "BertForMaskedLM"])
def test_pickled_models_are_whole_by_their_files(name: str, tmp_path: Path) -> None:
    """Where mergekit's layout does not fit, pickles are merged as safetensors are."""
    row = ROW[name]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    held = {folder: models.read(folder) for folder in (base, tuned)}
    for folder, tensors in held.items():
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    in_process(recipe(base, tuned), tmp_path / "out")
    for folder, tensors in held.items():
        save_file(tensors, folder / "model.safetensors")
        (folder / "pytorch_model.bin").unlink()
    check(tmp_path / "out", base, held[tuned], row.depth)


def test_a_pickled_model_that_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    """No sound pickle beside it is blamed."""
    base = ROW["BertForMaskedLM"].save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    for folder in (base, tuned):
        tensors = models.read(folder)
        if folder == base:
            del tensors["cls.predictions.bias"]
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(LinesError) as raised:
        in_process(recipe(base, tuned), tmp_path / "out")
    (problem,) = raised.value.problems
    assert problem.key == f"model {base}"
    assert problem.tensors == ("cls.predictions.bias",)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("ViTForImageClassification", ("classifier.bias",)),
        ("SmolLM3ForCausalLM", ("model.layers.1.mlp.up_proj.weight",)),
        ("LlamaForCausalLM", ("model.norm.weight",)),
        ("DINOv3ViTModel", ("embeddings.", "norm.")),  # the rest is an encoder, and no model
    ],
)
def test_what_all_models_lack_is_named(name: str, lost: tuple[str, ...], tmp_path: Path) -> None:
    """Every model is said to lack what is no whole head of its class, and no layout is blamed."""
    row = ROW.get(name) or vit(name)
    base = row.save(tmp_path / "base")
    tuned = models.save(name, row.config(), tmp_path / "a", seed=2)
    whole = {stored for stored in models.read(base) if stored.startswith(lost)}
    for one in (base, tuned):
        lose(one, *lost)
    with pytest.raises(LinesError) as raised:
        in_process(recipe(base, tuned), tmp_path / "out")
    assert [set(problem.tensors) for problem in raised.value.problems] == [whole] * 2
    assert "layout" not in str(raised.value)


def test_heads_of_two_classes_are_not_mixed(tmp_path: Path) -> None:
    """Two classes' `classifier` is refused: of one name and shape, it means two things."""
    for name, kind in (("base", "Sequence"), ("a", "Token")):
        config = transformers.BertConfig(**{**ENCODER, "vocab_size": 96})
        models.save(f"BertFor{kind}Classification", config, tmp_path / name, seed=1)
    with pytest.raises(LinesError, match=r"classifier.*which may mean two things"):
        in_process(recipe(tmp_path / "base", tmp_path / "a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cut_model_of_another_class_is_refused(tmp_path: Path) -> None:
    """What such a model lacks of its own class is lost, and not another head."""
    base, tuned = (
        vit("ViTModel").save(tmp_path / "base"),
        vit("ViTForImageClassification").save(tmp_path / "a"),
    )
    file = tuned / "model.safetensors"
    tensors = load_file(file)
    del tensors["vit.encoder.layer.1.layernorm_before.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(LinesError, match="do not give every parameter"):
        in_process(recipe(base, tuned), tmp_path / "out")


EXPERTS = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe")


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_stay_one_by_one(kind: str, tmp_path: Path) -> None:
    """The output has every expert under the name that the base's file gives it."""
    row = ROW[f"{kind}ForCausalLM"]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    assert any(".experts.3." in name for name in models.read(base))
    in_process(recipe(base, tuned), tmp_path / "out")
    check(tmp_path / "out", base, models.read(tuned), row.depth)


def test_what_ties_trims_is_counted_per_expert_of_the_files(tmp_path: Path) -> None:
    """Of each stored tensor by itself the larger half of the task vector is left."""
    row = ROW["MixtralForCausalLM"]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    text = recipe(base, tuned, wrap="ties", density=0.5, weight=1.0, alpha=1.0, beta=0.0)
    in_process(text, tmp_path / "out")
    origin, changed, merged = (models.read(path) for path in (base, tuned, tmp_path / "out"))
    for name, tensor in merged.items():
        if ".experts." not in name:
            continue
        vector = changed[name].double() - origin[name].double()
        kept = tensor != origin[name]
        assert int(kept.sum()) == vector.numel() // 2, name
        assert vector[kept].abs().min() >= vector[~kept].abs().max(), name


def test_a_buffer_that_only_the_base_holds_stays(tmp_path: Path) -> None:
    """A base of an old release with its rotary buffers merges with models that lack them."""
    row = ROW["GPTNeoXForCausalLM"]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    file = base / "model.safetensors"
    buffer = {f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    save_file({**load_file(file), **buffer}, file, {"format": "pt"})
    in_process(recipe(base, tuned), tmp_path / "out")
    merged = models.read(tmp_path / "out")
    lost = set(models.read(base)) - set(merged)
    assert lost <= set(buffer)
    assert not set(merged) - set(models.read(base))


def language_model(path: Path, **options: Any) -> Path:
    """Make a LLaMA of the sizes that the tiny Llava's language model has."""
    config = transformers.LlamaConfig(**{**DECODER, **options})
    return models.save("LlamaForCausalLM", config, path, seed=9)


def test_a_language_model_merges_into_a_vision_language_model(tmp_path: Path) -> None:
    """The ready recipe scales the language tower by its depth, and leaves vision as it was."""
    row = ROW["LlavaForConditionalGeneration"]
    base, tuned = row.save(tmp_path / "base"), language_model(tmp_path / "a")
    file = Path(__file__).parents[2] / "recipes" / "vlm-language-tower.yml"
    text = yaml.safe_load(file.read_text(encoding="utf-8"))
    text |= {"base_model": str(base), "models": [{"model": str(tuned)}], "out_dtype": "float32"}
    in_process(text, tmp_path / "out")
    origin, merged, language = (models.read(path) for path in (base, tmp_path / "out", tuned))
    assert set(merged) == set(origin)
    inside = 0
    for name, tensor in merged.items():
        if not name.startswith("language_model."):
            assert torch.equal(tensor, origin[name]), name
            continue
        own = language[name.removeprefix("language_model.")].double()
        depth = row.depth(name) or 0.0
        expected = origin[name].double() + (0.2 + 0.6 * depth) * (own - origin[name].double())
        assert models.max_error_ratio(tensor, expected) <= 1e-6, name
        inside += 1
    assert inside == len(language)
    _, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"]


def test_one_coefficient_for_each_tower(tmp_path: Path) -> None:
    """mergekit's filters give the towers of a CLIP coefficients of their own."""
    row = ROW["CLIPModel"]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    text = recipe(base, tuned, weight=1.0)
    text["parameters"]["alpha"] = [{"filter": "vision_model", "value": 0.0}, {"value": 1.0}]
    text["parameters"]["beta"] = [{"filter": "vision_model", "value": 0.5}, {"value": 0.0}]
    in_process(text, tmp_path / "out")
    origin, changed, merged = (models.read(path) for path in (base, tuned, tmp_path / "out"))
    for name, tensor in merged.items():
        coefficient = 0.5 * (row.depth(name) or 0.0) if "vision_model" in name else 1.0
        start = origin[name].double()
        expected = start + coefficient * (changed[name].double() - start)
        assert models.max_error_ratio(tensor, expected) <= 1e-6, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "num_attention_heads"),
        ({"num_hidden_layers": 2}, r"has 2 blocks where base_model .* has 3"),
        ({"num_hidden_layers": 4}, r"has 4 blocks where base_model .* has 3"),
        ({"vocab_size": 80}, "vocabulary sizes"),
    ],
)
def test_a_language_model_of_another_shape_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """It is not what the vision-language model was made from."""
    base = ROW["LlavaForConditionalGeneration"].save(tmp_path / "base")
    tuned = language_model(tmp_path / "a", **options)
    with pytest.raises(LinesError, match=message):
        in_process(recipe(base, tuned), tmp_path / "out")


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    """A GPT-NeoX is no tower of a Llava, and no other class of its trunk."""
    base = ROW["LlavaForConditionalGeneration"].save(tmp_path / "base")
    tuned = ROW["GPTNeoXForCausalLM"].save(tmp_path / "a")
    with pytest.raises(LinesError, match="the architectures differ"):
        in_process(recipe(base, tuned), tmp_path / "out")


def test_only_what_a_conversion_makes_is_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit, which looks through all names each time, is asked for no name in vain."""
    row = ROW["Gemma3ForConditionalGeneration"]
    base = row.save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    answers = {}

    def asked(kind: str, names: set[str], name: str) -> bool:
        answers[name] = answers.get(name, False) or can_convert_checkpoint_keys(kind, names, name)
        return answers[name]

    monkeypatch.setattr(renames, "can_convert_checkpoint_keys", asked)
    in_process(recipe(base, tuned), tmp_path / "out")
    assert all(answers.values())


def stored_twice(path: Path, pairs: Mapping[str, str]) -> None:
    """Let a checkpoint store tied tensors under their other names too."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors |= {copy: tensors[source].clone() for copy, source in pairs.items()}
    save_file(tensors, file, {"format": "pt"})


TIED: Mapping[str, tuple[Callable[[], Any], Mapping[str, str]]] = {
    "GPTNeoXForCausalLM": (
        lambda: transformers.GPTNeoXConfig(**DECODER, tie_word_embeddings=True),
        {"embed_out.weight": "gpt_neox.embed_in.weight"},
    ),
    "T5ForConditionalGeneration": (
        lambda: transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4
        ),
        {
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
    ),
    "BartForConditionalGeneration": (
        lambda: transformers.BartConfig(
            vocab_size=96,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
        ),
        {
            "model.encoder.embed_tokens.weight": "model.shared.weight",
            "model.decoder.embed_tokens.weight": "model.shared.weight",
            "lm_head.weight": "model.shared.weight",
        },
    ),
}


@pytest.mark.parametrize("twice", ["base", "a", "base b"])
@pytest.mark.parametrize("kind", TIED)
def test_tied_tensors_that_some_models_store_twice_stay_tied(
    kind: str, twice: str, tmp_path: Path
) -> None:
    """Every copy in the output is the merged embedding, and it loads as one."""
    config, pairs = TIED[kind]
    base = models.save(kind, config(), tmp_path / "base", seed=3)
    for seed, name in enumerate("ab", 1):
        models.finetuned(base, tmp_path / name, seed=seed)
    for name in twice.split():
        stored_twice(tmp_path / name, pairs)
    in_process(recipe(base, tmp_path / "a", tmp_path / "b", outside=1.0), tmp_path / "out")
    merged = models.read(tmp_path / "out")
    assert set(merged) <= set(models.read(base))
    first, *tuned = (models.read(tmp_path / name) for name in ("base", "a", "b"))
    source = next(iter(pairs.values()))
    expected = first[source].double()
    expected = expected + sum(
        WEIGHT * (one[source].double() - first[source].double()) for one in tuned
    )
    assert models.max_error_ratio(merged[source], expected) <= 1e-6
    for copy in pairs.keys() & merged.keys():
        assert torch.equal(merged[copy], merged[source]), copy
    loaded = getattr(transformers, kind).from_pretrained(tmp_path / "out").state_dict()
    for copy in pairs.keys() & loaded.keys():
        assert torch.equal(loaded[copy], merged[source]), copy


def test_a_new_vocabulary_is_counted_where_the_config_counts_it(tmp_path: Path) -> None:
    """With `tokenizer: union` a Llava has the rows, the text part's count, and loads."""
    base = ROW["LlavaForConditionalGeneration"].save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    models.save_tokenizer(base, vocab=96)
    models.save_tokenizer(tuned, vocab=96, tokens=("first", "second"))

    def grow(tensors: models.Tensors) -> None:
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.ones(2, tensors[name].shape[1])])

    models.rewrite(tuned, grow)
    config = json.loads((tuned / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["vocab_size"] = 98
    models.edit_config(tuned, text_config=config["text_config"])
    text = recipe(base, tuned) | {"tokenizer": {"source": "union"}}
    in_process(text, tmp_path / "out")
    model, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    assert model.config.text_config.vocab_size == 98
    assert model.get_input_embeddings().weight.shape[0] == 98


def test_a_tie_that_the_base_stores_under_the_heads_name(tmp_path: Path) -> None:
    """The models' embeddings, which the tie makes their heads, are merged into it."""
    config = transformers.GPTNeoXConfig(**DECODER, tie_word_embeddings=True)
    base = models.save("GPTNeoXForCausalLM", config, tmp_path / "base", seed=1)
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    head, embeddings = "embed_out.weight", "gpt_neox.embed_in.weight"
    rename(base, lambda name: head if name == embeddings else name)
    in_process(recipe(base, tuned, outside=1.0), tmp_path / "out")
    first, changed, merged = (models.read(path) for path in (base, tuned, tmp_path / "out"))
    assert set(merged) == set(first)
    start = first[head].double()
    expected = start + WEIGHT * (changed[embeddings].double() - start)
    assert models.max_error_ratio(merged[head], expected) <= 1e-6


def test_a_model_of_a_type_that_came_out_last_week(tmp_path: Path) -> None:
    """What the installed transformers does not know merges by its names, and keeps its config."""
    row = ROW["LlamaForCausalLM"]
    base = row.save(tmp_path / "base")
    models.edit_config(base, model_type="llama_next", architectures=["LlamaNextForCausalLM"])
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    in_process(recipe(base, tuned), tmp_path / "out")
    check(tmp_path / "out", base, models.read(tuned), row.depth)
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
