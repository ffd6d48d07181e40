"""mergekit's flags as our methods use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.recipe.models import models_in_order

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


def effective_options(
    config: MergeConfiguration, options: MergeOptions, say: Callable[[str], None]
) -> MergeOptions:
    """Return the options as our methods use them, telling what is not used as given."""
    update: dict[str, Any] = {"write_model_card": False}  # ours is written without a network
    if options.multi_gpu:
        say("--multi-gpu is ignored: the merge runs on one device")
        update["multi_gpu"] = False
    donor = config.base_model or models_in_order(config)[0]
    folder = Path(donor.model.path)
    has_tokenizer = any((folder / name).exists() for name in TOKENIZER_FILES)
    wants = options.copy_tokenizer and not (config.tokenizer or config.tokenizer_source)
    if wants and folder.is_dir() and not has_tokenizer:
        say(f"{folder} holds no tokenizer: none is copied")
        update["copy_tokenizer"] = False
    return options.model_copy(update=update)
