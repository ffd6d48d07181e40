"""Links in a model's folder that lead out of it: a stranger's may name any file of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mergekit_lines.errors import some

# Where huggingface_hub's cache keeps a file that a snapshot links to: by its digest.
_BLOB = re.compile(r"models--[^/]+/blobs/(?:[0-9a-f]{40}|[0-9a-f]{64})")


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
