"""What a merge method allocates for one tensor, asked of the method itself.

The real task merges made-up tensors of two small sizes under torch's allocation log. Between
the two each allocation lies on a line, which is extended to the real size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods.base import TensorMetadata
from torch.autograd import profiler_legacy

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.lines.alpha import NormCollector
from mergekit_lines.methods.registry import registered
from mergekit_lines.methods.spectral import SpectralMethod, is_matrix, temporaries
from mergekit_lines.plan.sizes import Sized

SIZES = (2**18, 2**19)  # entries of the made-up tensors
NORM_PIECE = 2**18  # of whole tensors, entries whose norms are summed at a time, in float64

Log = list[int]  # bytes of every allocation, and of every release as a negative number


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
