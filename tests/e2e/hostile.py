"""What a hostile file holds, for :mod:`tests.e2e.test_hostile`: each function makes one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

# A terminal obeys it, it begins lines of its own, and Markdown and HTML take it for markup.
TEXT = "x\x1b]0;HOSTILE\x07\x9b2J\r\nFORGED \u202ecod\u2066 ```\n~~~ <script>|*_[l](u)` \u2028\x00y"
RAW = ("\x1b]0;", "\x07", "\x9b", "\u202e", "\u2066", "\u2028", "\x00", "\nFORGED")
RECIPE: dict[str, Any] = {
    "merge_method": "lines",
    "base_model": "./base",
    "models": [{"model": "./tuned"}, {"model": "./base+./adapter"}],
    "parameters": {"wrap": "task_arithmetic", "alpha": 0.5, "beta": 0.5},
}
Write = Callable[[Path], None]


def _poisoned(value: Any) -> Any:
    """Return JSON with a hostile text beside and in place of what is there."""
    if isinstance(value, dict):
        return {**{key: _poisoned(part) for key, part in value.items()}, TEXT: TEXT}
    return [*map(_poisoned, value), TEXT] if isinstance(value, list) else value


def poisoned(path: Path) -> None:
    """Hostile keys and values in every object and list."""
    path.write_text(json.dumps(_poisoned(json.loads(path.read_text()))))


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _changed(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_changed(part, change) for part in value]
    return change(value)


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), change)))


def renamed(path: Path) -> None:
    """Hostile texts in place of every text."""
    _rewrite(path, lambda value: TEXT if isinstance(value, str) else value)


def counted(path: Path) -> None:
    """A thousand million in place of every whole number."""
    _rewrite(path, lambda value: 10**9 if type(value) is int else value)


def deep(path: Path) -> None:
    """Lists without end."""
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def deep_inside(path: Path) -> None:
    """A depth that Python's parser takes, under another key."""
    content = json.loads(path.read_text())
    inner: Any = 1
    for _ in range(400):
        inner = [inner]
    path.write_text(json.dumps({**content, "more": inner}))


def halves(path: Path) -> None:
    """Half a surrogate pair, which no file can be written with."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "_name_or_path": "\ud800", "\udfff": 1}))


def endless(path: Path) -> None:
    """Numbers that are none."""
    content = json.loads(path.read_text())
    text = json.dumps({**content, "x": 0, "y": 0})
    path.write_text(text.replace('"x": 0', '"x": NaN').replace('"y": 0', f'"y": {"9" * 9999}'))


def no_object(path: Path) -> None:
    """JSON of another kind."""
    path.write_text('["a", 1]')


def no_text(path: Path) -> None:
    """Bytes that are no UTF-8."""
    path.write_bytes(b'{"a": "\xff\xfe\x1b]0;HOSTILE"}')


def pipe(path: Path) -> None:
    """A pipe whose other end never comes."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    """A link to a device without end."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    """A folder in a file's place."""
    path.unlink(missing_ok=True)
    path.mkdir()


def _bomb() -> str:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


YAMLS = {
    "bomb": _bomb(),
    "itself": "base_model: &a\n  model: [*a]\nlicense: *a",
    "deep": "license: " + "[" * 5_000,
    "number": f"license: 1:{':'.join(['59'] * 50_000)}",
    "date": "license: 2001-99-99",
    "object": "license: !!python/object/apply:os.system ['touch FORGED']",
    "key": yaml.safe_dump({TEXT: 1, "x": {TEXT: [TEXT]}}),
    "texts": yaml.safe_dump({"license": TEXT, "language": [TEXT, "en"], "pipeline_tag": TEXT}),
}
JSONS = (poisoned, renamed, counted, deep, deep_inside, halves, endless, no_object, no_text)


def card(name: str) -> Write:
    """A README with that front matter, and a text as hostile."""

    def write(path: Path) -> None:
        path.write_text(f"---\n{YAMLS[name]}\n---\n# {TEXT}\n", newline="")

    write.__name__ = f"card-{name}"
    return write


def recipe(name: str) -> Write:
    """A recipe with that YAML under another key."""

    def write(path: Path) -> None:
        path.write_text(f"{yaml.safe_dump(RECIPE)}\n{YAMLS[name]}\n", newline="")

    write.__name__ = f"recipe-{name}"
    return write


def parameters(name: str) -> Write:
    """A recipe with that YAML below its parameters."""

    def write(path: Path) -> None:
        inner = YAMLS[name].replace("\n", "\n  ")
        path.write_text(f"{yaml.safe_dump(RECIPE)}\n  {inner}\n", newline="")

    write.__name__ = f"parameters-{name}"
    return write


def names(path: Path) -> None:
    """A recipe whose models, parameters and tokens have hostile names."""
    models = [{"model": f"./{TEXT}".replace("\0", ""), "parameters": {TEXT: 1, "weight": TEXT}}]
    tokens = {TEXT: {"source": TEXT}}
    content = {**RECIPE, "models": models, "tokenizer": {"source": "base", "tokens": tokens}}
    path.write_text(yaml.safe_dump(content))


def header(path: Path) -> None:
    """Tensors with hostile names in a file's header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    metadata = {"__metadata__": {TEXT: TEXT}} | {
        f"{name}{TEXT}": one for name, one in entries.items() if name != "__metadata__"
    }
    text = json.dumps(metadata).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def header_deep(path: Path) -> None:
    """A header of lists without end."""
    text = b"[" * 200_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def header_long(path: Path) -> None:
    """A header that is longer than memory."""
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def slow_patterns(path: Path) -> None:
    """Ranks by a regular expression that backtracks without end."""
    content = json.loads(path.read_text())
    slow = {"(([a-z_0-9.])*)*X": 4, "(a|a)*" * 9 + "X": 4, ".*.*.*.*.*.*.*.*.*X": 4}
    path.write_text(json.dumps({**content, "rank_pattern": slow, "alpha_pattern": slow}))


def outside(path: Path) -> None:
    """Files elsewhere in place of those of the folder."""
    text = path.read_text().replace("model.safetensors", "../precious/key.safetensors")
    path.write_text(text.replace("model-0000", "../precious/model-0000"))
