"""Configs that compute something else than the base's are told, or refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergekit_lines import LiveModel
from mergekit_lines.errors import LinesError
from mergekit_lines.plan.configs import NOT_THE_SAME_WEIGHTS, differences
from tests import models
from tests.e2e.runner import in_process


def recipe(base: Path, tuned: Path) -> dict[str, Any]:
    return {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.5},
    }


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "rope_parameters.rope_theta 1000000.0 where base_model says 10000.0",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}},
            "rope_parameters.factor 8.0 where base_model says nothing",
        ),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps 0.01 where base_model says 1e-06"),
    ],
)
def test_what_is_computed_otherwise_is_told(
    changes: dict[str, Any],
    shown: str,
    llama_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A merge says which keys of a model's config differ, with both values."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=2)
    models.edit_config(tuned, **changes)
    in_process(recipe(llama_base, tuned), tmp_path / "out", quiet=False)
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"num_key_value_heads": 2, "head_dim": 16}, "head_dim 16 where base_model says 8"),
        ({"hidden_act": "gelu"}, "hidden_act gelu where base_model says silu"),
    ],
)
def test_weights_that_mean_something_else_are_refused(
    changes: dict[str, Any], shown: str, llama_base: Path, tmp_path: Path
) -> None:
    """Other heads or another activation: entries of equal shape are not of one kind."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=2)
    models.edit_config(tuned, **changes)
    with pytest.raises(LinesError) as refused:
        in_process(recipe(llama_base, tuned), tmp_path / "out")
    assert shown in refused.value.message
    assert not (tmp_path / "out").exists()


# By the class that computes with it, a key and another value for it.
OTHER_VALUES: list[tuple[str, str, Any, bool]] = [
    ("Gemma2Config", "attn_logit_softcapping", 20.0, False),
    ("Gemma2Config", "final_logit_softcapping", 10.0, False),
    ("Gemma2Config", "sliding_window", 17, False),
    ("Gemma2Config", "query_pre_attn_scalar", 64, False),
    ("MistralConfig", "sliding_window", 17, False),
    ("CohereConfig", "logit_scale", 0.5, False),
    ("GraniteConfig", "residual_multiplier", 0.5, False),
    ("BertConfig", "layer_norm_eps", 1e-5, False),
    ("BertConfig", "hidden_act", "relu", True),
    ("DistilBertConfig", "activation", "relu", True),
    ("GPT2Config", "n_head", 6, True),
    ("T5Config", "num_heads", 4, True),
    ("T5Config", "feed_forward_proj", "gated-gelu", True),
    ("FalconConfig", "multi_query", False, True),
    ("WhisperConfig", "decoder_attention_heads", 2, True),
]


@pytest.mark.parametrize(("config", "key", "value", "refused"), OTHER_VALUES)
def test_every_key_that_is_computed_with_counts(
    config: str, key: str, value: Any, refused: bool
) -> None:
    """Norms, windows, caps, scales are differences; heads and activations are refusals."""
    pair = getattr(transformers, config)(), getattr(transformers, config)(**{key: value})
    assert differences(*(one.to_dict() for one in pair))[key] == (getattr(pair[0], key), value)
    assert (NOT_THE_SAME_WEIGHTS.fullmatch(key) is not None) == refused


def test_what_changes_nothing_is_not_told() -> None:
    """Dropout, token ids, labels, dtypes and names of a fine-tune are no difference."""
    base = transformers.LlamaConfig()
    tuned = transformers.LlamaConfig(
        attention_dropout=0.1, eos_token_id=7, initializer_range=0.5, use_cache=False, num_labels=5
    )
    assert differences(base.to_dict(), tuned.to_dict()) == {}


