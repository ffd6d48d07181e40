"""How much memory a merge needs, told before it begins.

A merge's anonymous memory is what the imported packages hold, and what the engine holds of the
tensor that is being merged: a few pieces on every thread; or, where the wrapped method has no
kernel, the tensor of every model and what the method allocates. Inputs that mergekit has to
align, fuse or unpickle are whole too.

What a method allocates for one tensor is asked of the method itself: the real task merges made-up
tensors of two small sizes under torch's allocation log. Between the two each allocation lies on a
line, which is extended to the real size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods.base import TensorMetadata
from torch.autograd import profiler_legacy

from mergekit_lines.engine.engine import DEVICE_THREADS
from mergekit_lines.engine.pieces import cut, held_at_once, searches
from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.host.process import available_cores
from mergekit_lines.kernels.compiled.loading import worth_while
from mergekit_lines.kernels.floors import BINS
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.lines.alpha import NormCollector
from mergekit_lines.methods.registry import registered
from mergekit_lines.methods.spectral import SpectralMethod, is_matrix, temporaries
from mergekit_lines.plan.sizes import Sized, Sizes

COUNTING = 3  # of the counters of `trim: model`, those that one model's sum takes besides
STATUS = Path("/proc/self/status")
SIZES = (2**18, 2**19)  # entries of the made-up tensors
NORM_PIECE = 2**18  # of whole tensors, entries whose norms are summed at a time, in float64

Log = list[int]  # bytes of every allocation, and of every release as a negative number


def process_bytes() -> int | None:
    """Return this process's anonymous resident memory, or None where there is no ``/proc``."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(sizes[0]) * 1024 if sizes else None


def estimate(
    sizes: Sizes,
    calibrated: Set[str],
    process: int | None,
    options: Any,
    loaded: int = 0,
) -> Memory:
    """Return the peak of a run.

    Args:
        sizes: of all output tensors.
        calibrated: names of those that Eq. 2 is computed from before, by their weights.
        process: what the process holds before the first tensor.
        options: mergekit's flags.
        loaded: bytes that merging an adapter into its base makes anew, before the merge.
    """
    device = _device(options.device or "cpu")
    most = working_bytes(sizes, calibrated, device, options.num_threads)
    total = None if process is None else process + max(most, loaded)
    return Memory(process, most, loaded, total, str(device))


def working_bytes(
    sizes: Sizes, calibrated: Set[str], device: torch.device, threads: int | None
) -> int:
    """Return what merging one tensor takes at most, beside where its result goes.

    Args:
        sizes: of all output tensors.
        calibrated: names of those that Eq. 2 is computed from before, by their weights.
        device: where the arithmetic is done; only its kind counts, and it need not be there.
        threads: that share the pieces of a tensor on a CPU; None for one per core.
    """
    allocations = Allocations()
    whole = pieces = 0
    compiled = worth_while(sum(tensor.entries for tensor in sizes.tensors))
    for tensor in sizes.tensors:
        with tensor.item.task.failures({}):
            merge = tensor.item.task.kernel(tensor.inputs)
        if merge is not None and tensor.entries:
            whole = max(whole, peak(tensor.temporaries))
            pieces = max(pieces, _pieces(tensor, merge, device, threads, compiled=compiled))
            continue
        logs = [allocations.of(tensor)]
        if tensor.item.weight.name in calibrated:
            logs.append(allocations.of(tensor, calibrating=True))
        whole = max(whole, *(peak([*tensor.temporaries, tensor.whole, *log]) for log in logs))
    cut = [one for one in sizes.tensors if one.item.cut]
    models = max((len(tensor.inputs) - 1 for tensor in cut), default=0)
    counters = (models + COUNTING) * 8 * BINS if models else 0
    # What pieces were in is kept for the next ones: it comes on top of what is whole by then.
    return sizes.unpickled() + whole + pieces + counters


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:  # the recipe's check refuses it
        return torch.device("cpu")


def _pieces(
    tensor: Sized, merge: Kernel, device: torch.device, threads: int | None, *, compiled: bool
) -> int:
    """Return what the threads hold while a tensor goes through memory in pieces."""
    width = max(work_dtype(dtype).itemsize for dtype in tensor.inputs.values())
    bounds = cut(tensor.shape, merge, device)
    gathers = compiled and device.type == "cpu" and width == torch.float32.itemsize
    places = len(tensor.inputs) - 1 + (searches(merge, tensor.entries) if gathers else 0)
    held, at_once = held_at_once(bounds, width, places, device)
    threads = (threads or available_cores()) if device.type == "cpu" else DEVICE_THREADS
    count = min(threads, len(bounds), at_once)
    return count * held + merge.beside(tensor.shape, width)


