"""The output's shards: laid out before a tensor is merged, then filled in any order."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mergekit_lines.checkpoint.runs import write_run
from mergekit_lines.checkpoint.sources import DTYPES
from mergekit_lines.checkpoint.state import shard_digest
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.files import STEM

NAMES = {dtype: name for name, dtype in DTYPES.items()}
# No loader takes a shard that is being filled, or one under its name of :func:`whole_name`,
# for a part of a model.
WRITING = ".writing"


@dataclass(frozen=True)
class Slot:
    """An output tensor's name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardLayout:
    """One shard of the output: its final name, its header, and where each tensor stands."""

    file: str
    header: bytes
    offsets: dict[str, int]  # from the start of the file
    slots: dict[str, Slot]
    size: int


def whole_name(file: str) -> str:
    """Return the name of a whole and durable shard before the output is whole."""
    return f"partial-{file}"


def lay_out(slots: Sequence[Slot], shard_size: int, stem: str = STEM) -> list[ShardLayout]:
    """Cut the output into shards, as mergekit's writer does.

    Args:
        slots: every output tensor, in the order of the output.
        shard_size: bytes of a shard at most, if it holds more than one tensor; 0: no limit.
        stem: what the names of the files begin with.

    Raises:
        LinesError: a name stands twice: of two tensors a loader would see one.
    """
    _check_repeats(slots)
    shards: list[list[Slot]] = []
    held = 0
    for slot in slots:
        if not shards or (shard_size > 0 and held + slot.bytes > shard_size):
            shards.append([])
            held = 0
        shards[-1].append(slot)
        held += slot.bytes
    count = len(shards)
    return [
        shard_layout(
            f"{stem}{f'-{number:05d}-of-{count:05d}' if count > 1 else ''}.safetensors",
            # The widest types first keeps every tensor aligned.
            sorted(shard, key=lambda slot: -slot.dtype.itemsize),
        )
        for number, shard in enumerate(shards, 1)
    ]


def _check_repeats(slots: Sequence[Slot]) -> None:
    twice = [name for name, count in Counter(slot.name for slot in slots).items() if count > 1]
    if twice:
        raise LinesError(
            f"the layout of the output: {some(twice, 3)} would be written more than once, wanted "
            f"every tensor once. mergekit's description of this architecture names them twice."
        )


def shard_layout(
    file: str, slots: Sequence[Slot], metadata: Mapping[str, str] | None = None
) -> ShardLayout:
    """Lay out one shard.

    Args:
        file: its final name.
        slots: its tensors, in the order of their data.
        metadata: of its header, by default that of a PyTorch checkpoint.

    Source: https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    if metadata is not None:
        entries = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begins, begin = {}, 0
    for slot in slots:
        begins[slot.name] = begin
        entries[slot.name] = {
            "dtype": NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [begin, begin + slot.bytes],
        }
        begin += slot.bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=metadata is None).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in begins.items()}
    named = {slot.name: slot for slot in slots}
    return ShardLayout(file, header, offsets, named, len(header) + begin)


def index_of(shards: Sequence[ShardLayout]) -> str | None:
    """Return the text of the index file, or None for a single shard."""
    if len(shards) == 1:
        return None
    content = {
        "metadata": {"total_size": sum(shard.size - len(shard.header) for shard in shards)},
        "weight_map": {name: shard.file for shard in shards for name in shard.offsets},
    }
    return json.dumps(content, indent=2) + "\n"


@dataclass(frozen=True)
class TensorSink:
    """The place of one tensor in a shard that is being written; threads may share it."""

    descriptor: int
    offset: int
    size: int
    turn: threading.Lock

    def write(self, start: int, piece: torch.Tensor) -> None:
        """Store a 1-D tensor of the output's dtype from entry ``start`` on."""
        width = piece.element_size()
        if (start + piece.numel()) * width > self.size:
            raise ValueError(f"{start + len(piece)} entries for a place of {self.size} bytes")
        stored = piece.cpu().contiguous()
        # The system lets one thread write into a file; the others would spin until it has.
        with self.turn:
            write_run(self.descriptor, self.offset + start * width, stored)


