"""How much memory a merge needs, told before it begins.

A merge's anonymous memory is, at any moment, the sum of three parts: what the imported
packages hold; the output that mergekit's writer keeps until a shard is full; and what the
method allocates for the tensor being merged (weights are mapped from their files, which is no
anonymous memory). The second and third are followed through mergekit's order of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from mergekit_lines.allocations import Allocations, Log
from mergekit_lines.findings import Memory
from mergekit_lines.sizes import Sized

STATUS = Path("/proc/self/status")
# glibc maps larger blocks by themselves, and gives them back at once.
HEAP = 32 * 2**20


def process_bytes() -> int | None:
    """Return this process's anonymous resident memory, or None where there is no ``/proc``."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else None


def estimate(
    tensors: Sequence[Sized],
    calibrated: Set[str],
    process: int | None,
    options: Any,
    loaded: int = 0,
) -> Memory:
    """Return the peak of a run.

    Args:
        tensors: all output tensors.
        calibrated: names of those that Eq. 2 is computed from before, by their weights.
        process: what the process holds before the first tensor.
        options: mergekit's flags.
        loaded: bytes that merging an adapter into its base makes anew, before the merge.
    """
    device = str(options.device or "cpu")
    allocations, heap = Allocations(), _Heap()
    ordered = sorted(tensors, key=lambda tensor: tensor.label)
    for tensor in ordered:
        if tensor.item.weight.name in calibrated:
            heap.run(allocations.of(tensor, calibrating=True))
    written = 0
    for tensor in ordered:
        heap.run(allocations.of(tensor))
        if written and written + tensor.bytes > options.out_shard_size:
            heap.flush(waiting=options.async_write)
            written = 0
        heap.keep(tensor.bytes + _holes(tensor))
        written += tensor.bytes
        heap.run([tensor.bytes] if options.clone_tensors else [])
    buffered, temporaries = heap.peak
    here = buffered if device != "cpu" else buffered + temporaries
    total = None if process is None else process + max(here, loaded)
    return Memory(process, buffered, temporaries, loaded, total, device)


def _holes(tensor: Sized) -> int:
    """Return what the heap loses around a result that is kept there, half of it on average.

    A rounded result lies in a block that was made for the wider dtype of the arithmetic; what
    is left of the block fits other tensors sometimes.
    """
    if tensor.bytes >= HEAP or not tensor.dtype.is_floating_point:
        return 0
    wide = max(4, *(dtype.itemsize for dtype in tensor.inputs.values()))
    return max(0, tensor.entries * wide - tensor.bytes) // 2


class _Heap:
    """glibc's memory: small blocks share a heap that does not shrink, large ones come and go."""

    def __init__(self) -> None:
        self.peak = (0, 0)  # of what is kept for the writer, and of all else
        self._small = 0  # kept
        self._large = 0  # kept
        self._waiting = 0  # of a shard that is being written
        self._size = 0  # of the heap

    def run(self, log: Log) -> None:
        """Go through one tensor's allocations."""
        small, large = self._small, self._large + self._waiting
        kept = small + large
        for size in [0, *log]:
            if abs(size) < HEAP:
                small += size
            else:
                large += size
            self._size = max(self._size, small)
            if large + self._size > sum(self.peak):
                self.peak = (kept, large + self._size - kept)

    def keep(self, size: int) -> None:
        """Keep a result until it is written."""
        if size < HEAP:
            self._small += size
        else:
            self._large += size

    def flush(self, *, waiting: bool) -> None:
        """Write what is kept; ``waiting`` keeps it until the next time."""
        self._waiting = self._small + self._large if waiting else 0
        self._small = self._large = 0
