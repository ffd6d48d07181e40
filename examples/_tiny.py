"""A LLaMA of random weights that knows a few words: the base model of ``--tiny``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
import transformers
from _model import save

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
# Words that the rewards know something of: mood, length, the end of a sentence.
MORE = ("good", "happy", "love", "bad", "sad", "hate", "nevertheless", "administration", ".", "!")


def make(folder: Path, texts: Iterable[str], seed: int) -> None:
    """Save the model and a tokenizer that knows the words of some texts."""
    entries = [*SPECIAL.values(), *sorted({*MORE, *(word for t in texts for word in t.split())})]
    words = tokenizers.models.WordLevel(
        {entry: number for number, entry in enumerate(entries)}, unk_token=SPECIAL["unk_token"]
    )
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    config = transformers.LlamaConfig(
        vocab_size=len(entries),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=entries.index("<s>"),
        eos_token_id=entries.index("</s>"),
        pad_token_id=entries.index("<pad>"),
    )
    torch.manual_seed(seed)
    save(transformers.LlamaForCausalLM(config), tokenizer, folder)
