"""A fork server whose commands die, fail or change their inputs at a chosen moment.

A script (``python torture_child.py``, started by :class:`tests.e2e.torture.Torturer`). Like
:mod:`tests.e2e.runner`, beside which it lies, it imports nothing from ``tests``, so that only
the installed package counts.

A job is one line of JSON: that of ``runner.ForkServer``, its ``hooks`` (the name of a function
here and its arguments), and ``kill``: the ``signals`` that the parent sends ``seconds`` after so
many ``writes`` to shards have begun.
"""

from __future__ import annotations

import atexit
import errno
import functools
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runner

_RENAME, _UNLINK = os.rename, os.unlink
_SEEN: list[Any] = []


def wrap(names: tuple[str, ...], around: Callable[..., Any]) -> None:
    """Let ``around(name, call, arguments, keywords)`` do the calls of these names in os."""

    def replacement(name: str) -> Callable[..., Any]:
        call = getattr(os, name)  # perhaps wrapped already

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            return around(name, lambda: call(*arguments, **keywords), arguments)

        return wrapped

    for name in names:
        setattr(os, name, replacement(name))


def record(file: str, *names: str) -> None:
    """Write the calls of these names to a file, when the command ends: name, place, seconds."""
    start = time.monotonic()

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        place = arguments[0]
        if isinstance(place, int):
            place = Path(f"/proc/self/fd/{place}").readlink()
        _SEEN.append([name, Path(place).name, time.monotonic() - start])
        return call()

    wrap(names, around)
    atexit.register(lambda: Path(file).write_text(json.dumps(_SEEN), encoding="utf-8"))


def die(number: int, when: str, *names: str) -> None:
    """Be killed before or after the call of this number, from 0, among those of these names."""
    left = [number]

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        left[0] -= 1
        last = left[0] == -1
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    wrap(names, around)


def fail(number: int, *names: str) -> None:
    """Have a full disk from the call of this number on, from 0, among those of these names."""
    left = [number]

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()

    wrap(names, around)


def change(number: int, how: str, path: str, source: str = "", before: str = "preadv") -> None:
    """Change an input before the read (or other call) of this number, as another process would."""
    left = [number]

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        left[0] -= 1
        if left[0] == -1:
            _change(how, Path(path), source)
        return call()

    wrap((before,), around)


def _change(how: str, path: Path, source: str) -> None:
    if how == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "rewrite":
        path.write_bytes(Path(source).read_bytes())
    elif how == "replace":
        copy = path.with_name("copy.tmp")
        shutil.copy(source, copy)
        _RENAME(copy, path)
    elif how == "touch":
        os.utime(path)
    elif how == "remove":
        _UNLINK(path)


def fill(number: int, path: str, left: int) -> None:
    """Leave this much space on the disk of ``path``, from the write of this number on."""
    counted = [number]

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        counted[0] -= 1
        if counted[0] == -1:
            with Path(path).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(file.name).free - left)
        return call()

    wrap(("pwrite",), around)


def copying_fails() -> None:
    """Have a full disk whenever a file is copied."""

    def copy(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copy = copy


def small_files(size: int) -> None:
    """Let no file grow beyond this many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def slow(seconds: float) -> None:
    """Let every write to a shard take this much longer."""

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        time.sleep(seconds)
        return call()

    wrap(("pwrite",), around)


def pieces(entries: int) -> None:
    """Merge in pieces of this many entries."""
    from mergekit_lines.engine import pieces as merging

    merging.PIECE = entries


def kernels(setting: str) -> None:
    """Merge by the compiled kernels, or by torch's."""
    os.environ["MERGEKIT_LINES_KERNELS"] = setting


def shuffle(seed: int) -> None:
    """Merge the tensors in another order."""
    from mergekit_lines.engine.tasks import WriteTask
    from mergekit_lines.plan.planner import LinesPlanner

    plan_to_disk = LinesPlanner.plan_to_disk

    def shuffled(self: Any, out_path: str) -> list[Any]:
        tasks = plan_to_disk(self, out_path)
        writing = [task for task in tasks if isinstance(task, WriteTask)]
        random.Random(seed).shuffle(writing)
        again = [task.model_copy(update={"number": n}) for n, task in enumerate(writing)]
        self._run.engine.order(again)
        return again + [task for task in tasks if not isinstance(task, WriteTask)]

    LinesPlanner.plan_to_disk = shuffled


def announce(descriptor: int) -> None:
    """Tell the parent of every write to a shard, by one byte before it."""

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        os.write(descriptor, b"!")
        return call()

    wrap(("pwrite",), around)


HOOKS: dict[str, Callable[..., None]] = {
    hook.__name__: hook
    for hook in (
        record,
        die,
        fail,
        change,
        fill,
        copying_fails,
        small_files,
        slow,
        pieces,
        kernels,
        shuffle,
    )
}


def serve() -> None:
    """Answer every job on stdin with how its command ended."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    mains = runner.import_mains()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began, announcing = os.pipe()
        child = os.fork()
        if child == 0:
            runner._become(job, functools.partial(_tortured, job, announcing, mains))
        os.close(announcing)
        print(json.dumps(_watch(child, job, began)), file=answers, flush=True)
        os.close(began)


def _tortured(job: dict[str, Any], announcing: int, mains: Any, prog_name: str) -> None:
    if job.get("kill"):  # else nobody reads the pipe, which holds so many bytes and no more
        announce(announcing)
    for name, *arguments in job.get("hooks", ()):
        HOOKS[name](*arguments)
    mains[prog_name](prog_name=prog_name)


def _watch(child: int, job: dict[str, Any], began: int) -> dict[str, Any]:
    """Send a signal to a child if the job wants it, and wait for the child."""
    answer: dict[str, Any] = {"signalled": False}
    kill = job.get("kill")
    if kill:
        _wait_for_writes(began, kill["writes"], job["timeout"])
        time.sleep(kill["seconds"])
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {**answer, "returncode": os.waitstatus_to_exitcode(status)}
        for number in kill["signals"]:
            os.kill(child, number)
        answer["signalled"] = True
    return {**answer, "returncode": runner._wait(child, job["timeout"])}


def _wait_for_writes(began: int, writes: int, timeout: float) -> None:
    """Return when a child has begun so many writes, or is gone: then the pipe ends."""
    while writes and select.select([began], [], [], timeout)[0]:
        announced = len(os.read(began, writes))
        if not announced:
            return
        writes -= announced


if __name__ == "__main__":
    serve()
