"""The partial folder: nothing looks like a model before it is one.

A merge is written to a hidden sibling of OUT, which is renamed to OUT when it is whole. What an
interrupted merge leaves there is whole shards under names that no loader knows, and a state
that tells which merge they belong to.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.out import Out, locked
from mergekit_lines.checkpoint.state import (
    MARK,
    differences,
    has_digest,
    mark_of,
    read_state,
    same_content,
)
from mergekit_lines.checkpoint.writer import ShardLayout, check_shard, index_of, sync, whole_name
from mergekit_lines.errors import LinesError, ResumableError, reason, some
from mergekit_lines.files import index_beside

PATIENCE = 30.0  # seconds for processes of a run that was killed to let its files go


class Partial:
    """A partial folder that this process holds the lock of."""

    def __init__(self, out: Out, say: Callable[[str], None]) -> None:
        self.path, self.out, self._say = out.partial, out, say
        self._state: dict[str, Any] = {}
        self._writing = threading.Lock()  # a shard ends on a thread of its own
        self._run = self.path / f".run-{uuid.uuid4().hex}"  # gone where another run has begun
        self._marked = False  # by that file, until the output is published
        self.begun = False  # what is in the folder is ours

    def begin(self, merge: Mapping[str, Any], shards: Sequence[ShardLayout]) -> None:
        """Take over what an interrupted run of the same merge left, or begin anew.

        Args:
            merge: what the bytes of the output hang on, as JSON values by what people call it.
            shards: the output's shards.

        Raises:
            LinesError: whole shards of another merge are there.
        """
        left = read_state(self.path)
        merge = json.loads(json.dumps(merge))
        count = len(list(self.path.glob("*.safetensors")))
        if count and left.get("merge") != merge:
            differ = differences(left.get("merge"), merge)
            raise LinesError(
                f"{self.path}: holds {count} shards of an interrupted merge to the same OUT, "
                f"and that was another one: {some(differ, 5)} differ. Run that merge again to "
                f"finish it, choose another OUT, or remove the folder to begin anew."
            )
        self.begun = True
        digests = self._whole(shards, left.get("digests"))
        if digests:
            self._say(
                f"found {len(digests)} of {len(shards)} shards in {self.path}, left by a merge "
                f"that was killed or stopped: going on behind them"
            )
        self._state = {**(left if count else {}), "merge": merge, "moving": {}, "digests": digests}
        self._run.touch()
        self._marked = True
        self._write_state()

    def _whole(self, shards: Sequence[ShardLayout], digests: Any) -> dict[str, str]:
        """Return the digests of the shards that are as they were written; remove all others."""
        digests = digests if isinstance(digests, dict) else {}
        whole, damaged = {}, []
        for shard in shards:
            path = self.path / whole_name(shard.file)
            if (self.path / shard.file).exists():  # the last renames had begun
                (self.path / shard.file).rename(path)
            digest = digests.get(shard.file)
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size == shard.size and has_digest(path, digest):
                whole[shard.file] = digest
            else:
                damaged.append(shard.file)
        for path in self.path.glob("*.safetensors"):
            if path.name not in map(whole_name, whole):
                path.unlink()
        if damaged:
            self._say(
                f"{some(damaged, 3)} in {self.path}: no longer as written, made again. Check the "
                f"disk if nobody has changed {'it' if len(damaged) == 1 else 'them'}"
            )
        return whole

    def recall(self, key: str) -> Any:
        """Return what :meth:`keep` kept, in this run or the interrupted one; else None."""
        return self._state.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Keep a JSON value for a run that goes on after this one.

        Raises:
            ResumableError: another run works in this folder.
        """
        with self._writing:
            self._state[key] = value
            self._write_state()

    def vouch(self, file: str, digest: str) -> None:
        """Keep the digest of a shard that is about to be whole.

        Raises:
            ResumableError: another run works in this folder.
        """
        with self._writing:
            self._state["digests"][file] = digest
            self._write_state()

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the folder over: locks need not reach over machines."""
        return self._marked and not self._run.exists()

    def _check_alone(self) -> None:
        """Refuse to go on in another run's folder.

        Raises:
            ResumableError: it is.
        """
        if self.is_lost:
            raise ResumableError(
                f"{self.path}: another run has begun to write there, on another machine perhaps "
                f"(the storage's locks do not reach from one to the other). Let that one end, or "
                f"stop it and run the same command to go on."
            )

    def _unmark(self) -> None:
        self._check_alone()
        self._marked = False
        self._run.unlink()

    def publish(self, shards: Sequence[ShardLayout]) -> None:
        """Make all files durable and move them to OUT: shards, index, config, then the folder.

        Into a folder that holds other things, files are moved one by one, config.json last, or
        the weights where there is none: nothing loads a model without it.

        Raises:
            LinesError: a shard is not what was planned.
            ResumableError: a file in OUT would be overwritten, or another run works here.
        """
        self._unmark()
        config, hidden = self.path / self.out.last, self.path / self.out.hidden
        index, listing = index_of(shards), index_beside(shards[0].file)
        if config.exists():
            config.rename(hidden)
        else:
            self.out = replace(self.out, last=listing if index else shards[0].file)
        names = {whole_name(shard.file): shard.file for shard in shards}
        self._check_clash({**names, **({"": listing} if index else {})})
        for shard in shards:
            check_shard(self.path / whole_name(shard.file), shard)
            place = hidden if shard.file == self.out.last else self.path / shard.file
            (self.path / whole_name(shard.file)).rename(place)
        if index is not None:
            place = hidden if self.out.last == listing else self.path / listing
            place.write_text(index, encoding="utf-8")
        for path in self.path.rglob("*"):
            sync(path)
        # A rename would leave whoever works in OUT in a folder that is no longer there.
        here = self.out.path.is_dir() and self.out.path.samefile(Path.cwd())
        if here or (self.out.path.is_dir() and any(self.out.path.iterdir())):
            self._move_files()
        else:
            hidden.rename(self.path / self.out.last)
            sync(self.path)
            self.path.rename(self.out.path)
            (self.out.path / MARK).unlink(missing_ok=True)
        sync(self.out.path)
        sync(self.out.path.parent)

    def publish_file(self, shard: ShardLayout) -> None:
        """Make the one file and its report durable and move them to OUT, the file last.

        Raises:
            LinesError: the file is not what was planned.
            ResumableError: a file would be overwritten, or another run works here.
        """
        self._unmark()
        self._check_clash({})
        check_shard(self.path / whole_name(shard.file), shard)
        for path in self.path.iterdir():
            sync(path)
        self._move_files()

    def _check_clash(self, renamed: Mapping[str, str]) -> None:
        """Refuse to overwrite a file of OUT.

        Args:
            renamed: the names in OUT of files that have others here.
        """
        renamed = {**renamed, self.out.hidden: self.out.last, MARK: ""}
        names = {path.name: path.name for path in self.path.iterdir()} | renamed
        clash = [
            new
            for name, new in names.items()
            if new
            and os.path.lexists(self.out.folder / new)
            # An interrupted run may have moved it there; a rename loses nothing then.
            and not same_content(self.path / name, self.out.folder / new)
        ]
        if clash:
            raise ResumableError(
                f"OUT {self.out.path}: {some(clash)} is there already, and would be overwritten. "
                f"Remove it there, and run the same command to go on."
            )

    def _move_files(self) -> None:
        kept = (MARK, self.out.hidden)
        paths = sorted(path for path in self.path.iterdir() if path.name not in kept)
        # Of a folder a run that goes on sees for itself that it is there.
        self.keep("moving", {path.name: mark_of(path) for path in paths if path.is_file()})
        for path in paths:
            target = self.out.folder / path.name
            if path.is_dir() and target.is_dir():
                shutil.rmtree(path)  # the same is there already
            else:
                path.rename(target)
        sync(self.out.folder)
        (self.path / self.out.hidden).rename(self.out.folder / self.out.last)
        sync(self.out.folder)
        shutil.rmtree(self.path)

    def _write_state(self) -> None:
        self._check_alone()
        path = self.path / f"{MARK}.new"
        path.write_text(json.dumps(self._state), encoding="utf-8")
        sync(path)
        path.rename(self.path / MARK)
        sync(self.path)


@contextmanager
def partial_folder(out: Out, say: Callable[[str], None]) -> Iterator[Partial]:
    """Yield the partial folder of ``out``, locked; the caller publishes it.

    After a failure that another run may get over (Ctrl-C, a full disk) its whole shards stay.

    Raises:
        LinesError: another merge is writing to the same OUT, or has written to it by now.
    """
    path = out.partial
    absent = [parent for parent in out.path.parents if not parent.exists()]
    out.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path.with_name(f"{path.name}.lock"), out.path):
            # Looked at again: another merge may have ended between the first look and the lock.
            if problems := out.problems():
                raise LinesError(problems)
            partial = _opened(out, say)
            try:
                yield partial
            except BaseException as error:
                _leave(partial, error, say)
                raise
    finally:
        for parent in absent:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def _opened(out: Out, say: Callable[[str], None]) -> Partial:
    """Return the partial folder, with nothing in it but a state and whole shards."""
    path = out.partial
    path.mkdir(exist_ok=True)
    for name in out.moved():
        (out.folder / name).rename(path / name)
    for left in path.iterdir():
        if left.is_dir() and not left.is_symlink():
            _remove(left)
        elif left.name != MARK and (left.suffix != ".safetensors" or left.is_symlink()):
            left.unlink(missing_ok=True)
    if not (path / MARK).exists():
        (path / MARK).touch()
    return Partial(out, say)


def _remove(folder: Path) -> None:
    """Remove a folder in which workers of a run that was killed may still hold files open.

    Raises:
        ResumableError: they do not let them go.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return shutil.rmtree(folder)
        except FileNotFoundError:  # somebody else removes it too
            if not folder.exists():
                return None
        except OSError as error:  # network storage keeps what is open under other names
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY) or time.monotonic() > end:
                raise ResumableError(
                    f"{folder}: cannot be removed ({reason(error)}); processes of the run before "
                    f"may still use it. Wait for them to end, and run the same command again."
                ) from error
        time.sleep(0.5)


def _leave(partial: Partial, error: BaseException, say: Callable[[str], None]) -> None:
    """Keep what another run of the same merge can use, or nothing."""
    if partial.is_lost:
        return
    whole = len(list(partial.path.glob("*.safetensors")))
    spoilt = isinstance(error, LinesError) and not isinstance(error, ResumableError)
    if not (whole or partial.recall("moving")) or (partial.begun and spoilt):
        shutil.rmtree(partial.path, ignore_errors=True)
        if partial.begun and not isinstance(error, Exception):
            say(
                "stopped before a shard was whole; nothing is kept. Run the same command "
                "to begin anew; smaller shards (--out-shard-size) lose less"
            )
    elif partial.begun:
        say(f"stopped; {whole} whole shards are kept. Run the same command to go on")
