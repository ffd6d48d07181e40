"""Configs that compute something else than the base's are told, or refused."""

import json
import shutil
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
