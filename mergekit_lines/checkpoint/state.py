"""The state of a partial folder: which merge it belongs to, and what of it is whole."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.bounded import INDEX_BYTES, read_json
from mergekit_lines.errors import TextError, some
from mergekit_lines.files import file_digest

MARK = "mergekit-lines.partial"
LAYOUT = "the layout of the output"
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


def differences(left: Any, right: Mapping[str, Any]) -> list[str]:
    """Return what differs of two merges, by the names of the right one: a state may hold any text.

    Args:
        left: what a state holds.
        right: see :meth:`~mergekit_lines.checkpoint.partial.Partial.begin`.
    """
    if not isinstance(left, dict) or not left:
        return ["its state is lost, so that all may"]
    # What was copied or linked has another ctime too: that is told where nothing else differs.
    names = _unlike(left, right, ("ctime_ns",)) or _unlike(left, right, ())
    if left.keys() - right.keys():
        names.append("what it was merged from")
    # What else differs is the cause where the layout does.
    return [name for name in names if name != LAYOUT] or names


def _unlike(left: Mapping[str, Any], right: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    names = []
    for name, new in right.items():
        old = left.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            files = [
                Path(file).name
                for file in new
                if _trimmed(old.get(file), without) != _trimmed(new[file], without)
            ]
            if files or old.keys() != new.keys():
                names.append(f"{name} ({some(files, 2)})" if files else name)
        elif old != new:
            names.append(name)
    return names


def _trimmed(entry: Any, without: Sequence[str]) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if key not in without}
