"""What OUT carries of the models beside their weights, where mergekit leaves it behind.

mergekit copies a tokenizer of ten file names, and what its description of an architecture lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.writer import ShardLayout
from mergekit_lines.files import holds_tokenizer, names_no_class
from mergekit_lines.plan.tokenizer import own_folder
from mergekit_lines.recipe.models import carried, models_in_order
from mergekit_lines.report.companions import (
    GENERATE,
    OTHER,
    PROCESSOR,
    SETTINGS,
    STEPS,
    TEMPLATES,
    TOKENIZER,
    Companion,
    carry_code,
    companions,
)
from mergekit_lines.report.usage import (
    CONFIG,
    TOKENIZER_CONFIG,
    differences,
    finish_config,
    keep_config,
)


def carried_files(
    config: MergeConfiguration,
    options: MergeOptions,
    tokenizer: Path,
    say: Callable[[str], None],
) -> list[Companion]:
    """Return the files that OUT carries beside its weights; the models' loaders have to be open.

    They come from the model that OUT's tokenizer is of, or else from the base; of an edit from the
    model that is edited. Files of one kind (a processor's, the steps behind a transformer) come
    from the first of these folders that has any. A tokenizer that is built anew, or left out, and
    a chat template of the recipe's stand alone: nothing of the old ones comes beside them.

    Args:
        config: the recipe.
        options: mergekit's flags.
        tokenizer: the folder that the tokenizer is copied from.
        say: is told what stays behind.

    Raises:
        LinesError: what has to be carried may not or cannot be.
    """
    models = [own_folder(carried(config)), own_folder(models_in_order(config)[0])]
    # The edited model comes first, also where its tokenizer is the base's.
    first = [] if tokenizer in models else [tokenizer]
    by_folder: dict[Path, list[Companion]] = {}
    for folder in dict.fromkeys([*first, *models]):
        by_folder[folder], notes = companions(folder)
        for line in notes:
            say(line)
    built = bool(config.tokenizer or config.tokenizer_source)
    kinds = {kind: [*first, *models] for kind in (PROCESSOR, STEPS, SETTINGS, GENERATE)}
    if options.copy_tokenizer and not built:
        kinds[TOKENIZER] = [tokenizer]
    if (options.copy_tokenizer or built) and not config.chat_template:
        kinds[TEMPLATES] = [tokenizer]
    files: dict[str, Companion] = {}
    for kind, folders in kinds.items():
        groups = ([one for one in by_folder[place] if one.kind == kind] for place in folders)
        files |= {one.name: one for one in next(filter(None, groups), [])}
    below = {one.name for one in files.values() if one.path.is_dir()}
    for place in reversed(models):
        others = (one for one in by_folder[place] if one.kind == OTHER)
        files |= {one.name: one for one in others if one.name not in below}
    return list(files.values())


def carry(
    partial: Path,
    config: MergeConfiguration,
    shards: Sequence[ShardLayout],
    tokenizer: Path,
    files: Sequence[Companion],
) -> None:
    """Complete the files beside the weights; the models' loaders have to be open.

    Args:
        partial: the merged model, as mergekit has left it.
        config: the recipe.
        shards: its weights.
        tokenizer: the folder that its tokenizer was copied from.
        files: what it carries.
    """
    donor, base = carried(config), models_in_order(config)[0]
    own, of_base = own_folder(donor), own_folder(base)
    if names_no_class(Path(base.model.path)):
        keep_config(partial, of_base)
    else:
        finish_config(partial, _dtype(shards), own if donor != base else None)
    for one in files:
        # mergekit has written these already, perhaps with another template.
        if one.kind not in (TOKENIZER, TEMPLATES) or not (partial / one.name).exists():
            one.copy(partial)
    named = (one for one in files if one.kind in (PROCESSOR, STEPS) and one.name == one.path.name)
    code = {one.name: one.path.parent for one in named}
    carry_code(partial, {CONFIG: of_base, TOKENIZER_CONFIG: tokenizer, **code})


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
