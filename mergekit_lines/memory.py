"""How much memory a merge needs, told before it begins.

A merge's anonymous memory is, at any moment, the sum of three parts: what the imported
packages and the plan hold; the output that mergekit's writer keeps until a shard is full; and
the temporaries of the tensor being merged (weights are mapped from their files, which is no
anonymous memory). The second is followed through mergekit's order of tensors. The third
is asked of the method itself: its real task merges small made-up tensors of two sizes under
torch's allocation log, and the line through both peaks is extended to the real sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from torch.autograd import profiler_legacy

from mergekit_lines.alpha import NormCollector
from mergekit_lines.findings import Memory
from mergekit_lines.sizes import Sized
from mergekit_lines.tasks import LinesTask, NormTask

SIZES = (2**18, 2**19)  # entries of the made-up tensors
STATUS = Path("/proc/self/status")


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
        loaded: bytes of the largest model that is loaded whole, to merge an adapter into.
    """
    device = str(options.device or "cpu")
    lines = _Lines()
    ordered = sorted(tensors, key=lambda tensor: tensor.label)
    best = (0, 0)
    for tensor in ordered:
        if tensor.item.weight.name in calibrated:
            best = max(best, (0, lines.at(tensor, calibrating=True)), key=sum)
    held = waiting = 0
    for tensor in ordered:
        best = max(best, (waiting + held, lines.at(tensor)), key=sum)
        if held and held + tensor.bytes > options.out_shard_size:
            waiting = held if options.async_write else 0
            held = 0
        held += tensor.bytes
        cloned = tensor.bytes if options.clone_tensors else 0
        best = max(best, (waiting + held, cloned), key=sum)
    buffered, temporaries = best
    here = buffered if device != "cpu" else buffered + temporaries
    total = None if process is None else process + max(here, loaded)
    return Memory(process, buffered, temporaries, loaded, total, device)


class _Lines:
    """Peak temporaries of a tensor by its size, one line for all tensors merged alike."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[float, float]] = {}

    def at(self, tensor: Sized, *, calibrating: bool = False) -> int:
        """Return the temporaries of one tensor, in bytes."""
        if not tensor.entries or not tensor.dtype.is_floating_point:
            return 0
        key = (*_alike(tensor), calibrating)
        if key not in self._known:
            self._known[key] = _measure(tensor, calibrating=calibrating)
        fixed, slope = self._known[key]
        # Aligning a vocabulary copies every input into the widest dtype.
        widest = max(dtype.itemsize for dtype in tensor.inputs.values())
        copies = widest * tensor.entries * len(tensor.inputs) if tensor.aligned else 0
        return copies + int(fixed + slope * tensor.entries)


def _alike(tensor: Sized) -> tuple[Any, ...]:
    """Tell by what two tensors are merged in the same way, whatever their size."""
    task = tensor.item.task
    values = [dict(task.parameters.items())]
    values += [dict(given.items()) for given in task.input_parameters.values()]
    words = {"alpha", "beta", "gamma", "outside", "schedule", "coefficient"} & set(
        tensor.item.values
    )
    kinds = tuple(
        (name, (value > 0) + (value >= 1) if isinstance(value, float) else str(value))
        for given in values
        for name, value in sorted(given.items())
        if name not in words
    )
    inputs = tuple(tensor.inputs.items())
    return (task.method_name, task.dtype, task.out_dtype, inputs, kinds, len(tensor.shape) > 1)


def _measure(tensor: Sized, *, calibrating: bool) -> tuple[float, float]:
    """Return the line through the peaks of two small tensors: bytes, and bytes per entry."""
    values: dict[str, Any] = {"coefficient": 0.5, "seed": 0}
    kind: type[LinesTask] = LinesTask
    if calibrating:
        power = 1 if tensor.item.values["norm"] == "l1" else 2
        values["collector"] = NormCollector(power)
        kind = NormTask
    task = tensor.item.task.with_values(values, kind)
    points = []
    for size in SIZES:
        shape = _shrunk(tensor.shape, size)
        generator = torch.Generator().manual_seed(0)
        tensors = {
            model: torch.randn(shape, generator=generator).to(dtype)
            for model, dtype in tensor.inputs.items()
        }
        points.append((math.prod(shape), _peak(task, tensors)))
        if math.prod(shape) == tensor.entries:
            return float(points[-1][1]), 0.0
    (n, low), (m, high) = points
    slope = max(0.0, (high - low) / (m - n)) if m > n else low / n
    return max(0.0, low - slope * n), slope


def _shrunk(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return a like shape of about ``size`` entries: fewer rows, then fewer columns."""
    if math.prod(shape) <= size:
        return shape
    if len(shape) == 1:
        return (size,)
    row = math.prod(shape[1:])
    if row <= size // 8:
        return (size // row, *shape[1:])
    return (8, size // 8)


def _peak(task: LinesTask, tensors: dict[ModelReference, torch.Tensor]) -> int:
    """Return the most bytes that torch held at once for a task, its result included."""
    task.execute(tensors)  # what is made once and kept is no temporary
    legacy: Any = profiler_legacy  # of torch's two logs the one that starts in no time
    legacy.profile(profile_memory=True).__enter__()
    try:
        result = task.execute(tensors)
    finally:
        threads = legacy._disable_profiler_legacy()
    del result
    held = peak = 0
    for events in threads:
        for event in events:
            if event.kind() == "memory_alloc":
                held += event.cpu_memory_usage()
                peak = max(peak, held)
    return peak
