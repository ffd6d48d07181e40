"""Tensors that two layers of a base share, and adapters that were trained on one of the layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.ties import model_class, tied_names
from mergekit_lines.errors import LinesError

PREFIX = "base_model.model."
TOKENS = ".token_adapter.trainable_tokens_delta"

# Loaded with tie_word_embeddings=False alone, a tied base gets a random head.
UNTIE = (
    "Untie the base first, with a copy of the embedding for its head: `model = "
    "AutoModelForCausalLM.from_pretrained(BASE); model.config.get_text_config()."
    "tie_word_embeddings = model.config.tie_word_embeddings = False; "
    "model.get_output_embeddings().weight = "
    "torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone()); "
    "model.save_pretrained(NEW)`."
)


def shared_names(base_config: Any, names: Collection[str]) -> set[str]:
    """Return the tensors that a loaded base uses under two names."""
    declared = getattr(model_class(base_config), "_tied_weights_keys", None) or {}
    pairs = declared.items() if isinstance(declared, dict) else ()
    sources = {source for tied, source in pairs if tied_names(base_config, {tied, source})}
    return tied_names(base_config, names) | sources


def check_left_to_peft(file: Path, keys: Iterable[str], base_config: Any, *, tying: bool) -> None:
    """Refuse what PEFT would merge into a tensor that two layers share, and falsely.

    It adds a low-rank update that it saves for both layers to the tensor once for each, and one
    of a single layer to the other layer too. Right are rows of an embedding, and what was saved
    whole for both.

    Args:
        file: the adapter's weights.
        keys: the names of their tensors.
        base_config: the base's transformers config.
        tying: whether both layers were trained with one update.

    Raises:
        LinesError: the adapter changes such a tensor otherwise.
    """
    changed = [key.removeprefix(PREFIX) for key in keys if not key.endswith(TOKENS)]
    weights = {f"{layer}.weight" for key in changed for layer in accumulate(key.split("."), _below)}
    for name in sorted(shared_names(base_config, weights | shared_names(base_config, ()))):
        layer = name.removesuffix(".weight")
        whole = {name, f"{layer}.modules_to_save.weight"} if tying else set()
        if any(key.startswith(f"{layer}.") and key not in whole for key in changed):
            effect = "count it twice" if tying else "change both, and it was trained on one"
            raise LinesError(
                f"{file}: changes {name}, which the base uses in two layers; PEFT, which has to "
                f"merge this adapter, would {effect}. {UNTIE}"
            )


def _below(layer: str, part: str) -> str:
    return f"{layer}.{part}"
