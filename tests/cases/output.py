"""Builders of output folders: what may lie at OUT, and who may hold it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cases.case import Build, Models, Recipe
from tests.cases.checkpoints import copy
from tests.cases.recipes import entry, recipe


def out_holds(source: str | None = None, file: str = "", content: str = "x") -> Build:
    """Build the sound recipe; OUT is a copy of a model, or holds one file."""

    def build(folder: Path, models: Models) -> Recipe:
        if source:
            copy(getattr(models, source), folder / "out")
        else:
            (folder / "out").mkdir(exist_ok=True)
            (folder / "out" / file).write_text(content)
        return recipe(models)

    return build


def holding(file: str, content: str = "x") -> Build:
    """Build the sound recipe beside a file of this name (relative to the case's folder)."""

    def build(folder: Path, models: Models) -> Recipe:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
        return recipe(models)

    return build


def dead_link(folder: Path, models: Models) -> Recipe:
    """Build the sound recipe; OUT is a link to a folder that is not there."""
    (folder / "out").symlink_to(folder / "nowhere")
    return recipe(models)


def link_to_itself(folder: Path, models: Models) -> Recipe:
    """Build the sound recipe; OUT is a link to itself."""
    (folder / "out").symlink_to(folder / "out")
    return recipe(models)


def out_is_an_input(folder: Path, models: Models) -> Recipe:
    """Build a recipe one of whose models is OUT itself."""
    return recipe(models, models=[entry(copy(models.a, folder / "out")), entry(models.b)])


@contextmanager
def another_merge(folder: Path) -> Iterator[None]:
    """Hold the lock of OUT, as a merge that is under way does."""
    from filelock import FileLock

    lock = folder / ".out.partial.lock"
    with FileLock(lock):
        yield
    lock.unlink(missing_ok=True)
