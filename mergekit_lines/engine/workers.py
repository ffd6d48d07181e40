"""Threads for pieces of a tensor: one torch thread each, results in the order of the pieces."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from mergekit_lines.host.process import available_cores
from mergekit_lines.kernels.compiled.library import Library

T = TypeVar("T")


class Workers:
    """A few threads that share the pieces of one tensor among them.

    torch's own pool is left alone: every operation runs on the thread that calls it, so that
    a busy neighbour slows one worker and not all, and sums have one order.

    Args:
        threads: how many; the cores that this process may use where it is None.

    Attributes:
        library: the compiled kernels that they may use, or None.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_cores()
        self.library: Library | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._buffers = threading.local()

    def map(self, function: Callable[[int], T], count: int, at_once: int | None = None) -> list[T]:
        """Return ``function(i)`` for i in [0, count), in this order.

        At most ``at_once`` threads work where it is given. The first failure, or Ctrl-C,
        stops the others at their next piece and is raised.
        """
        if self.threads == 1:
            return [function(index) for index in range(count)]
        results: dict[int, T] = {}
        indexes = iter(range(count))  # its next() is atomic
        stop = threading.Event()

        def work() -> None:
            for index in indexes:
                if stop.is_set():
                    return
                results[index] = function(index)

        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self.threads, initializer=torch.set_num_threads, initargs=(1,)
            )
        futures = [
            self._pool.submit(work) for _ in range(min(self.threads, count, at_once or count))
        ]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stop.set()
            wait(futures)
        return [results[index] for index in range(count)]

    def buffer(
        self, name: str, size: int, dtype: torch.dtype, *, pinned: bool = False
    ) -> torch.Tensor:
        """Return ``size`` uninitialised entries, kept for this thread's next call of that name."""
        held: dict[str, torch.Tensor] = self._buffers.__dict__
        buffer = held.get(name)
        # `len` of a tensor takes ten times as long, and this is called for every piece.
        if buffer is None or buffer.dtype != dtype or buffer.numel() < size:
            buffer = held[name] = torch.empty(size, dtype=dtype, pin_memory=pinned)
        return buffer if buffer.numel() == size else buffer[:size]

    def close(self) -> None:
        """End the threads and give their memory back."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._buffers = threading.local()
