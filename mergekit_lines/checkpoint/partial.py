"""The partial folder: nothing looks like a model before it is one.

A merge is written to a hidden sibling of OUT, which is renamed to OUT when it is whole. What an
interrupted merge leaves there is whole shards under names that no loader knows, and a state
that tells which merge they belong to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mergekit_lines.checkpoint.bounded import read_json
from mergekit_lines.checkpoint.headers import weight_files
from mergekit_lines.checkpoint.writer import ShardLayout, index_of, sync, whole_name
from mergekit_lines.errors import LinesError, ResumableError, some
from mergekit_lines.files import CARD, INDEX, RECIPE, REPORT

# What a merge writes beside the weights; none of it is overwritten.
OWN_FILES = (
    *("config.json", "generation_config.json"),
    *(REPORT, CARD, RECIPE),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
MARK = "mergekit-lines.partial"
LAYOUT = "the layout of the output"
HIDDEN_CONFIG = "config.json.whole"


def partial_path(out: Path) -> Path:
    """Return the partial folder of ``out``: a hidden sibling, on the same file system.

    Where OUT is a mount point, a sibling would be on another one: it is inside then.
    """
    inside = out.is_dir() and out.stat().st_dev != out.parent.stat().st_dev
    return (out if inside else out.parent) / f".{out.name}.partial"


def real_out(given: Path) -> Path:
    """Return OUT as an absolute path through links: the last rename has to meet the folder."""
    return Path(os.path.realpath(given))  # Path.resolve raises for a link to itself


def check_out(given: Path) -> list[str]:
    """Return why nothing can be written to OUT, if so."""
    try:
        return list(_check_out(given))[:1]
    except OSError as error:
        return [f"OUT {given.name[:40]}…: {error.strerror}. Choose another OUT."]


def _check_out(given: Path) -> Iterator[str]:
    if given.is_symlink() and not given.exists():
        yield f"OUT {given}: found a link that leads nowhere. Choose another OUT."
    out = real_out(given)
    if out == out.parent:
        yield f"OUT {out}: found the root of the file system. Choose a folder to make."
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        yield f"OUT {out}: found a file, wanted a folder to make. Choose another OUT."
    elif out.is_dir():
        (out / MARK).unlink(missing_ok=True)  # a merge was killed behind its last rename
        ours = set(_moved(partial_path(out), out))
        held = weight_files(out) + [name for name in OWN_FILES if (out / name).exists()]
        held = [name for name in held if name not in ours]
        if held:
            yield (
                f"OUT {out}: already holds a model or parts of one ({some(held, 3)}), and a merge "
                f"written over it could load old weights. Choose another OUT or remove it."
            )
    partial = partial_path(out)
    folder = partial.is_dir() and not partial.is_symlink()
    if (partial.exists() or partial.is_symlink()) and not (
        folder and ((partial / MARK).exists() or not any(partial.iterdir()))
    ):
        yield f"{partial}: in the way of the partial folder and not ours. Remove or rename it."
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield f"OUT {out}: {parent} is not a folder that can be written to. Choose another OUT."


class Partial:
    """A partial folder that this process holds the lock of."""

    def __init__(self, path: Path, out: Path, say: Callable[[str], None]) -> None:
        self.path, self.out, self._say = path, out, say
        self._state: dict[str, Any] = {}
        self.begun = False  # what is in the folder is ours

    def begin(self, merge: Mapping[str, Any], shards: Sequence[ShardLayout]) -> None:
        """Take over what an interrupted run of the same merge left, or begin anew.

        Args:
            merge: what the bytes of the output hang on, as JSON values by what people call it.
            shards: the output's shards.

        Raises:
            LinesError: whole shards of another merge are there.
        """
        left = _read_state(self.path)
        merge = json.loads(json.dumps(merge))
        found = len(list(self.path.glob("*.safetensors")))
        if found and left.get("merge") != merge:
            differ = _differences(left.get("merge") or {}, merge)
            raise LinesError(
                f"{self.path}: holds {found} shards of an interrupted merge to the same OUT, "
                f"and that was another one: {some(differ, 5)} differ. Run that merge again to "
                f"finish it, choose another OUT, or remove the folder to begin anew."
            )
        self.begun = True
        for shard in shards:  # the last renames had begun
            if (self.path / shard.file).exists():
                (self.path / shard.file).rename(self.path / whole_name(shard.file))
        if found:
            self._say(
                f"found {found} of {len(shards)} shards in {self.path}, left by a merge that "
                f"was killed or stopped: going on behind them"
            )
        self._state = {**(left if found else {}), "merge": merge, "moving": []}
        self._write_state()

    def recall(self, key: str) -> Any:
        """Return what :meth:`keep` kept, in this run or the interrupted one; else None."""
        return self._state.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Keep a JSON value for a run that goes on after this one."""
        self._state[key] = value
        self._write_state()

    def publish(self, shards: Sequence[ShardLayout]) -> None:
        """Make all files durable and move them to OUT: shards, index, config, then the folder.

        Into a folder that holds other things, files are moved one by one, config.json last:
        nothing loads a model without it.

        Raises:
            LinesError: a file in OUT would be overwritten.
        """
        config = self.path / "config.json"
        if config.exists():
            config.rename(self.path / HIDDEN_CONFIG)
        clash = [
            path.name
            for path in self.path.iterdir()
            if path.name not in (MARK, HIDDEN_CONFIG) and (self.out / path.name).exists()
        ]
        clash += ["config.json"] if (self.out / "config.json").exists() else []
        if clash:
            raise ResumableError(f"OUT {self.out}: would overwrite {some(clash)}. Remove it there.")
        for shard in shards:
            (self.path / whole_name(shard.file)).rename(self.path / shard.file)
        index = index_of(shards)
        if index is not None:
            path = self.path / INDEX
            path.write_text(index, encoding="utf-8")
        for path in self.path.rglob("*"):
            sync(path)
        if self.out.is_dir() and any(self.out.iterdir()):
            self._move_files()
        else:
            (self.path / HIDDEN_CONFIG).rename(config)
            sync(self.path)
            self.path.rename(self.out)
            (self.out / MARK).unlink(missing_ok=True)
        sync(self.out)
        sync(self.out.parent)

    def _move_files(self) -> None:
        kept = (MARK, HIDDEN_CONFIG)
        names = sorted(path.name for path in self.path.iterdir() if path.name not in kept)
        self.keep("moving", names)
        for name in names:
            (self.path / name).rename(self.out / name)
        sync(self.out)
        (self.path / HIDDEN_CONFIG).rename(self.out / "config.json")
        shutil.rmtree(self.path)

    def _write_state(self) -> None:
        path = self.path / f"{MARK}.new"
        path.write_text(json.dumps(self._state), encoding="utf-8")
        sync(path)
        path.rename(self.path / MARK)
        sync(self.path)


