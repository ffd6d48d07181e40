"""Task vectors of wrapped merges, kept from one setting of the coefficients to the next.

TIES, DARE and their like take seconds for what LiNeS then only scales: M(θ…) − θ_0 does not
hang on α, β or the schedule. It is kept as it was computed, so that the scaled result is the
same to the bit.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mergekit_lines.checkpoint.runs import read_run, write_run
from mergekit_lines.checkpoint.sources import HeldTensor, Source
from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.errors import FullDiskError, LinesError

# What scales a task vector, tells where, or does not touch it; all else may change M.
_SCALING = {"alpha", "beta", "schedule", "outside", "blocks", "num_blocks", "norm"}


def wrapped_key(task: LinesTask) -> str:
    """Return what M(θ…) − θ_0 of a tensor hangs on, beside the models' weights."""
    values = {name: v for name, v in task.parameters.items() if name not in _SCALING}
    own = {str(m): sorted(dict(v.items()).items()) for m, v in task.input_parameters.items()}
    models = [str(model) for model in task.model_order]
    drawn = task.seed, task.base_listed
    parameters = sorted(values.items()), sorted(own.items())
    return repr((task.method_name, task.dtype, models, drawn, parameters))


@dataclass(frozen=True)
class OnDisk:
    """A contiguous tensor in a file of its own, which holds nothing else."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        """See :class:`~mergekit_lines.checkpoint.sources.Source`."""
        with self.path.open("rb", buffering=0) as file:
            if read_run(file.fileno(), start * self.dtype.itemsize, into):
                raise LinesError(f"{self.path}: was cut by another program. Start again.")

    def write(self, start: int, piece: torch.Tensor) -> None:
        """Store entries from ``start`` on."""
        with self.path.open("r+b", buffering=0) as file:
            write_run(file.fileno(), start * self.dtype.itemsize, piece.contiguous())


@dataclass(eq=False)
class VectorSink:
    """Takes one task vector, piece by piece and from several threads."""

    name: str
    key: str
    storage: HeldTensor | OnDisk
    written: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def write(self, start: int, piece: torch.Tensor) -> None:
        """Take the entries from ``start`` on: a 1-D tensor in the dtype of the arithmetic."""
        if isinstance(self.storage, HeldTensor):
            self.storage.held.view(-1)[start : start + len(piece)].copy_(piece)
        else:
            self.storage.write(start, piece.cpu())
        with self._counting:
            self.written += piece.numel()

    @property
    def whole(self) -> bool:
        """Whether every entry was written."""
        return self.written == math.prod(self.storage.shape)


class TaskVectors:
    """The kept task vectors: in memory up to a budget, on disk beyond it.

    Args:
        budget: bytes of memory.
        folder: where the others go.
    """

    def __init__(self, budget: int, folder: Path) -> None:
        self._left, self._folder = budget, folder
        self._files = itertools.count()
        self._kept: dict[str, VectorSink] = {}

    def find(self, task: LinesTask) -> Source | None:
        """Return a tensor's task vector, if it was kept for the same wrapped merge."""
        sink = self._kept.get(task.output_weight.name)
        return sink.storage if sink is not None and sink.key == wrapped_key(task) else None

    def sink(self, task: LinesTask, shape: tuple[int, ...], dtype: torch.dtype) -> VectorSink:
        """Return where a task vector may be written to; what was kept of the tensor is dropped.

        Args:
            task: the tensor's.
            shape: of the tensor.
            dtype: of the arithmetic.

        Raises:
            LinesError: the disk is full.
        """
        name = task.output_weight.name
        old = self._kept.pop(name, None)
        if old is not None and (old.storage.shape, old.storage.dtype) == (shape, dtype):
            return VectorSink(name, wrapped_key(task), old.storage)
        if old is not None:
            self.drop(old)
        size = math.prod(shape) * dtype.itemsize
        storage: HeldTensor | OnDisk
        if size <= self._left:
            self._left -= size
            storage = HeldTensor(torch.empty(shape, dtype=dtype))
        else:
            storage = OnDisk(self._folder / f"{next(self._files)}.tau", shape, dtype)
            reserve(storage.path, size)
        return VectorSink(name, wrapped_key(task), storage)

    def keep(self, sink: VectorSink) -> None:
        """Keep a task vector, if the wrapped method gave the whole of it away."""
        if sink.whole:
            self._kept[sink.name] = sink
        else:
            self.drop(sink)

    def drop(self, sink: VectorSink) -> None:
        """Give back the storage of a task vector that was not written as a whole."""
        if isinstance(sink.storage, OnDisk):
            sink.storage.path.unlink()
        else:
            self._left += sink.storage.held.nbytes


def reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes, all of which the disk has.

    Raises:
        LinesError: the disk is full.
    """
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            path.unlink()
            if error.errno != errno.ENOSPC:
                raise
            raise FullDiskError(
                f"{path.parent}: the disk is full, and {size:,} bytes more were to be kept there. "
                f"Free some space, give an offload_folder on another disk, or raise the memory "
                f"budget or max_memory."
            ) from error