def test_nested_configs_are_compared() -> None:
    """A text tower's own config counts, by its dotted key."""
    pair = [
        transformers.CLIPConfig(text_config={"layer_norm_eps": eps, "hidden_size": 32})
        for eps in (1e-5, 1e-3)
    ]
    assert differences(*(one.to_dict() for one in pair)) == {
        "text_config.layer_norm_eps": (1e-5, 1e-3)
    }


def added_up(base: Path, *tuned: Path) -> dict[str, Any]:
    """Return a recipe of half the sum of task vectors at every depth."""
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": 1.0, "beta": 0.0, "weight": 0.5},
    }


def classifiers(kind: str, folder: Path, **names: Sequence[str] | None) -> tuple[Path, list[Path]]:
    """Save a classifier and fine-tunes of it, each with the names of its classes."""
    save = models.vit if kind == "vit" else models.bert_seqcls
    base = save(folder / "base", layers=2, labels=3, seed=1)
    tuned = [
        models.finetuned(base, folder / name, seed=seed)
        for seed, name in enumerate(names, 2)
        if name != "base"
    ]
    for name, classes in names.items():
        if classes is not None:
            by_row = {str(row): one for row, one in enumerate(classes)}
            numbers = {one: row for row, one in enumerate(classes)}
            models.edit_config(folder / name, id2label=by_row, label2id=numbers)
    return base, tuned


NLI = ("contradiction", "neutral", "entailment")
MNLI = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("allow_crimes", [False, True])
def test_classes_in_another_order_are_refused(
    kind: str, allow_crimes: bool, tmp_path: Path
) -> None:
    """A head whose rows are other classes is not added up; the sentence names one of them."""
    base, tuned = classifiers(kind, tmp_path, base=NLI, a=NLI, b=MNLI)
    with pytest.raises(LinesError) as refused:
        in_process(added_up(base, *tuned), tmp_path / "out", allow_crimes=allow_crimes)
    assert refused.value.message == (
        f"[lines] model {tuned[1]}: by id2label in its config.json its class 0 is entailment where "
        f"base_model's is contradiction, so that the same row of the head means something else in "
        f"it. Permute the rows of its head, or mend its config.json where that is wrong."
    )
    assert not (tmp_path / "out").exists()


def test_classes_that_the_base_does_not_name_are_compared(tmp_path: Path) -> None:
    """Where a base has LABEL_0 and so on, its fine-tunes are held against each other."""
    base, tuned = classifiers("bert", tmp_path, base=None, a=NLI, b=MNLI)
    with pytest.raises(LinesError) as refused:
        in_process(added_up(base, *tuned), tmp_path / "out")
    assert f"class 0 is entailment where {tuned[0]}'s is contradiction" in refused.value.message


def test_a_permuted_head_is_merged_class_by_class(tmp_path: Path) -> None:
    """What the refusal says to do: each class's row is then the formula's, of one class."""
    base, (tuned,) = classifiers("bert", tmp_path, base=NLI, b=MNLI)
    before = models.read(tuned)["classifier.weight"]

    def permute(tensors: models.Tensors) -> None:
        for name in ("classifier.weight", "classifier.bias"):
            tensors[name] = tensors[name][[MNLI.index(one) for one in NLI]]

    models.rewrite(tuned, permute)
    models.edit_config(tuned, id2label=dict(enumerate(NLI)), label2id=None)
    out = in_process(added_up(base, tuned), tmp_path / "out")
    start = models.read(base)["classifier.weight"].double()
    merged = models.read(out)["classifier.weight"]
    for row, name in enumerate(NLI):
        expected = start[row] + 0.5 * (before[MNLI.index(name)].double() - start[row])
        assert models.max_error_ratio(merged[row], expected) <= 1e-6


COLOURS = ("red", "green", "blue")


