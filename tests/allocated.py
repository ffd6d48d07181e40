"""What torch allocates on the CPU while something runs, by its own log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd import profiler_legacy


def allocated(action: Callable[[], object]) -> int:
    """Return the most bytes that torch holds while an action runs, beside those from before."""
    legacy: Any = profiler_legacy
    legacy.profile(profile_memory=True).__enter__()
    try:
        action()
    finally:
        threads = legacy._disable_profiler_legacy()
    held = most = 0
    for event in (event for thread in threads for event in thread):
        if event.kind() == "memory_alloc":
            held += event.cpu_memory_usage()
            most = max(most, held)
    return most
