"""How much memory a merge needs, told before it begins.

A merge's anonymous memory is what the imported packages hold, and what the engine holds of the
tensor that is being merged: a few pieces on every thread; or, where the wrapped method has no
kernel, the tensor of every model and what the method allocates. Inputs that mergekit has to
align, fuse or unpickle are whole too.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergekit_lines.engine.engine import DEVICE_THREADS
from mergekit_lines.engine.pieces import cut, held_at_once
from mergekit_lines.host.process import available_cores
from mergekit_lines.kernels.floors import BINS
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.plan.allocations import Allocations, peak
from mergekit_lines.plan.sizes import Sized, Sizes

COUNTING = 3  # of the counters of `trim: model`, those that one model's sum takes besides
STATUS = Path("/proc/self/status")


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
    for tensor in sizes.tensors:
        with tensor.item.task.failures({}):
            merge = tensor.item.task.kernel(tensor.inputs)
        if merge is not None and tensor.entries:
            whole = max(whole, peak(tensor.temporaries))
            pieces = max(pieces, _pieces(tensor, merge, device, threads))
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


def _pieces(tensor: Sized, merge: Kernel, device: torch.device, threads: int | None) -> int:
    """Return what the threads hold while a tensor goes through memory in pieces."""
    width = max(work_dtype(dtype).itemsize for dtype in tensor.inputs.values())
    bounds = cut(tensor.shape, merge, device)
    held, at_once = held_at_once(bounds, width, len(tensor.inputs) - 1, device)
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
    """

    process: int | None
    tensor: int
    loaded: int
    total: int | None
    device: str
