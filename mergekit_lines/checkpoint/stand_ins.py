"""What stands in a folder in place of files: git-lfs pointers, and links that lead out of it.

A clone without git-lfs holds pointers where its large files belong. A link may name any file of
this machine, and a folder's files are read, copied and published.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mergekit_lines.checkpoint.bounded import read_bytes
from mergekit_lines.errors import TextError, some

MOST = 1024  # bytes of a pointer, by its specification
_FIRST = b"version https://git-lfs.github.com/spec/v1"
# What is read of a model, an adapter or a tokenizer.
_SUFFIXES = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".pt", ".tiktoken"}
# Where huggingface_hub's cache keeps a file that a snapshot links to: by its digest.
_BLOB = re.compile(r"models--[^/]+/blobs/(?:[0-9a-f]{40}|[0-9a-f]{64})")


def pointer_problem(path: Path) -> str | None:
    """Return the problem of a file that is a pointer, or None."""
    if not is_pointer(path):
        return None
    return (
        f"{path}: is a git-lfs pointer, wanted the contents: the folder was cloned without its "
        f"large files. Run `git lfs pull` in it."
    )


def is_pointer(path: Path) -> bool:
    """Tell whether a file is a pointer of git-lfs and not the file itself."""
    try:
        return read_bytes(path, MOST).startswith(_FIRST)
    except (OSError, TextError):  # larger, or not there
        return False


def pointers(folder: Path) -> list[str]:
    """Return the problem of a folder whose files are pointers, in a list; [] where none is."""
    names = [
        path.name for path in folder.iterdir() if path.suffix in _SUFFIXES and is_pointer(path)
    ]
    if not names:
        return []
    they = "is a git-lfs pointer" if len(names) == 1 else "are git-lfs pointers"
    return [
        f"{folder}: {some(names, 3)} {they}, wanted the contents: the folder was cloned without "
        f"its large files. Run `git lfs pull` in it."
    ]


def outward_links(folder: Path, *, below: bool = False) -> list[str]:
    """Return the problem of a model's folder with links that lead out of it; [] where none does.

    Links of the Hub's cache, from a snapshot to a file by its digest, are none of these, nor is a
    folder that is itself reached by a link.

    Args:
        folder: of a model.
        below: whether folders in it count too.
    """
    root = folder.resolve()
    links = [path for path in _entries(root, below) if path.is_symlink()]
    names = [path.relative_to(root).as_posix() for path in links if not _stays(path, root)]
    if not names:
        return []
    they = "is a link that leads" if len(names) == 1 else "are links that lead"
    return [
        f"{folder}: {some(names, 3)} {they} out of this folder, wanted files in it: whoever made "
        f"it may have meant a file of yours. If you made it yourself, put a copy in the link's "
        f"place (`cp -L`)."
    ]


def _entries(root: Path, below: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(root):
        yield from (Path(place, name) for name in [*folders, *files])
        folders[:] = [name for name in folders if below and not name.startswith(".")]


def _stays(link: Path, root: Path) -> bool:
    first = Path(os.path.normpath(link.parent / link.readlink()))
    if _BLOB.fullmatch("/".join(first.parts[-3:])):
        return True
    return Path(os.path.realpath(link)).is_relative_to(root)
