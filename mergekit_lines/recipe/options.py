"""mergekit's flags as our methods use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.files import holds_tokenizer
from mergekit_lines.host.names import OF_MERGEKIT
from mergekit_lines.recipe.models import carried, models_in_order


def merging_command(method: str) -> list[str]:
    """Return the command that merges a recipe of a method by our kernels, without its arguments."""
    return ["mergekit-lines", "merge"] if method in OF_MERGEKIT else ["mergekit-yaml"]


def effective_options(
    config: MergeConfiguration, options: MergeOptions, say: Callable[[str], None]
) -> MergeOptions:
    """Return the options as our methods use them, telling what is not used as given."""
    update: dict[str, Any] = {"write_model_card": False}  # ours is written without a network
    if options.multi_gpu:
        say("--multi-gpu is ignored: the merge runs on one device")
        update["multi_gpu"] = False
    donor, base = carried(config), models_in_order(config)[0]
    places = [donor.model, base.model, *([donor.lora] if donor.lora else [])]
    folders = [Path(place.path) for place in dict.fromkeys(places)]
    wants = options.copy_tokenizer and not (config.tokenizer or config.tokenizer_source)
    local = all(folder.exists() for folder in folders)
    if wants and local and not any(map(holds_tokenizer, folders)):
        if not folders[0].is_file():
            say(f"{folders[0]} holds no tokenizer: none is copied")
        update["copy_tokenizer"] = False
    return options.model_copy(update=update)
