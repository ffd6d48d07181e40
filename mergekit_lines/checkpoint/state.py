"""The state of a partial folder: which merge it belongs to, and what of it is whole."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.bounded import INDEX_BYTES, read_json
from mergekit_lines.errors import TextError
from mergekit_lines.files import file_digest

MARK = "mergekit-lines.partial"
_SAMPLED = "sampled:"
_FIRST, _RUN, _SAMPLES = 1 << 20, 1 << 12, 256  # bytes, bytes, runs


def read_state(partial: Path) -> dict[str, Any]:
    """Return the state in a partial folder, or an empty one where there is none to be read."""
    try:
        state = read_json(partial / MARK, INDEX_BYTES)
    except (OSError, TextError):
        return {}
    return state if isinstance(state, dict) else {}


def shard_digest(path: Path, *, sampled: bool = False) -> str:
    """Return the digest of a shard: of all its bytes, or of samples where nobody can wait.

    Args:
        path: of the shard.
        sampled: take its first bytes, with the header, its last ones, and runs of 4 KiB in
            between.
    """
    if not sampled:
        return file_digest(path)
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_FIRST))
        for number in range(1, _SAMPLES + 1):
            file.seek(max(0, number * (size - _RUN) // _SAMPLES))
            digest.update(file.read(_RUN))
    return f"{_SAMPLED}{digest.hexdigest()}"


def has_digest(path: Path, digest: Any) -> bool:
    """Tell whether a shard still has the digest that a state holds for it."""
    sampled = str(digest).startswith(_SAMPLED)
    return bool(shard_digest(path, sampled=sampled) == digest)


def same_content(path: Path, other: Path) -> bool:
    """Tell whether two files hold the same bytes, or two folders the same files; links never do."""
    if path.is_symlink() or other.is_symlink():
        return False
    if path.is_dir() and other.is_dir():
        names = {one.name for one in path.iterdir()}
        return names == {one.name for one in other.iterdir()} and all(
            same_content(path / name, other / name) for name in names
        )
    return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)


def mark_of(path: Path) -> dict[str, Any]:
    """Return what tells a file of ours from another of its name: its bytes and a digest.

    Of a shard that is one of samples: two models of one architecture have equal headers.
    """
    digest = shard_digest(path, sampled=path.suffix == ".safetensors")
    return {"bytes": path.stat().st_size, "sha256": digest}


def is_ours(path: Path, mark: Any) -> bool:
    """Tell whether a file is the one that a state has noted; links and folders never are."""
    if path.is_symlink() or not path.is_file() or not isinstance(mark, Mapping):
        return False
    return path.stat().st_size == mark.get("bytes") and mark_of(path) == mark
