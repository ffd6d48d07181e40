"""The files of code that an evaluator's numbers hang on: its own, and what it imports of yours."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_lines.errors import LinesError
from mergekit_lines.files import file_digest

_IMPORTED: dict[Path, str] = {}  # SHA-256 of files that Python runs, as they were first seen
_LIBRARIES = {"site-packages", "dist-packages"}
_OURS = "mergekit_lines"  # its version is told elsewhere

# A file, the name of its module, and whether what it imports counts too.
_Module = tuple[Path, str, bool]


@contextmanager
def same_directory() -> Iterator[None]:
    """Come back to the current directory: code that changes it would move what is named later."""
    here = Path.cwd()
    try:
        yield
    finally:
        os.chdir(here)


def code_files(file: Path, module: str) -> dict[Path, str]:
    """Return a Python file, and what it imports of files that no package installed.

    Imports inside functions count, and so do those of files that are imported. Of a package that
    is installed from its source folder only what is imported directly counts. What a program
    makes up as it runs (``importlib.import_module``) is not seen, nor are files that it reads.

    Args:
        file: of code.
        module: the whole name under which Python imports it; empty where it does not.

    Returns:
        The files with their SHA-256.

    Raises:
        LinesError: a file was changed since Python imported it.
    """
    path = file.resolve()
    follows = not _LIBRARIES.intersection(path.parts)
    pending: list[_Module] = [(path, module, follows), *_files_of(module, module)]
    files: dict[Path, str] = {}
    while pending:
        path, name, follows = pending.pop()
        if path not in files:
            files[path] = _digest(path, name)
            pending += _imports(path, name) if follows else []
    return files


def _digest(path: Path, module: str) -> str:
    digest = file_digest(path)
    if module not in sys.modules:
        return digest
    if _IMPORTED.setdefault(path, digest) != digest:
        raise LinesError(
            f"{path}: changed since it was imported, and Python still runs what it was. Start "
            f"Python again."
        )
    return digest


def _imports(path: Path, module: str) -> Iterator[_Module]:
    """Yield the files that a file imports, as far as they count."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # whoever runs it will tell
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            names = [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
        for name in names:
            yield from _files_of(name, module)


def _files_of(module: str, importer: str) -> Iterator[_Module]:
    """Yield the files that an import of a module runs: its packages', and its own."""
    parts = module.split(".")
    top = parts[0]
    if not all(parts) or top == _OURS or top in sys.stdlib_module_names:
        return
    place = _find([top])
    if place is None or _LIBRARIES.intersection(place.parts):
        return
    own = top == importer.partition(".")[0] or not _has_distribution(top)
    for count in range(1, len(parts) + 1):
        place = _find(parts[:count])
        if place is not None and place.is_file():
            yield place, ".".join(parts[:count]), own


def _find(parts: list[str]) -> Path | None:
    """Return the file of a module, or the folder of a package without one, as Python finds it.

    Nothing is imported.
    """
    running = getattr(sys.modules.get(".".join(parts)), "__file__", None)
    if running and running.endswith(".py"):
        return Path(running).resolve()
    stems = [Path(folder or os.curdir, *parts) for folder in sys.path]
    files = [
        path for stem in stems for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))
    ]
    place = next((path for path in files if path.is_file()), None)
    place = place or next((stem for stem in stems if stem.is_dir()), None)
    return None if place is None else place.resolve()


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
