"""Files by the names that every room knows them by, and how a small one is read and written."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

# What a merge writes beside its weights.
REPORT = "lines_report.json"
RECIPE = "mergekit_config.yml"
CARD = "README.md"
# What tells that a folder holds a tokenizer, beside its config.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

COMMIT = re.compile(r"[0-9a-f]{40}")  # of a model on the Hub
_BLOCK = 1 << 22


def holds_tokenizer(folder: Path) -> bool:
    """Tell whether a tokenizer is in a folder."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
