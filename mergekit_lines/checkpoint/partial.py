"""The partial folder: nothing looks like a model before it is one.

A merge is written to a hidden sibling of OUT, which is renamed to OUT when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mergekit_lines.checkpoint.headers import weight_files
from mergekit_lines.errors import LinesError, some

# What a merge writes beside the weights; none of it is overwritten.
OWN_FILES = ("config.json", "lines_report.json", "README.md", "mergekit_config.yml")
MARK = "mergekit-lines.partial"


def partial_path(out: Path) -> Path:
    """Return the partial folder of ``out``: a hidden sibling, on the same file system.

    Where OUT is a mount point, a sibling would be on another one: it is inside then.
    """
    inside = out.is_dir() and out.stat().st_dev != out.parent.stat().st_dev
    return (out if inside else out.parent) / f".{out.name}.partial"


def check_out(out: Path) -> list[str]:
    """Return why nothing can be written to ``out`` (absolute, links followed), if so."""
    try:
        return list(_check_out(out))[:1]
    except OSError as error:
        return [f"OUT {out.name[:40]}…: {error.strerror}. Choose another OUT."]


def _check_out(out: Path) -> Iterator[str]:
    if out == out.parent:
        yield f"OUT {out}: found the root of the file system. Choose a folder to make."
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        yield f"OUT {out}: found a file, wanted a folder to make. Choose another OUT."
    elif out.is_dir():
        held = weight_files(out) + [name for name in OWN_FILES if (out / name).exists()]
        if held:
            yield (
                f"OUT {out}: already holds a model or parts of one ({some(held, 3)}), and a merge "
                f"written over it could load old weights. Choose another OUT or remove it."
            )
    partial = partial_path(out)
    ours = partial.is_dir() and not partial.is_symlink()
    if (partial.exists() or partial.is_symlink()) and not (
        ours and ((partial / MARK).exists() or not any(partial.iterdir()))
    ):
        yield f"{partial}: in the way of the partial folder and not ours. Remove or rename it."
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield f"OUT {out}: {parent} is not a folder that can be written to. Choose another OUT."


@contextmanager
def partial_folder(out: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Yield an empty partial folder; it becomes ``out`` at the end, or vanishes on failure.

    Raises:
        LinesError: another merge is writing to the same OUT.
    """
    partial = partial_path(out)
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial.with_name(f"{partial.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LinesError(
            f"OUT {out}: another merge is writing to it right now. Wait, or choose another OUT."
        ) from None
    try:
        if partial.exists():
            say(f"removing {partial}, left by a merge that was killed")
            shutil.rmtree(partial)
        partial.mkdir()
        (partial / MARK).touch()
        try:
            yield partial
            _publish(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def _publish(partial: Path, out: Path) -> None:
    """Make the partial folder's files durable, then move them to ``out`` in one rename.

    Into a folder that holds other things, files are moved one by one, config.json last:
    nothing loads a model without it.
    """
    for path in partial.rglob("*"):
        _fsync(path)
    _fsync(partial)
    if out.is_dir() and any(out.iterdir()):
        entries = sorted(partial.iterdir(), key=lambda path: (path.name == "config.json", path))
        entries = [path for path in entries if path.name != MARK]
        clash = [path.name for path in entries if (out / path.name).exists()]
        if clash:
            raise LinesError(f"OUT {out}: would overwrite {some(clash)}. Choose another OUT.")
        for path in entries:
            path.rename(out / path.name)
        shutil.rmtree(partial)
    else:
        partial.rename(out)
        (out / MARK).unlink()
    _fsync(out)
    _fsync(out.parent)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