@pytest.mark.parametrize(
    ("base_names", "names", "shown"),
    [
        (
            NLI,
            COLOURS,
            "id2label.0 red where base_model says contradiction, id2label.1 green where base_model "
            "says neutral, id2label.2 blue where base_model says entailment",
        ),
        (NLI, ("contradiction", "neutral", "agrees"), "id2label.2 agrees where base_model says"),
        (None, ("LABEL_0", "LABEL_1", "other"), "id2label.2 other where base_model says LABEL_2"),
        (NLI, ("Contradiction", "NEUTRAL", "entailment "), ""),
    ],
)
def test_classes_of_other_names_are_told(
    base_names: Sequence[str] | None,
    names: Sequence[str],
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line says which names the merged model lacks; capitals and blanks make no other class."""
    base, tuned = classifiers("bert", tmp_path, base=base_names, a=names)
    in_process(added_up(base, *tuned), tmp_path / "out", quiet=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if "id2label" in line]
    assert len(lines) == bool(shown)
    assert all(line.startswith(f"[lines] model {tuned[0]}: its config.json says") for line in lines)
    assert all(shown in line for line in lines)


def test_of_many_classes_the_first_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says three of them and how many more there are."""
    tuned = [f"class {n}" for n in range(7)]
    base = models.vit(tmp_path / "base", layers=2, labels=7, seed=1)
    a = models.finetuned(base, tmp_path / "a", seed=2)
    models.edit_config(a, id2label=dict(enumerate(tuned)), label2id=None)
    in_process(added_up(base, a), tmp_path / "out", quiet=False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "id2label" in line]
    assert line == (
        f"[lines] model {a}: its config.json says id2label.0 class 0 where base_model says "
        f"LABEL_0, id2label.1 class 1 where base_model says LABEL_1, id2label.2 class 2 where "
        f"base_model says LABEL_2 and 4 more; the merged model calls its classes as base_model's "
        f"config.json says"
    )


@pytest.mark.parametrize("dropped", ["of a trunk", "of another class", "of both"])
def test_classes_whose_head_is_not_merged_are_not_compared(
    dropped: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trunk's config often names the classes of a head that it has no more."""
    base, (tuned,) = classifiers("vit", tmp_path, base=NLI, a=MNLI)
    trunks = {"of a trunk": [base], "of another class": [tuned], "of both": [base, tuned]}
    for path in trunks[dropped]:
        transformers.ViTModel.from_pretrained(path).save_pretrained(path)
    in_process(added_up(base, tuned), tmp_path / "out", quiet=False)
    assert "id2label" not in capsys.readouterr().err


def test_classes_of_a_language_model_are_not_compared(
    llama_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model without a head of classes may say any: nothing that it computes hangs on them."""
    base = shutil.copytree(llama_base, tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "tuned", seed=2)
    for path, names in ((base, NLI), (tuned, MNLI)):
        models.edit_config(path, id2label=dict(enumerate(names)), label2id=None)
    in_process(added_up(base, tuned), tmp_path / "out", quiet=False)
    assert "id2label" not in capsys.readouterr().err


@pytest.mark.parametrize("names", [("base",), ("tuned",), ("base", "tuned")])
def test_a_left_over_quantisation_is_told_and_left_out(
    names: tuple[str, ...],
    llama_base: Path,
    llama_a: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over plain weights a quantization_config changes nothing, and transformers loads OUT."""
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    places = {"base": llama_base, "tuned": llama_a}
    for name in names:
        places[name] = shutil.copytree(places[name], tmp_path / name)
        models.edit_config(places[name], quantization_config=settings)
    out = in_process(recipe(places["base"], places["tuned"]), tmp_path / "out", quiet=False)
    lines = capsys.readouterr().err
    for name in names:
        assert f"model {places[name]}: its config.json holds a quantization_config" in lines
    assert lines.count("quantization_config") == len(names)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    plain = in_process(recipe(llama_base, llama_a), tmp_path / "plain")
    assert (out / "config.json").read_bytes() == (plain / "config.json").read_bytes()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    wanted = models.read(plain)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())
    with LiveModel(recipe(places["base"], places["tuned"]), quiet=True) as live:
        state = live.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