def _read_state(partial: Path) -> dict[str, Any]:
    try:
        state = read_json(partial / MARK)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _moved(partial: Path, out: Path) -> list[str]:
    """Return what an interrupted merge had moved to OUT; nothing where OUT is whole by it."""
    if not (partial / HIDDEN_CONFIG).exists():
        return []
    names = _read_state(partial).get("moving", [])
    return [name for name in names if (out / name).exists() and not (partial / name).exists()]


def _differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    names = []
    for name in {**left, **right}:
        old, new = left.get(name), right.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            files = [Path(file).name for file in {**old, **new} if old.get(file) != new.get(file)]
            names.append(f"{name} ({some(files, 2)})")
        elif old != new:
            names.append(name)
    # What else differs is the cause where the layout does.
    return [name for name in names if name != LAYOUT] or names or ["its state is lost"]


@contextmanager
def partial_folder(out: Path, say: Callable[[str], None]) -> Iterator[Partial]:
    """Yield the partial folder of ``out``, locked; the caller publishes it.

    After a failure that another run may get over (Ctrl-C, a full disk) its whole shards stay.

    Raises:
        LinesError: another merge is writing to the same OUT.
    """
    path = partial_path(out)
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LinesError(
            f"OUT {out}: another merge is writing to it right now. Wait, or choose another OUT."
        ) from None
    try:
        path.mkdir(exist_ok=True)
        for name in _moved(path, out):
            (out / name).rename(path / name)
        for left in path.iterdir():
            if left.name != MARK and left.suffix != ".safetensors":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not (path / MARK).exists():
            (path / MARK).touch()
        partial = Partial(path, out, say)
        try:
            yield partial
        except BaseException as error:
            whole = len(list(path.glob("*.safetensors")))
            spoilt = isinstance(error, LinesError) and not isinstance(error, ResumableError)
            nothing = not whole and not partial.recall("moving")
            if nothing or (partial.begun and spoilt):
                shutil.rmtree(path, ignore_errors=True)
                if partial.begun and not isinstance(error, Exception):
                    say(
                        "stopped before a shard was whole; nothing is kept. Run the same command "
                        "to begin anew; smaller shards (--out-shard-size) lose less"
                    )
            elif partial.begun:
                say(f"stopped; {whole} whole shards are kept. Run the same command to go on")
            raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()
