"""Texts that others wrote, read within bounds: of size, depth, aliases and so of time.

Cards, configs, indexes, reports and recipes come along with models of strangers. What is
larger, deeper or more entangled than any of them is on purpose is refused by one sentence
before a parser sees it, and nothing but a regular file is opened: a pipe never ends.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from mergekit_lines.errors import TextError

MIB = 1 << 20
TEXT_BYTES = 16 * MIB  # bytes of a config, a report, a card
INDEX_BYTES = 64 * MIB  # bytes of an index, which has a line per tensor
RECIPE_BYTES = MIB  # bytes of YAML, which is parsed far more slowly than JSON
DEPTH = 64  # lists and mappings in one another
NODES = 50_000  # of YAML, each alias counted as often as what it stands for
DIGITS = 1_000  # of a number: Python's own work on one grows with the square of them

# What a config counts, by the words of its keys: transformers makes lists of that length.
COUNTS = (
    ({"layer", "layers", "depth", "depths", "block", "blocks", "stages", "experts"}, 10_000),
    ({"labels"}, 1_000_000),
)
SIZES = {"size", "sizes", "dim", "dims", "length", "window", "tokens", "id", "ids"}

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file; links are followed.

    Raises:
        TextError: it is a pipe, a device or a folder.
        OSError: it is not there.
    """
    status = path.stat()
    _refuse_mode(status.st_mode)
    return status


def _refuse_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((text for is_kind, text in _KINDS if is_kind(mode)), "something else")
        raise TextError(f"it is {kind}, wanted a regular file")


def special_files(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a folder of which others will read whatever they look for."""
    for path in sorted(folder.iterdir()):
        try:
            check_regular(path)
        except OSError:  # a link to nothing is nothing
            continue
        except TextError as error:
            if not path.is_dir():
                yield f"{path}: {error}. Do not use this model."


def read_bytes(path: Path, most: int = TEXT_BYTES) -> bytes:
    """Return what a regular file of at most ``most`` bytes holds.

    Raises:
        TextError: it is larger, or no regular file.
        OSError: it cannot be read.
    """
    check_regular(path)
    # Should it have become a pipe since, opening one does not wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _refuse_mode(os.fstat(file.fileno()).st_mode)
        content = file.read(most + 1)
    if len(content) > most:
        raise TextError(f"it holds more than {most // MIB} MiB")
    return content


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """Return the text of a regular file of at most ``most`` bytes.

    Raises:
        TextError: it is larger, no regular file, or not UTF-8.
        OSError: it cannot be read.
    """
    try:
        text = read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise TextError(
            f"it is not UTF-8 text: byte 0x{byte:02x} at position {error.start}"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads a text


def read_json(path: Path, most: int = TEXT_BYTES, *, finite: bool = False) -> Any:
    """Return the content of a JSON file; as :func:`read_text` and :func:`parse_json` read it.

    Raises:
        TextError: as :func:`read_text` and :func:`parse_json` say.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path, most), finite=finite)


def read_config(path: Path) -> Any:
    """Return the content of a config.json, of which transformers would count up what it counts.

    Raises:
        TextError: as :func:`read_json` says, or it counts more layers than any model has.
        OSError: it cannot be read.
    """
    config = read_json(path)
    rest = [config]
    while rest:
        part = rest.pop()
        for key, value in part.items() if isinstance(part, dict) else ():
            _check_counts(key, value)
            rest.append(value)
        rest += part if isinstance(part, list) else ()
    return config