@dataclass(frozen=True)
class Memory:
    """Peak anonymous memory of a run in bytes, and what it is made of.

    Args:
        process: the imported packages and the plan; None where the system does not tell.
        tensor: what is held of the tensor that takes most: its pieces on every thread, and its
            inputs and the method's own temporaries where it cannot be merged in pieces. On an
            accelerator the temporaries are there, and are counted all the same.
        loaded: what peft makes anew in merging an adapter into its base, before the merge.
        total: the peak; None where ``process`` is.
        device: where the arithmetic is done.
        workers: processes that hold as much each, beside the command, which merges nothing then;
            1 is the command itself.
    """

    process: int | None
    tensor: int
    loaded: int
    total: int | None
    device: str
    workers: int = 1


class Allocations:
    """The allocations of every tensor of a plan; tensors merged alike are measured once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[tuple[int, Log], ...]] = {}

    def of(self, tensor: Sized, *, calibrating: bool = False) -> Log:
        """Return what happens while one tensor is merged; its result is not released.

        Raises:
            LinesError: the method refuses made-up weights.
        """
        if not tensor.entries or not tensor.dtype.is_floating_point:
            return []
        wrapped = registered(tensor.item.task.method_name).wrapped
        if isinstance(wrapped, SpectralMethod) and is_matrix(
            TensorMetadata.from_weight_info(tensor.item.weight), tensor.shape
        ):  # grows with the square of a side, not with both
            return [_casts(tensor) + _of_singular_vectors(tensor)]
        key = (*_alike(tensor), calibrating)
        if key not in self._known:
            self._known[key] = _measure(tensor, calibrating=calibrating)
        (n, low), (m, high) = self._known[key]
        if len(low) != len(high):  # work in pieces: more of them for more entries
            low, high = [peak(low)], [peak(high)]
        share = (tensor.entries - n) / (m - n) if m > n else 0.0
        return [int(a + (b - a) * share) for a, b in zip(low, high, strict=True)]


def peak(log: Sequence[int]) -> int:
    """Return the most bytes that were held at once."""
    held = most = 0
    for size in log:
        held += size
        most = max(most, held)
    return most


def _of_singular_vectors(tensor: Sized) -> int:
    """Return what a merge by singular vectors, or its norms for Eq. 2, allocates in its dtype."""
    width = max(work_dtype(dtype).itemsize for dtype in tensor.inputs.values())
    merging = temporaries(tensor.shape, len(tensor.inputs) - 1, width)
    return merging + 3 * 8 * min(tensor.entries, NORM_PIECE)


def _casts(tensor: Sized) -> int:
    """Return the bytes of all inputs in the recipe's dtype and in the arithmetic's, if others."""
    own = tensor.item.task.input_dtype()
    total = 0
    for stored in tensor.inputs.values():
        cast = own or stored
        dtypes = {cast, work_dtype(cast)} - {stored}
        total += sum(dtype.itemsize for dtype in dtypes) * tensor.entries
    return total


def _alike(tensor: Sized) -> tuple[Any, ...]:
    """Tell by what two tensors are merged in the same way, whatever their size."""
    task = tensor.item.task
    values = [dict(task.parameters.items())]
    values += [dict(own.items()) for own in task.input_parameters.values()]
    words = {"alpha", "beta", "outside", "schedule"}
    if not tensor.item.wrap:
        words.add("gamma")  # else it is the wrapped method's own
    kinds = tuple(
        (name, (value > 0) + (value >= 1) if isinstance(value, float) else str(value))
        for own in values
        for name, value in sorted(own.items())
        if name not in words
    )
    inputs = tuple(tensor.inputs.items())
    return (task.method_name, task.dtype, task.out_dtype, inputs, kinds, len(tensor.shape) > 1)


def _measure(tensor: Sized, *, calibrating: bool) -> tuple[tuple[int, Log], ...]:
    """Return the logs of two small tensors, each with its number of entries."""
    task = tensor.item.task.model_copy(update={"coefficient": 0.5})
    collector = NormCollector(1 if tensor.item.norm == "l1" else 2) if calibrating else None
    points = []
    for size in SIZES:
        shape = _shrunk(tensor.shape, size)
        generator = torch.Generator().manual_seed(0)
        tensors = {
            model: torch.randn(shape, generator=generator).to(dtype)
            for model, dtype in tensor.inputs.items()
        }
        points.append((math.prod(shape), _log(task, tensors, collector)))
    return tuple(points)


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


def _log(
    task: LinesTask, tensors: dict[ModelReference, torch.Tensor], collector: NormCollector | None
) -> Log:
    task.merge_whole(tensors, collector=collector)  # what is made once and kept is no temporary
    legacy: Any = profiler_legacy  # of torch's two logs the one that starts in no time
    legacy.profile(profile_memory=True).__enter__()
    try:
        result = task.merge_whole(tensors, collector=collector)
    finally:
        threads = legacy._disable_profiler_legacy()
    del result
    events = [event for thread in threads for event in thread]
    return [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]
