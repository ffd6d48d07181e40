"""How much memory a merge needs, told before it begins.

A merge's anonymous memory is what the imported packages hold, and what the engine holds of the
tensor that is being merged: a few pieces on every thread; or, where the wrapped method has no
kernel, the tensor of every model and what the method allocates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from mergekit_lines.allocations import Allocations, peak
from mergekit_lines.engine import kernel_of
from mergekit_lines.findings import Memory
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.merging import MEMORY, PIECE, TEMPORARIES
from mergekit_lines.sizes import Sized
from mergekit_lines.workers import available_cores

STATUS = Path("/proc/self/status")
# Of a tensor's magnitudes, those that a selection gathers near its threshold.
CANDIDATES = 0.05


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
    most = working_bytes(tensors, calibrated, options.num_threads or available_cores())
    total = None if process is None else process + max(most, loaded)
    return Memory(process, most, loaded, total, str(options.device or "cpu"))


def working_bytes(
    tensors: Sequence[Sized], calibrated: Set[str], threads: int, size: int = PIECE
) -> int:
    """Return what merging one tensor takes at most, beside where its result goes.

    Args:
        tensors: all output tensors.
        calibrated: names of those that Eq. 2 is computed from before, by their weights.
        threads: that share the pieces of a tensor.
        size: entries of a piece.
    """
    allocations = Allocations()
    most = 0
    for tensor in tensors:
        with tensor.item.task.failures({}):
            merge = kernel_of(tensor.item.task, tensor.inputs)
        if merge is not None and tensor.entries:
            most = max(most, tensor.held + _pieces(tensor, merge, threads, size))
            continue
        logs = [allocations.of(tensor)]
        if tensor.item.weight.name in calibrated:
            logs.append(allocations.of(tensor, calibrating=True))
        most = max(most, tensor.held + tensor.read_bytes + max(map(peak, logs)))
    return most


def _pieces(tensor: Sized, merge: Merge, threads: int, most: int) -> int:
    """Return what the threads hold while a tensor goes through memory in pieces."""
    width = max(work_dtype(dtype).itemsize for dtype in tensor.inputs.values())
    size = min(most, tensor.entries) if merge.supports(tensor.shape) else tensor.entries
    piece = width * size * (len(tensor.inputs) - 1 + TEMPORARIES)
    count = min(threads, math.ceil(tensor.entries / size), max(1, MEMORY // piece))
    selected = sum(sparsity.ranks(tensor.entries) is not None for sparsity in merge.sparsities)
    candidates = int(CANDIDATES * tensor.entries) * selected
    return count * piece + width * candidates
