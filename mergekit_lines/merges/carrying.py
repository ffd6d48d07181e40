"""What OUT carries of the models beside their weights, where mergekit leaves it behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration

from mergekit_lines.checkpoint.writer import ShardLayout
from mergekit_lines.files import holds_tokenizer
from mergekit_lines.plan.tokenizer import own_folder
from mergekit_lines.recipe.models import carried, models_in_order
from mergekit_lines.report.companions import (
    CONFIG,
    TOKENIZER_CONFIG,
    carry_code,
    complete,
    differences,
    finish_config,
)


def carry(
    partial: Path,
    config: MergeConfiguration,
    shards: Sequence[ShardLayout],
    tokenizer: Path,
    names: Sequence[str],
) -> None:
    """Complete the files beside the weights; the models' loaders have to be open.

    Args:
        partial: the merged model, as mergekit has left it.
        config: the recipe.
        shards: its weights.
        tokenizer: the folder that its tokenizer was copied from.
        names: of files that this architecture's models have beside the usual ones.
    """
    donor, base = carried(config), models_in_order(config)[0]
    own, of_base = own_folder(donor), own_folder(base)
    finish_config(partial, _dtype(shards), own if donor != base else None)
    sources = [own, of_base] if tokenizer == of_base else [tokenizer, own, of_base]
    complete(partial, sources, names)
    carry_code(partial, {CONFIG: of_base, TOKENIZER_CONFIG: tokenizer})


def _dtype(shards: Sequence[ShardLayout]) -> str | None:
    """Return the dtype that most entries of the weights have."""
    entries: Counter[torch.dtype] = Counter()
    for shard in shards:
        for slot in shard.slots.values():
            if slot.dtype.is_floating_point:
                entries[slot.dtype] += slot.bytes // slot.dtype.itemsize
    return str(entries.most_common(1)[0][0]).removeprefix("torch.") if entries else None


def left_behind(config: MergeConfiguration, tokenizer: Path) -> Iterator[str]:
    """Yield, for each model of a merge, what tells its use from that of the carried files.

    An edit carries the files of the one model that it edits, or its base's tokenizer.
    """
    donor, base = carried(config), models_in_order(config)[0]
    if config.merge_method == "lines_postprocess":
        if tokenizer == own_folder(base) != own_folder(donor) and holds_tokenizer(tokenizer):
            yield f"{donor} holds no tokenizer: that of {base} is carried"
        return
    for model in models_in_order(config):
        unlike = differences(
            own_folder(donor), own_folder(model), template=not config.chat_template
        )
        if unlike:
            yield (
                f"{model}: OUT carries the tokenizer and settings of {donor}, and not this model's "
                f"{', '.join(unlike)}. To use OUT as this model, copy them, or name it by "
                f"`tokenizer: {{source: …}}`"
            )