class ShardWriter:
    """Fills the shards of a layout in a folder; each is made durable when its last tensor is in.

    fsync of a whole shard, and its digest, run beside the merging of the next one.

    Args:
        folder: where the shards are; those that are whole already are kept.
        shards: the layout.
        vouch: takes each shard's digest before the shard is whole: of all its bytes, which are
            read while the next shard is merged; of the last one, which is waited for, of samples.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[ShardLayout],
        vouch: Callable[[str, str], None] | None = None,
    ) -> None:
        self._folder, self._vouch = folder, vouch
        self._shard_of = {name: shard for shard in shards for name in shard.offsets}
        self.done = {shard.file for shard in shards if self._is_whole(shard)}
        self._missing = {
            shard.file: set(shard.offsets) for shard in shards if shard.file not in self.done
        }
        self._open: dict[str, int] = {}
        self._syncing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._renaming, self._writing = threading.Lock(), threading.Lock()
        self._abandoned = False
        self.bytes_written = 0

    def _is_whole(self, shard: ShardLayout) -> bool:
        path = self._folder / whole_name(shard.file)
        return path.is_file() and path.stat().st_size == shard.size

    def wants(self, name: str) -> bool:
        """Tell whether the tensor is in the output, and not in a shard that was whole already."""
        return name in self._shard_of and self._shard_of[name].file not in self.done

    def slot(self, name: str) -> Slot:
        """Return what the tensor has to be."""
        return self._shard_of[name].slots[name]

    def sink(self, name: str) -> TensorSink:
        """Return the place of a tensor that is not stored yet."""
        shard = self._shard_of[name]
        if shard.file not in self._open:
            path = self._folder / (shard.file + WRITING)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
            self._open[shard.file] = descriptor = os.open(path, flags, 0o666)
            os.truncate(descriptor, shard.size)
            header = torch.frombuffer(bytearray(shard.header), dtype=torch.uint8)
            TensorSink(descriptor, 0, len(header), self._writing).write(0, header)
        offset, size = shard.offsets[name], shard.slots[name].bytes
        return TensorSink(self._open[shard.file], offset, size, self._writing)

    def finished(self, name: str) -> None:
        """Take note that a tensor is stored; the shard's last one ends the shard."""
        shard = self._shard_of[name]
        missing = self._missing[shard.file]
        missing.discard(name)
        if missing:
            self._write_back(shard, name)
            return
        self._wait()  # at most one shard waits for the disk
        descriptor = self._open.pop(shard.file)
        self.bytes_written += shard.size
        self._syncing = threading.Thread(
            target=self._finish, args=(shard.file, descriptor, self._more()), daemon=True
        )
        self._syncing.start()

    def _more(self) -> bool:
        return any(self._missing.values())

    def _write_back(self, shard: ShardLayout, name: str) -> None:
        """Let the system begin to write, so that fsync has little left to wait for."""
        if hasattr(os, "posix_fadvise"):
            offset, size = shard.offsets[name], shard.slots[name].bytes
            os.posix_fadvise(self._open[shard.file], offset, size, os.POSIX_FADV_DONTNEED)

    def _finish(self, file: str, descriptor: int, more: bool) -> None:
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            digest = shard_digest(self._folder / (file + WRITING), sampled=not more)
            with self._renaming:
                if self._abandoned:
                    return
                if self._vouch is not None:
                    self._vouch(file, digest)
                (self._folder / (file + WRITING)).rename(self._folder / whole_name(file))
            sync(self._folder)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._failure = error

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.join()
            self._syncing = None
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait for the disk.

        Raises:
            OSError: a shard could not be made durable.
        """
        try:
            self._wait()
        finally:
            self.abandon()

    def settle(self) -> None:
        """Let a shard that is on its way to the disk become whole; its failure is not the first."""
        if self._syncing is not None:
            self._syncing.join()
            self._syncing = None

    def abandon(self) -> None:
        """Leave the shards that are not whole; nobody waits for one that is on its way.

        That one is not renamed any more: by then another run may be writing a file of its name.
        """
        self._abandoned = True
        with self._renaming:  # what has begun to be whole becomes it before the lock is let go
            pass
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def check_shard(path: Path, shard: ShardLayout) -> None:
    """Hold a whole shard against its layout, opened as every loader does.

    Raises:
        LinesError: it does not open, or holds other tensors than were planned.
    """
    planned = {name: (NAMES[slot.dtype], slot.shape) for name, slot in shard.slots.items()}
    try:
        with safe_open(path, framework="pt") as file:
            pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            stored = {n: (p.get_dtype(), tuple(p.get_shape())) for n, p in pieces.items()}
    except (SafetensorError, OSError) as error:
        raise LinesError(
            f"{shard.file}: was written, and is not a whole safetensors file ({reason(error)}). "
            f"OUT was not made. Check the disk; report this where the disk is sound."
        ) from error
    unlike = [n for n in {**planned, **stored} if planned.get(n) != stored.get(n)]
    if unlike or path.stat().st_size != shard.size:
        raise LinesError(
            f"{shard.file}: was written, and holds other tensors than were planned "
            f"({some(unlike, 3) or 'its size'}). OUT was not made; please report this."
        )


def sync(path: Path) -> None:
    """Make a file or a folder's entries durable."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
