"""The words of an evaluator's spec: ``[NAME=]KIND:ARGS[?key=value[&key=value…]]``."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError, nearest
from mergekit_lines.evaluate.metric import RESERVED

_NAME = re.compile(r"([^=:?/\\]*)=(.*)", re.DOTALL)
_OPTIONS = re.compile(r"(.*)\?([^?=&/\\]+=.*)", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """What holds for every evaluator whose spec does not say otherwise.

    ``prompts`` is the file ``rewards`` generates from; ``limit`` the number of examples that are
    used, the first ones; ``include_path`` a folder with task YAMLs of lm-evaluation-harness.
    """

    prompts: Path | None = None
    batch_size: int | None = None
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    include_path: Path | None = None


@dataclass(frozen=True)
class Spec:
    """A spec in its parts; ``text`` is the whole of it, as it was given."""

    text: str
    name: str | None
    kind: str
    args: str
    options: Mapping[str, str]


def parse_spec(text: str) -> Spec:
    """Take a spec apart; nothing is looked up.

    Raises:
        LinesError: it has not the form, or names an option twice.
    """
    rest, name = text.strip(), None
    if named := _NAME.fullmatch(rest):
        name, rest = check_name(text, named[1]), named[2]
    kind, colon, args = rest.partition(":")
    options: dict[str, str] = {}
    if match := _OPTIONS.fullmatch(args):
        args = match[1]
        for part in match[2].split("&"):
            key, equals, value = part.partition("=")
            if not equals or not key or not value:
                raise LinesError(
                    f"{text}: found the option {part!r}, wanted key=value, several joined by &."
                )
            if key in options:
                raise LinesError(f"{text}: the option {key} is given twice. Keep one.")
            options[key] = value
    if not colon or not args:
        raise LinesError(
            f"evaluator {text!r}: wanted [NAME=]KIND:ARGS[?key=value&…], for example "
            f"perplexity:texts.txt?limit=100."
        )
    return Spec(text.strip(), name, kind, args, options)


def check_name(spec: str, name: object) -> str:
    """Return a metric's name.

    Raises:
        LinesError: expressions of an objective could not use it.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise LinesError(
            f"{spec}: found the metric name {name!r}, wanted letters, digits and _, beginning "
            f"with a letter: objectives use it in expressions. {rename(spec)}"
        )
    if name in RESERVED:
        raise LinesError(
            f"{spec}: the metric name {name!r} has a meaning of its own in objectives. "
            f"{rename(spec)}"
        )
    return name


class FromSpec:
    """What every evaluator has of its spec: the text, the split and its name."""

    def __init__(self, spec: Spec, split: str, name: str) -> None:
        self.spec, self.split = spec.text, split
        self.name = check_name(spec.text, name)

    def described(
        self, options: Mapping[str, Any], data: Mapping[str, str], code: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return these, and what else the numbers hang on, as an identity has them."""
        described = {"spec": self.spec, "name": self.name, "split": self.split}
        return {**described, "options": options, "data": data, "code": code}


def rename(spec: str) -> str:
    """Return the advice to give an evaluator another name."""
    named = _NAME.fullmatch(spec)
    return f"Give another one: NAME={named[2] if named else spec}."


def read_options(spec: Spec, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Return the spec's options, each read by its reader.

    Raises:
        LinesError: a name is unknown to this kind, or a value cannot be read.
    """
    result = {}
    for key, value in spec.options.items():
        if key not in readers:
            raise LinesError(
                f"{spec.text}: {spec.kind} has no option {key!r}.{nearest(key, readers)} It has: "
                f"{', '.join(sorted(readers))}."
            )
        try:
            result[key] = readers[key](value)
        except ValueError as error:
            raise LinesError(
                f"{spec.text}: the option {key} is {value!r}, wanted {error}."
            ) from error
    return result


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise ValueError("a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """Read a whole number of at least 0."""
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError("a whole number of at least 0")
    return int(text)


def positive(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError("a number above 0")
    return value


def truth(text: str) -> bool:
    """Read ``true`` or ``false``."""
    if text not in {"true", "false"}:
        raise ValueError("true or false")
    return text == "true"


def one_of(*words: str) -> Callable[[str], str]:
    """Return a reader of one of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read
