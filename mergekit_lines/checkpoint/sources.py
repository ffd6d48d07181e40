"""Input tensors, read in runs of entries: from a shard, or from memory."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mergekit_lines.checkpoint.bounded import check_regular
from mergekit_lines.checkpoint.runs import read_run
from mergekit_lines.checkpoint.stand_ins import pointer_problem
from mergekit_lines.errors import LinesError, ResumableError, TextError, reason

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}

HEADER = 100_000_000  # bytes of a header at most, as safetensors itself has it
ROOM = 64  # files that are open at once beside the shards
_SCRATCH = threading.local()  # what a thread read last, before its conversion: key and bytes


class Source(Protocol):
    """One input tensor that need not be in memory; several threads may read it at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the tensor is stored, or computed."""

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        """Fill ``into`` with the entries [start, stop) in C order.

        Args:
            start: the first entry.
            stop: behind the last one.
            into: a contiguous 1-D CPU tensor of stop − start entries, fp32, float64 or of the
                source's own dtype.

        Raises:
            LinesError: the file is shorter than its header says, or cannot be read.
        """


def whole(source: Source) -> torch.Tensor:
    """Return the whole tensor of a source, in its own dtype."""
    if isinstance(source, (ShardTensor, HeldTensor)):
        return source.tensor()
    result = torch.empty(source.shape, dtype=source.dtype)
    source.read_into(0, result.numel(), result.view(-1))
    return result


@dataclass(frozen=True)
class HeldTensor:
    """A contiguous tensor in memory."""

    held: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.held.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.held.dtype

    def tensor(self) -> torch.Tensor:
        """Return the tensor itself; a pickled Parameter's gradients are nobody's business."""
        return self.held.detach()

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        """See :class:`Source`."""
        into.copy_(self.tensor().view(-1)[start:stop])


class Shard:
    """A safetensors file, open for reading; it is read with pread, so nothing is mapped.

    A mapped file that is cut while it is read ends the process with a bus error; a read that
    comes up short is an error with a name.

    Raises:
        LinesError: the file is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self._counting = threading.Lock()
        self.descriptor = _opened(path)
        self.state = state_of(os.fstat(self.descriptor))
        try:
            self._offset, entries, self.digest = _read_header(self.descriptor, self.state[1])
            self.metadata = dict(entries.pop("__metadata__", {}))
            self._tensors = entries
        except (OSError, ValueError, KeyError, TypeError) as error:
            os.close(self.descriptor)
            raise LinesError(
                pointer_problem(path)
                or f"{path}: not a whole safetensors file ({reason(error)}). Download it again."
            ) from error

    def __reduce__(self) -> tuple[type[Shard], tuple[Path]]:
        """Let another process open the file for itself."""
        return Shard, (self.path,)

    def tensor(self, name: str) -> ShardTensor:
        """Return one of its tensors, unread."""
        entry = self._tensors[name]
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        first, last = entry["data_offsets"]
        if last - first != math.prod(shape) * dtype.itemsize or self._offset + last > self.state[1]:
            raise LinesError(
                f"{self.path}: tensor {name} has {last - first} bytes for shape {shape}. "
                f"Download the file again."
            )
        return ShardTensor(self, self._offset + first, shape, dtype, name)

    def count(self, size: int) -> None:
        """Add to the bytes read."""
        with self._counting:
            self.bytes_read += size

    def check_unchanged(self) -> None:
        """Refuse a file that is no longer the one that was opened.

        Raises:
            LinesError: inode, size or time of change differ.
        """
        try:
            states = state_of(self.path.stat()), state_of(os.fstat(self.descriptor))
        except OSError:
            states = None
        if states != (self.state, self.state):
            raise changed(self.path)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class ShardTensor:
    """One tensor of a shard."""

    shard: Shard
    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str

    def tensor(self) -> torch.Tensor:
        """Return the whole tensor."""
        result = torch.empty(self.shape, dtype=self.dtype)
        self._read(0, result.view(-1))
        return result

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        """See :class:`Source`."""
        # Kept for the next read: adapters over one base want the same entries one after another.
        key = (self.shard, self.offset, start, stop)
        if getattr(_SCRATCH, "key", None) != key:
            size = (stop - start) * self.dtype.itemsize
            raw = getattr(_SCRATCH, "bytes", None)
            if raw is None or len(raw) < size:
                raw = torch.empty(size, dtype=torch.uint8)
            _SCRATCH.key = None
            _SCRATCH.bytes = raw
            self._read(start, raw[:size])
            _SCRATCH.key = key
        into.copy_(_SCRATCH.bytes[: (stop - start) * self.dtype.itemsize].view(self.dtype))

    def read_as_stored(self, start: int, into: torch.Tensor) -> None:
        """Fill a contiguous 1-D CPU tensor of the stored dtype with the entries from ``start`` on.

        Raises:
            LinesError: the file is shorter than its header says, or cannot be read.
        """
        self._read(start, into)

    def will_need(self) -> None:
        """Tell the system that this tensor is read next."""
        if hasattr(os, "posix_fadvise"):
            size = math.prod(self.shape) * self.dtype.itemsize
            os.posix_fadvise(self.shard.descriptor, self.offset, size, os.POSIX_FADV_WILLNEED)

    def _read(self, start: int, into: torch.Tensor) -> None:
        self.shard.count(into.nbytes)
        try:
            short = read_run(self.shard.descriptor, self.offset + start * self.dtype.itemsize, into)
        except OSError as error:
            raise ResumableError(
                f"{self.shard.path}: tensor {self.name} cannot be read ({error.strerror}). "
                f"Check the disk, or download the file again."
            ) from error
        if short:
            raise LinesError(
                f"{self.shard.path}: ends inside tensor {self.name}, though its header "
                f"promises more. It was cut while it was read; download it again."
            )


def _opened(path: Path) -> int:
    try:
        check_regular(path)
        descriptor = os.open(path, os.O_RDONLY)
    except TextError as error:
        raise LinesError(f"{path}: cannot be opened ({error}).") from error
    except OSError as error:
        remedy = "Check the file."
        if error.errno == errno.EMFILE:
            remedy = "Raise the limit (`ulimit -n 4096`), or save the models in fewer shards."
        raise LinesError(f"{path}: cannot be opened ({error.strerror}). {remedy}") from error
    _allow_files(descriptor + ROOM)
    return descriptor


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files where it may be: every shard stays open."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    most = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
    with suppress(OSError, ValueError):  # the system's own limit; then opening fails by name
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def changed(path: Path) -> LinesError:
    """Return the refusal of an input that is not what it was when it was opened."""
    return LinesError(
        f"{path}: changed while it was merged, so that the result would mix two "
        f"versions of it. Let no one write to the inputs, and run the merge again."
    )


def state_of(stat: os.stat_result) -> tuple[int, ...]:
    """Return what tells a file from a changed one: inode, size and times.

    Whoever rewrites a file in place can put its mtime back, and not its ctime.
    """
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_header(descriptor: int, size: int) -> tuple[int, dict[str, Any], str]:
    """Return where the data begins, the tensors' entries, and the header's digest."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= length <= min(size - 8, HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    text = os.pread(descriptor, length, 8)
    try:
        tensors = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("a header that is nested without end") from None
    if not isinstance(tensors, dict):
        raise TypeError(f"a header that is no object: {str(tensors)[:40]}")
    return 8 + length, tensors, hashlib.sha256(text).hexdigest()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} stands twice in its header")
        result[name] = value
    return result
