"""The examples that ``learn`` is given: texts or images, with labels or without, in two parts."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_lines.errors import LinesError, reason
from mergekit_lines.evaluate.texts import json_lines, read_texts, read_whole, text_digest

WHERE = "--data"
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Row = tuple[str, Mapping[str, Any]]  # place, what stands there by its name


@dataclass(frozen=True)
class Example:
    """A text, or an image's file.

    Attributes:
        content: the text, or the file.
        label: as it is written: a class's name or number; None for none.
        place: where it stands, for errors.
        digest: of what is in it: of two that are alike one is used.
        row: what stands there, by its name: ``text``, or ``image`` for the file, ``label``, ….
    """

    content: str | Path
    label: Any
    place: str
    digest: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Examples of a file or a folder.

    Attributes:
        path: of it.
        sha256: of the file; of a folder, of all images that are used and of their labels.
        examples: in their order.
        images: whether they are images.
    """

    path: Path
    sha256: str
    examples: tuple[Example, ...]
    images: bool = False


@dataclass(frozen=True)
class Parts:
    """Examples in two parts that share none.

    Attributes:
        training: those that are learnt from.
        held_out: those that are measured alone.
        repeated: how many were left out, for they stand there before.
    """

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    repeated: int


def read_examples(path: Path, limit: int | None, *, whole: bool = False) -> Examples:
    """Read the first examples of a file of texts, or of a folder of images.

    Args:
        path: JSON lines with a ``text`` and perhaps a ``label``; a ``.csv`` file with columns of
            these names; another file of paragraphs that blank lines part. Or a folder: images in
            it have no label, those in a folder in it have that one's name.
        limit: how many, of images from every class in turn; None for all.
        whole: whether examples of one text differ by what else stands in their rows, but for the
            label.

    Raises:
        LinesError: it cannot be read, or holds none.
    """
    if path.is_dir():
        return _images(path, limit)
    if path.suffix in (".csv", ".jsonl"):
        text, digest = read_whole(WHERE, path, "text")
        rows = _columns(path, text) if path.suffix == ".csv" else _lines(path, text)
    else:
        file = read_texts(WHERE, path, "text")
        digest = file.sha256
        rows = [(f"document {n}", {"text": text}) for n, text in enumerate(file.texts, 1)]
    if not rows:
        raise LinesError(f"{WHERE}: the file {path} is empty, wanted a text on each line.")
    return Examples(
        path,
        digest,
        tuple(
            Example(row["text"], row.get("label"), f"{path}, {place}", _digest(row, whole), row)
            for place, row in rows[:limit]
        ),
    )


def _digest(row: Mapping[str, Any], whole: bool) -> str:
    """Return the digest of a row's text, and of what else stands there."""
    more = {name: value for name, value in row.items() if name not in ("text", "label")}
    text: str = row["text"]
    return text_digest(f"{text.strip()}\n{json.dumps(more, sort_keys=True)}" if whole else text)


def _lines(path: Path, text: str) -> list[Row]:
    entries = json_lines(WHERE, path, text, "text")
    return [(f"line {number}", entry) for number, entry in entries]


def _columns(path: Path, text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        if "text" not in (reader.fieldnames or ()):
            raise LinesError(
                f"{WHERE} {path}: found the columns {', '.join(reader.fieldnames or ()) or 'none'} "
                f"in its first line, wanted text, and label where there are labels."
            )
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values() or not row["text"].strip():
                raise LinesError(
                    f"{WHERE}: {path}, {place}: wanted as many cells as columns, and a text that "
                    f"is not empty. Put texts with commas in quotes."
                )
            rows.append((place, {**row, "label": (row.get("label") or "").strip() or None}))
    except csv.Error as error:
        line = reader.reader.line_num  # the other one counts lines that could be read
        raise LinesError(
            f"{WHERE}: {path}, line {line} is no CSV ({reason(error)}). Mend the line."
        ) from error
    return rows


def _images(folder: Path, limit: int | None) -> Examples:
    def inside(place: Path) -> Iterator[Path]:
        for path in sorted(place.rglob("*") if place != folder else place.iterdir()):
            hidden = path.name.startswith(".")  # as macOS puts beside images
            if path.suffix.lower() in IMAGES and path.is_file() and not hidden:
                yield path

    try:
        classes: list[tuple[str | None, Path]] = [
            (entry.name, entry) for entry in sorted(folder.iterdir()) if entry.is_dir()
        ]
        classes.append((None, folder))
        columns = [[(label, path) for path in inside(place)] for label, place in classes]
    except OSError as error:
        raise LinesError(
            f"{WHERE}: the folder {folder} cannot be read ({error.strerror}). Check its rights."
        ) from error
    # A limit is to leave some of every class.
    turns = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    chosen = list(itertools.islice(filter(None, turns), limit))
    if not chosen:
        raise LinesError(
            f"{WHERE}: the folder {folder} holds no image ({', '.join(IMAGES)}), wanted some, or "
            f"folders of some that have their classes' names. Texts are given as one file."
        )
    examples = []
    for label, path in chosen:
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise LinesError(
                f"{WHERE}: {path} cannot be read ({error.strerror}). Mend it, or take it out."
            ) from error
        row = {"image": path, "label": label}
        examples.append(Example(path, label, str(path), digest, row))
    whole = repr([(example.digest, example.label) for example in examples])
    return Examples(folder, hashlib.sha256(whole.encode()).hexdigest(), tuple(examples), True)


def parted(examples: Examples, share: float, seed: int) -> Parts:
    """Keep a share of the examples apart, chosen by the seed.

    Args:
        examples: each counts once, however often it stands there.
        share: held out, between 0 and 1; one example at least.
        seed: of the choice.

    Raises:
        LinesError: there are fewer than two.
    """
    every = examples.examples
    distinct = list({one.digest: one for one in reversed(every)}.values())[::-1]
    if len(distinct) < 2:
        kind = "image" if examples.images else "document"
        raise LinesError(
            f"{WHERE} {examples.path}: found one {kind}, wanted two at least: one to learn from, "
            f"and one that is held out. Documents are paragraphs parted by blank lines, or lines "
            f"of JSON or CSV."
        )
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(distinct))[:count].tolist())
    training = [one for place, one in enumerate(distinct) if place not in chosen]
    held_out = [one for place, one in enumerate(distinct) if place in chosen]
    return Parts(tuple(training), tuple(held_out), len(every) - len(distinct))


def texts_of(examples: Sequence[Example]) -> list[str]:
    """Return the texts of examples that are texts."""
    return [str(example.content) for example in examples]
