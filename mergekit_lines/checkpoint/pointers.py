"""git-lfs pointers: what a clone without git-lfs holds in place of its large files."""

from __future__ import annotations

from pathlib import Path

from mergekit_lines.checkpoint.bounded import read_bytes
from mergekit_lines.errors import TextError, some

MOST = 1024  # bytes of a pointer, by its specification
_FIRST = b"version https://git-lfs.github.com/spec/v1"
# What is read of a model, an adapter or a tokenizer.
_SUFFIXES = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".pt", ".tiktoken"}


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
