"""Room on the disk, before anything is written there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.remote.downloads import HubModels
from mergekit_lines.checkpoint.remote.headers import missing
from mergekit_lines.checkpoint.writer import ShardLayout, whole_name
from mergekit_lines.errors import FullDiskError


def check_space(out: Path, partial: Path, shards: Sequence[ShardLayout]) -> None:
    """Refuse an OUT whose disk has no room for what is still to be written.

    Raises:
        FullDiskError: says how much is wanted, and how much there is.
    """
    missing = [shard for shard in shards if not (partial / whole_name(shard.file)).exists()]
    needed = sum(shard.size for shard in missing)
    sentence = f"OUT {out}: the merged model takes {needed:,} bytes more on this disk, which has"
    _check_free(partial, needed, sentence, "choose another OUT")


def check_room(models: HubModels, output: int, partial: Path, options: MergeOptions) -> None:
    """Refuse a merge whose downloads the disk has no room for, before the first of them.

    Args:
        models: the recipe's models on the Hub.
        output: bytes of the merged model that are still to be written.
        partial: where it is written.
        options: mergekit's flags.

    Raises:
        FullDiskError: says how much is wanted, and how much there is.
    """
    cache = Path(options.transformers_cache or constants.HF_HUB_CACHE)
    needed = {
        repo: size
        for (repo, _), headers in models.items()
        if (size := sum(missing(headers, options.transformers_cache).values()))
    }
    if not needed:
        return
    same = existing(cache).stat().st_dev == existing(partial).stat().st_dev
    total = sum(needed.values()) + (output if same else 0)
    merged = f", and the merged model {output:,} on the same disk," if same else ""
    sentence = (
        f"{cache}: to download {', '.join(needed)} takes {sum(needed.values()):,} bytes{merged} "
        f"and the disk has"
    )
    _check_free(cache, total, sentence, "set HF_HOME to a folder on another disk")


def _check_free(place: Path, needed: int, sentence: str, remedy: str) -> None:
    free = shutil.disk_usage(existing(place)).free
    if needed > free:
        raise FullDiskError(f"{sentence} {free:,} free. Free some space, or {remedy}.")


def existing(path: Path) -> Path:
    """Return the folder that is there and that the path is, or will be, in."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path
