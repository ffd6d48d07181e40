"""The local files that tasks of lm-evaluation-harness hang on, with their digests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mergekit_lines.evaluate.code import code_files
from mergekit_lines.files import file_digest


class _Loader(yaml.SafeLoader):
    """Reads a task's YAML with the names of its functions in the place of the functions."""


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, str]:
    return {"!function": str(loader.construct_scalar(node))}  # type: ignore[arg-type]


_Loader.add_constructor("!function", _function)


def code_digests(path: Path, root: Path) -> dict[str, str]:
    """Return a YAML, what it includes and its functions' code, each file with its SHA-256.

    Args:
        path: the task's or group's YAML.
        root: the folder that names are relative to.
    """
    pending, digests = [path.resolve()], dict[Path, str]()
    while pending:
        file = pending.pop()
        if file in digests or not file.is_file():
            continue
        if file.suffix == ".py":
            digests |= code_files(file, "")
            continue
        digests[file] = file_digest(file)
        content = yaml.load(file.read_bytes(), Loader=_Loader)  # noqa: S506 - a SafeLoader
        pending += [(file.parent / other).resolve() for other in _named(content)]
    return dict(sorted((_name(file, root), digest) for file, digest in digests.items()))


def _named(content: Any) -> Iterable[str]:
    """Yield the files a YAML names, relative to its folder."""
    if isinstance(content, Mapping):
        if function := content.get("!function"):
            yield f"{function.rpartition('.')[0].replace('.', '/')}.py"
            return
        includes = content.get("include", ())
        yield from [includes] if isinstance(includes, str) else includes
        for value in content.values():
            yield from _named(value)
    elif isinstance(content, list):
        for value in content:
            yield from _named(value)


def _name(file: Path, root: Path) -> str:
    try:
        return file.relative_to(root.resolve()).as_posix()
    except ValueError:
        return str(file)


def data_digests(config: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return a task's local ``data_files`` with their SHA-256: measured on, and the others.

    Args:
        config: the task's, with ``test_split``, ``validation_split`` and ``dataset_kwargs``.
    """
    split = config.test_split or config.validation_split
    files = (config.dataset_kwargs or {}).get("data_files") or {}
    if not isinstance(files, Mapping):
        files = {"train": files}  # as datasets calls what has no name
    digests: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name, listed in files.items():
        for file in [listed] if isinstance(listed, (str, Path)) else listed:
            if Path(file).is_file():
                digests[name != split][str(file)] = file_digest(Path(file))
    return digests
