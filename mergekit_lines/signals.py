"""How the process of a merge ends: at once, and on SIGTERM as tidily as on Ctrl-C."""

from __future__ import annotations

import atexit
import functools
import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@functools.cache
def end_at_once() -> None:
    """Spare the process Python's last search for cycles in its modules, more than a second."""
    atexit.register(gc.freeze)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block by an exception, unless the program has a handler of its own."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as a shell tells it
