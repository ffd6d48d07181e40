"""What a measurement has so far: told while it goes on, to whoever may give it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate.metric import Metric

Listener = Callable[[Mapping[str, Metric]], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


class PrunedError(LinesError):
    """A measurement that its listener has ended: what it had so far was too little."""


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Let evaluators tell a listener what they have so far; it may raise to end them."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def is_heard() -> bool:
    """Whether anybody listens."""
    return _LISTENER.get() is not None


def so_far(metrics: Mapping[str, Metric]) -> None:
    """Tell what an evaluator has so far.

    Args:
        metrics: by name, of a part of the data, the same part for every model.

    Raises:
        PrunedError: that is enough.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(metrics)
