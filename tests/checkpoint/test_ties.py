"""Ties: by the config and its class alone, as transformers itself shares the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from mergekit_lines.checkpoint.ties import is_untied, model_class, tied_names, tied_sources

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 16,
}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def llama(tied: bool) -> hf.LlamaConfig:
    return hf.LlamaConfig(**SMALL, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"])


def t5(tied: bool) -> hf.T5Config:
    return hf.T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        tie_word_embeddings=tied, architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip


def shared(config: Any) -> tuple[set[str], set[str]]:
    """Return a real model's names, and those whose storage is another name's too."""
    torch.manual_seed(0)
    state = model_class(config)(config).state_dict()
    places: dict[int, list[str]] = {}
    for name, tensor in state.items():
        places.setdefault(tensor.data_ptr(), []).append(name)
    return set(state), {name for names in places.values() if len(names) > 1 for name in names}


@pytest.mark.parametrize("config", [llama(True), llama(False), t5(True)], ids=["tied", "not", "t5"])
def test_a_tie_is_what_transformers_shares(config: Any) -> None:
    """Tied names and their source are one storage in the model that transformers makes."""
    names, together = shared(config)
    sources = tied_sources(config, names)
    assert set(sources) == tied_names(config, names)
    assert set(sources) | set(sources.values()) == together


def test_the_source_has_to_be_there() -> None:
    """A head without the embedding it is tied to is a tensor of its own."""
    assert tied_names(llama(True), [HEAD]) == set()
    assert tied_sources(llama(True), [HEAD, EMBEDDING]) == {HEAD: EMBEDDING}


def test_untied_is_what_the_config_says() -> None:
    """Untied: the class could tie the name, and the config says no; a block's tensor never is."""
    assert is_untied(llama(False), HEAD)
    assert not is_untied(llama(True), HEAD)
    assert not is_untied(llama(False), "model.norm.weight")


def test_a_config_of_nobody() -> None:
    """A config that names no class of transformers ties nothing."""
    for names in (None, [], ["NoSuchModel"]):
        config = hf.LlamaConfig(**SMALL, tie_word_embeddings=True, architectures=names)
        assert model_class(config) is None
        assert tied_names(config, [HEAD, EMBEDDING]) == set()
