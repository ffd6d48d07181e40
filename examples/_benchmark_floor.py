"""The benchmark's floor and its surroundings: plain copying, the page cache, a busy neighbour."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PIECE = 1 << 20  # bytes; those of one thread stay in its core's cache

# Ends by itself when the benchmark is gone, however that came about.
_BUSY = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_memory() -> int | None:
    """Return the bytes that files may take in the page cache; None where nothing tells."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()}
    return found.get("MemAvailable")


def warm(files: list[Path]) -> None:
    """Read files whole once; the page cache holds them after that."""
    held = bytearray(8 * PIECE)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(held):
                pass


@contextmanager
def neighbour() -> Iterator[None]:
    """Keep one core busy with another process."""
    command = [sys.executable, "-c", _BUSY, str(cores()[0])]
    busy = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        if busy.stdout is None or not busy.stdout.readline():
            raise OSError("the busy neighbour did not start")
        yield
    finally:
        busy.kill()
        busy.wait()
        if busy.stdout is not None:
            busy.stdout.close()


def copy(models: list[list[Path]], adapters: list[Path], out: Path, threads: int) -> dict[str, Any]:
    """Read every model's shards by preadv, write one's bytes by pwrite, fsync; time it.

    Args:
        models: each model's shards; those in the same place are of the same size.
        adapters: files that are read alone.
        out: the folder to make.
        threads: how many share the pieces.
    """
    out.mkdir()
    start = time.perf_counter()
    warm(adapters)
    with ExitStack() as stack:
        targets, pieces = [], []
        for place, files in enumerate(zip(*models, strict=True)):
            sources = [os.open(file, os.O_RDONLY) for file in files]
            target = os.open(out / files[0].name, os.O_WRONLY | os.O_CREAT, 0o644)
            targets.append((sources, target))
            for descriptor in (*sources, target):
                stack.callback(os.close, descriptor)
            size = os.fstat(sources[0]).st_size
            pieces += [(place, at, min(PIECE, size - at)) for at in range(0, size, PIECE)]
        waiting = iter(pieces)  # its next() is atomic

        def work() -> None:
            held = memoryview(bytearray(PIECE))
            for place, at, size in waiting:
                sources, target = targets[place]
                for source in sources:
                    _read(source, held[:size], at)
                _write(target, held[:size], at)

        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(work) for _ in range(threads)]:
                future.result()
        copied = time.perf_counter()
        for _, target in targets:
            os.fsync(target)
    ended = time.perf_counter()
    written = sum(size for _, _, size in pieces)
    return {
        "threads": threads,
        "wall": ended - start,
        "fsync": ended - copied,
        "bytes_read": written * len(models) + sum(path.stat().st_size for path in adapters),
        "bytes_written": written,
    }


def _read(source: int, into: memoryview, at: int) -> None:
    while into:
        count = os.preadv(source, [into], at)
        if not count:
            raise OSError("a checkpoint was cut while it was read")
        into, at = into[count:], at + count


def _write(target: int, piece: memoryview, at: int) -> None:
    while piece:
        count = os.pwrite(target, piece, at)
        piece, at = piece[count:], at + count
