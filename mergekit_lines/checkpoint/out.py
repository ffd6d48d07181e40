"""OUT: what a merge makes, where it stands until it is whole, and what is in its way."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mergekit_lines.checkpoint.headers import weight_files
from mergekit_lines.checkpoint.state import MARK, is_ours, read_state
from mergekit_lines.checkpoint.writer import whole_name
from mergekit_lines.errors import LinesError, some
from mergekit_lines.files import CARD, MODULES, RECIPE, REPORT, weights_stem

# What a merge writes beside the weights; none of it is overwritten.
OWN_FILES = (
    *("config.json", "generation_config.json"),
    *(REPORT, CARD, RECIPE),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", MODULES),
)
HIDDEN_CONFIG = "config.json.whole"
# Files that belong to a model under names of their own: processors, templates, code.
COMPANIONS = (".json", ".jinja", ".model", ".py")


@dataclass(frozen=True)
class Out:
    """What a merge makes: a model's folder, or one safetensors file with a report beside it.

    Attributes:
        path: OUT, absolute and through links: the last rename has to meet it.
        folder: where the files will be: OUT itself, or the folder that the one file is in.
        last: the file that makes a model of the others; it is moved there last.
        hidden: the name of that file in the partial folder until then.
        files: of the one file and its report; none for a folder.
    """

    path: Path
    folder: Path
    last: str
    hidden: str
    files: tuple[str, ...] = ()

    @property
    def partial(self) -> Path:
        """The partial folder: a hidden sibling, on the same file system."""
        return partial_path(self.path)

    def problems(self) -> list[str]:
        """Return why nothing can be written to OUT, if so."""
        return check_out(self.path, self)

    def names(self, name: str) -> bool:
        """Tell whether a merge to OUT writes a file of this name."""
        if Path(name).name != name:
            return False
        if self.files:
            return name in self.files
        return weights_stem(name) is not None or name in OWN_FILES or name.endswith(COMPANIONS)

    def moved(self) -> list[str]:
        """Return what an interrupted merge had moved to OUT; nothing where OUT is whole by it.

        Only what has the name and the digest of a file of that merge is taken for its own.
        """
        if not (self.partial / self.hidden).exists():
            return []
        moving = read_state(self.partial).get("moving")
        return [
            name
            for name, mark in (moving if isinstance(moving, dict) else {}).items()
            if self.names(name)
            and is_ours(self.folder / name, mark)
            and not (self.partial / name).exists()
        ]


def model_folder(path: Path) -> Out:
    """Return a folder to make, given as an absolute path through links."""
    return Out(path, path, "config.json", HIDDEN_CONFIG)


def single_file(path: Path, report: str) -> Out:
    """Return a file to make, given as an absolute path, with its report's name."""
    return Out(path, path.parent, path.name, whole_name(path.name), (path.name, report))


def partial_path(out: Path) -> Path:
    """Return the partial folder of ``out``: a hidden sibling, on the same file system.

    Where OUT is a mount point, a sibling would be on another one: it is inside then.
    """
    inside = out.is_dir() and out.stat().st_dev != out.parent.stat().st_dev
    return (out if inside else out.parent) / f".{out.name}.partial"


def real_out(path: Path) -> Path:
    """Return OUT as an absolute path through links: the last rename has to meet the folder."""
    return Path(os.path.realpath(path))  # Path.resolve raises for a link to itself


def is_utf8(path: Path | str) -> bool:
    """Tell whether a path's bytes are UTF-8, as libraries in Rust want it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # of a surrogate, which stands for such a byte
        return False
    return True


def check_out(path: Path, out: Out | None = None) -> list[str]:
    """Return why nothing can be written to OUT, if so.

    Args:
        path: OUT as it was asked for.
        out: what is to be made there; a model's folder where it is None.
    """
    try:
        return list(_problems(path, out or model_folder(real_out(path))))[:1]
    except OSError as error:
        return [f"OUT {path.name[:40]}…: {error.strerror}. Choose another OUT."]


def _problems(path: Path, out: Out) -> Iterator[str]:
    if not is_utf8(out.path):
        yield (
            f"OUT {path}: a name in its path is no UTF-8, and neither safetensors nor transformers "
            f"opens a file there. Choose another OUT."
        )
    if path.is_symlink() and not path.exists():
        yield f"OUT {path}: found a link that leads nowhere. Choose another OUT."
    if out.path == out.path.parent:
        yield f"OUT {out.path}: found the root of the file system. Choose a folder to make."
    yield from _in_the_way(out, set(out.moved()))
    partial = out.partial
    folder = partial.is_dir() and not partial.is_symlink()
    if (partial.exists() or partial.is_symlink()) and not (
        folder and ((partial / MARK).exists() or not any(partial.iterdir()))
    ):
        yield f"{partial}: in the way of the partial folder and not ours. Remove or rename it."
    parent = out.path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield (
            f"OUT {out.path}: {parent} is not a folder that can be written to. Choose another OUT."
        )


def _in_the_way(out: Out, moved: Collection[str]) -> Iterator[str]:
    """Yield what OUT holds already, but for what an interrupted merge had moved there."""
    if out.files:
        held = [name for name in out.files if os.path.lexists(out.folder / name)]
        held = [name for name in held if name not in moved]
        if held:
            yield (
                f"OUT {out.path}: {some(held)} is there already. Choose another OUT or remove it."
            )
    elif (out.path.exists() or out.path.is_symlink()) and not out.path.is_dir():
        yield f"OUT {out.path}: found a file, wanted a folder to make. Choose another OUT."
    elif out.path.is_dir():
        (out.path / MARK).unlink(missing_ok=True)  # a merge was killed behind its last rename
        held = weight_files(out.path)
        held += [name for name in OWN_FILES if os.path.lexists(out.path / name)]
        held = [name for name in held if name not in moved]
        if held:
            yield (
                f"OUT {out.path}: already holds a model or parts of one ({some(held, 3)}), and a "
                f"merge written over it could load old weights. Choose another OUT or remove it."
            )


@contextmanager
def locked(file: Path, out: Path) -> Iterator[None]:
    """Hold the lock of ``out``, whose file is gone when nobody holds it.

    Raises:
        LinesError: another process holds it.
    """
    if file.is_symlink():  # what it leads to is nobody's lock
        raise LinesError(f"{file}: in the way of the lock and not ours. Remove or rename it.")
    lock = FileLock(file, timeout=0)
    while True:
        file.touch()
        try:
            before = file.stat()
            lock.acquire()
        except Timeout:
            if not file.exists():  # its holder has just ended
                continue
            raise LinesError(
                f"OUT {out}: another merge is writing to it right now. Wait, or choose another OUT."
            ) from None
        except FileNotFoundError:
            continue
        # Its last holder may have removed the file that we opened, and who comes next locks
        # a new one: only the file that is there still counts.
        if file.exists() and os.path.samestat(file.stat(), before):
            break
        lock.release()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
