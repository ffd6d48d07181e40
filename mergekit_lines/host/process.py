"""How the process of a merge behaves: threads, signals, silence."""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
import torch

from mergekit_lines.errors import visible


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shared_threads(workers: int) -> int:
    """Return the threads of each of the workers that share this machine's cores."""
    return max(1, available_cores() // workers)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU kernels on one thread: sums then have one order, so one result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


@contextmanager
def ended_by_the_next_interrupt() -> Iterator[None]:
    """After Ctrl-C in a command, let another one end the process by the signal itself.

    What is left then is Python's own end, a second or so: an interrupt there is a traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        main = threading.current_thread() is threading.main_thread()
        command = click.get_current_context(silent=True) is not None
        if main and command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise


class Terminated(SystemExit):
    """The end of the process, as a signal asked for it: no exit of somebody's code."""


def _exit(number: int, _frame: FrameType | None) -> None:
    raise Terminated(128 + number)  # as a shell tells it


@contextmanager
def visible_logs() -> Iterator[None]:
    """Write out in the log what a terminal would obey: others log names as files have them."""

    def escape(record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = visible(text, keep="\n")
        return True

    # What is logged by a child of these passes their handlers, and not their own filters.
    handlers = [*logging.root.handlers, *logging.getLogger("transformers").handlers]
    for handler in handlers:
        handler.addFilter(escape)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(escape)


@contextmanager
def silent() -> Iterator[None]:
    """Suppress warnings in the log: what mergekit and transformers warn of is not the matter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
