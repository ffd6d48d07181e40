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
    needed, free = sum(shard.size for shard in missing), shutil.disk_usage(existing(partial)).free
    if needed > free:
        raise FullDiskError(
            f"OUT {out}: the merged model takes {needed:,} bytes more on this disk, which has "
            f"{free:,} free. Free some space, or choose another OUT."
        )


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
    place = existing(cache)
    same = place.stat().st_dev == existing(partial).stat().st_dev
    total = sum(needed.values()) + (output if same else 0)
    free = shutil.disk_usage(place).free
    if total > free:
        merged = f", and the merged model {output:,} on the same disk," if same else ""
        raise FullDiskError(
            f"{cache}: to download {', '.join(needed)} takes {sum(needed.values()):,} "
            f"bytes{merged} and the disk has {free:,} free. Free some space, or set HF_HOME to a "
            f"folder on another disk."
        )


def existing(path: Path) -> Path:
    """Return the folder that is there and that the path is, or will be, in."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path