def _check_counts(key: str, value: Any) -> None:
    words = set(key.lower().split("_"))
    most = next((number for names, number in COUNTS if names & words), None)
    if most is None or words & SIZES:
        return
    for number in value if isinstance(value, list) else [value]:
        if type(number) is int and number > most:
            raise TextError(f"its {key} is {number:,}, wanted at most {most:,}")


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Return what a JSON text holds.

    Args:
        text: of bounded size.
        finite: whether NaN and the infinities are refused, which Python alone writes.

    Raises:
        TextError: it is no JSON, is nested more than 64 deep, or holds half a character.
    """
    parsers: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite} if finite else {}
    try:
        value = json.loads(text, **parsers)
    except RecursionError:
        raise TextError(_deep()) from None
    except ValueError as error:
        raise TextError(f"it is no JSON: {error}") from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        _check_whole(value)
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def parse_yaml(text: str) -> Any:
    """Return what a YAML text of one document holds.

    Raises:
        TextError: as :func:`parse_documents` says.
    """
    return _loaded(text, lambda: yaml.load(text, Loader=_Parser))  # noqa: S506 - a SafeLoader


def parse_documents(text: str) -> list[Any]:
    """Return what the documents of a YAML text hold.

    Raises:
        TextError: it is no YAML, or what :func:`check_yaml` refuses.
    """
    return _loaded(text, lambda: list(yaml.load_all(text, Loader=_Parser)))


def _loaded(text: str, load: Callable[[], Any]) -> Any:
    check_yaml(text)
    try:
        value = load()
    except yaml.YAMLError as error:
        raise TextError(f"it is no YAML: {' '.join(str(error).split())}") from None
    # A date of the 99th, say; a tag of a truth or a time before a word that is none.
    except (ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
        raise TextError(f"it holds a value that YAML cannot read: {error}") from None
    _check_whole(value)
    return value


def check_yaml(text: str) -> None:
    """Check a YAML text before any parser builds what it says; aliases are counted, not followed.

    Raises:
        TextError: it is larger than 1 MiB, is nested more than 64 deep, comes to more than 50,000
            nodes, holds an alias of what stands around it, a number of more than 1,000
            digits, or is no YAML.
    """
    if len(text) > RECIPE_BYTES:
        raise TextError(f"it holds more than {RECIPE_BYTES // MIB} MiB")
    try:
        for event in _counted(yaml.parse(text, Loader=_Parser)):
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > DIGITS:
                _check_scalar(event)
    except yaml.YAMLError as error:
        raise TextError(f"it is no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # an escape beyond Unicode
        if isinstance(error, TextError):
            raise
        raise TextError(f"it is no YAML: {error}") from None


def scalars(text: str) -> Iterator[str | None]:
    """Yield the scalars of a YAML text in their order, None for all else, as far as it is YAML.

    Nothing is built, so that it takes as long as the text is.
    """
    try:
        for event in yaml.parse(text, Loader=_Parser):
            yield event.value if isinstance(event, yaml.ScalarEvent) else None
    except (yaml.YAMLError, ValueError):  # the latter of an escape beyond Unicode
        return


def _counted(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    """Yield the events of a text while what they come to stays within the bounds."""
    sizes: dict[
        str | None, int
    ] = {}  # of whole anchored nodes, what stands for their aliases included
    around: list[str | None] = []  # the anchors of the collections that an event stands in
    counts = [0]  # of the nodes in each of them
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            sizes.clear()
        elif isinstance(event, yaml.CollectionStartEvent):
            around.append(event.anchor)
            counts.append(1)
            sizes.pop(event.anchor, None)  # of another node with this anchor
            if len(around) > DEPTH:
                raise TextError(_deep())
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, count = around.pop(), counts.pop()
            counts[-1] += count
            if anchor is not None:
                sizes[anchor] = count
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes and event.anchor in around:
                raise TextError(f"its alias *{event.anchor} stands for what it is itself a part of")
            counts[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if counts[-1] > NODES:
            raise TextError(f"it comes to more than {NODES:,} values, aliases written out")
        yield event


def _check_scalar(event: yaml.ScalarEvent) -> None:
    typed = event.tag is not None and event.tag != "tag:yaml.org,2002:str"
    # No number of YAML has a comma or a space: a text of coefficients is none.
    number = event.implicit[0] and re.fullmatch(r"[-+.\d][-+.:\w]*", event.value)
    if typed or number:
        raise TextError(f"it holds a value of more than {DIGITS:,} digits")


def _deep() -> str:
    return f"it is nested more than {DEPTH} deep"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return
    raise TextError(_deep())


def _parts(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in inner if isinstance(part, (dict, list))]


def _check_whole(value: Any) -> None:
    """Refuse halves of a surrogate pair, which no file can be written with."""
    rest = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            rest += [*part, *part.values()]
        elif isinstance(part, (list, tuple, set)):
            rest += part
        elif isinstance(part, str) and any("\ud800" <= one <= "\udfff" for one in part):
            raise TextError(f"it holds half of a character: {part[:40]!a}")
