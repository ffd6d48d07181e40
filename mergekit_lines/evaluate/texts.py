"""Files of documents and of prompts, read once, with the digest of what was read."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError

_BLANK = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Texts:
    """The texts of a file, in its order, and the SHA-256 of its bytes."""

    path: Path
    sha256: str
    texts: tuple[str, ...]

    def first(self, limit: int | None) -> tuple[str, ...]:
        """Return the first ``limit`` texts, or all."""
        return self.texts[:limit]


# By the key of JSON lines, what other files hold.
FORMS = {
    "text": "documents: paragraphs parted by blank lines",
    "prompt": "prompts: one on each line",
}


def read_texts(spec: str, path: Path, key: str) -> Texts:
    """Read JSON lines with the key ``text`` or ``prompt``, or a file of such texts alone.

    Raises:
        LinesError: it cannot be read, or holds no text.
    """
    text, digest = read_whole(spec, path, key)
    if path.suffix == ".jsonl":
        texts = [entry[key] for _, entry in json_lines(spec, path, text, key)]
    else:
        parts = _BLANK.split(text) if key == "text" else text.split("\n")
        texts = [part.strip() for part in parts if part.strip()]
    if not texts:
        raise LinesError(f"{spec}: the file {path} is empty, wanted {FORMS[key]}.")
    return Texts(path, digest, tuple(texts))


def read_whole(spec: str, path: Path, key: str) -> tuple[str, str]:
    """Return a file's text, its lines ended by line feeds, and the SHA-256 of its bytes.

    Raises:
        LinesError: it cannot be read; ``key`` is of what it should hold.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise LinesError(
            f"{spec}: the file {path} cannot be read ({error.strerror}). Give a file of "
            f"{FORMS[key]}, or a .jsonl file with the key {key!r}."
        ) from error
    except UnicodeDecodeError as error:
        raise LinesError(
            f"{spec}: the file {path} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    return text, hashlib.sha256(content).hexdigest()


def json_lines(spec: str, path: Path, text: str, key: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of JSON lines, each with its line's number and a text under ``key``.

    Raises:
        LinesError: a line is none.
    """
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise LinesError(
                f"{spec}: {path}, line {number} is no JSON ({error.msg}). Mend the line."
            ) from error
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise LinesError(
                f"{spec}: {path}, line {number}: wanted an object whose {key!r} is a text that is "
                f"not empty."
            )
        entries.append((number, entry))
    return entries


def text_digest(text: str) -> str:
    """Return the SHA-256 of an example's text, white space around it left out."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()
