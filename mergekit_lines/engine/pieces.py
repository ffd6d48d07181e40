"""One output tensor, piece by piece: read, merge, scale, round once, hand on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from mergekit_lines.checkpoint.sources import HeldTensor, ShardTensor, Source
from mergekit_lines.engine.jobs import Job, prepared
from mergekit_lines.engine.workers import Workers
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.compiled.library import CODES, Library
from mergekit_lines.kernels.compiled.merging import merged
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.kernels.scale import add_scaled, work_dtype
from mergekit_lines.methods.finite import refuse_input, refuse_result

T = TypeVar("T")
# Entries of a piece. What compiled kernels read of it for two models stays in a core's caches, so
# that reading it a second time costs less than keeping it would; smaller ones spend their time in
# Python, which only one thread may run. A GPU wants larger ones, and several of a matrix: one is
# read while another is computed.
PIECE = 1 << 19
DEVICE_PIECE = 1 << 22
# Beside the models' pieces a thread holds the base's, what it read, the task vector, masks, draws.
TEMPORARIES = 7
MEMORY = 256 << 20  # bytes that the pieces of all threads may take
DEVICE_MEMORY = 2 << 30  # likewise, on a GPU


class Sink(Protocol):
    """Where the pieces of one output tensor go; several threads may write at once."""

    def write(self, start: int, piece: torch.Tensor) -> None:
        """Take the entries from ``start`` on: a 1-D tensor of the sink's dtype, on any device."""


@dataclass(frozen=True)
class HeldResult:
    """A sink in memory."""

    tensor: torch.Tensor

    def write(self, start: int, piece: torch.Tensor) -> None:
        """See :class:`Sink`."""
        self.tensor.view(-1)[start : start + len(piece)] = piece


class TensorPieces:
    """The base's and the models' pieces of one tensor, in the dtype of the arithmetic.

    Args:
        base: θ_0, not empty.
        models: the fine-tuned ones, N of them, of the same shape.
        cast: the recipe's ``dtype``, to which inputs are rounded first; or None.
        device: where the arithmetic is done.
        workers: the threads that share the pieces.
        merge: what is to be done; it may want whole rows, or the tensor in one piece.
    """

    def __init__(
        self,
        base: Source,
        models: Sequence[Source],
        cast: torch.dtype | None,
        device: torch.device,
        workers: Workers,
        merge: Kernel,
    ) -> None:
        self.shape = base.shape
        self.models = len(models)
        self.aligned = cast or _promoted([base, *models])
        self.dtype = work_dtype(self.aligned)
        self._base, self._tuned, self._merge = base, models, merge
        # Adapters read their base's entries one after another: what a shard keeps serves them all.
        shards = {(s.shard, s.offset) for s in (base, *models) if isinstance(s, ShardTensor)}
        self._apart = len(shards) == 1 + len(models)
        self._cast, self._device, self._workers = cast, device, workers
        self.bounds = cut(self.shape, merge, device)

    def load(self, index: int, model: int | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return piece ``index`` of the base and of all models, or of one: 1-D, in ``dtype``.

        They are valid until the same thread's next load; the models' may be overwritten.
        """
        chosen = self._tuned if model is None else [self._tuned[model]]
        sources = [self._base, *chosen]
        base, *models = (
            self._read(f"{place}", source, *self.bounds[index])
            for place, source in enumerate(sources)
        )
        return base, models

    @property
    def library(self) -> Library | None:
        """The compiled kernels that may take the pieces as they are stored; None for torch's."""
        on_cpu = self._device.type == "cpu" and self.dtype == torch.float32
        return self._workers.library if on_cpu else None

    def stored(
        self, index: int, model: int | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what :meth:`load` does as it is stored: bf16, fp16 or fp32, to be read alone."""
        if model is None:
            base, *models = (
                self._as_stored(place, source, index)
                for place, source in enumerate([self._base, *self._tuned])
            )
            return base, models
        chosen = self._as_stored(model + 1, self._tuned[model], index)
        return self._as_stored(0, self._base, index), [chosen]

    def _as_stored(self, place: int, source: Source, index: int) -> torch.Tensor:
        name, (start, stop) = f"{place} as stored", self.bounds[index]
        cast = self._cast is not None and self._cast not in (source.dtype, self.dtype)
        if cast or source.dtype not in CODES:
            piece = self._read("before the cast" if cast else name, source, start, stop)
            if not cast or self._cast is None:
                return piece
            return self._workers.buffer(name, stop - start, self._cast).copy_(piece)
        if isinstance(source, HeldTensor):
            return source.tensor().view(-1)[start:stop]
        piece = self._workers.buffer(name, stop - start, source.dtype)
        if isinstance(source, ShardTensor) and self._apart:
            source.read_as_stored(start, piece)
        else:
            source.read_into(start, stop, piece)
        return piece

    def buffer(self, name: str, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Return room for piece ``index`` that is this thread's until its next call of the name."""
        start, stop = self.bounds[index]
        return self._workers.buffer(name, stop - start, dtype)

    def load_with(self, index: int, vector: Source) -> tuple[torch.Tensor, torch.Tensor]:
        """Return piece ``index`` of the base and of a tensor in the dtype of the arithmetic.

        They are valid as those of :meth:`load` are; the second may be overwritten.
        """
        bounds = self.bounds[index]
        return self._read("0", self._base, *bounds), self._read("1", vector, *bounds, cast=False)

    def _read(
        self, name: str, source: Source, start: int, stop: int, *, cast: bool = True
    ) -> torch.Tensor:
        gpu = self._device.type != "cpu"
        piece = self._workers.buffer(name, stop - start, self.dtype, pinned=gpu)
        source.read_into(start, stop, piece)
        if cast and self._cast is not None and self._cast not in (source.dtype, self.dtype):
            piece.copy_(piece.to(self._cast))
        return piece.to(self._device) if gpu else piece

    def uncast(self, index: int, number: int) -> torch.Tensor:
        """Return piece ``index`` of the base (number 0) or of a model, before the cast."""
        source = [self._base, *self._tuned][number]
        start, stop = self.bounds[index]
        piece = torch.empty(stop - start, dtype=work_dtype(source.dtype))
        source.read_into(start, stop, piece)
        return piece

    def map(self, function: Callable[[int], T]) -> list[T]:
        """Return ``function(i)`` for every piece, in their order."""
        sought = searches(self._merge, math.prod(self.shape)) if self.library else 0
        width, places = self.dtype.itemsize, self.models + sought
        _, threads = held_at_once(self.bounds, width, places, self._device)
        return self._workers.map(function, len(self.bounds), threads)


def searches(merge: Kernel, entries: int) -> int:
    """Return for how many ranks a merge gathers magnitudes of each piece of so many entries."""
    if isinstance(merge, Agreement):
        merge = merge.merge
    if not isinstance(merge, Merge) or merge.row_aligned:
        return 0
    floors = sum(one.kind == "floor" for one in merge.sparsities)  # sought in a pass before
    ranks = [one.ranks(entries) or (0, 0) for one in merge.sparsities]
    return floors + sum(rank > 0 for pair in ranks for rank in pair)


def held_at_once(
    bounds: Sequence[tuple[int, int]], width: int, places: int, device: torch.device
) -> tuple[int, int]:
    """Return the bytes that a thread holds of a tensor, and how many threads may hold as much.

    Args:
        bounds: of the tensor's pieces.
        width: bytes of an entry, in the dtype of the arithmetic.
        places: as many of them as there are fine-tuned models and searches for ranks.
        device: where the arithmetic is done; only its kind counts, and it need not be there.
    """
    largest = max(stop - start for start, stop in bounds)
    held = largest * width * (places + TEMPORARIES)
    memory = MEMORY if device.type == "cpu" else DEVICE_MEMORY
    return held, max(1, memory // held)


def cut(shape: tuple[int, ...], merge: Kernel, device: torch.device) -> list[tuple[int, int]]:
    """Return the bounds of a tensor's pieces; they depend on nothing but what is given here.

    They fall between rows wherever a row fits into a piece.
    """
    entries = math.prod(shape)
    if not merge.supports(shape):
        return [(0, entries)]
    size = PIECE if device.type == "cpu" else DEVICE_PIECE
    row = math.prod(shape[1:])
    if len(shape) > 1 and (row <= size or merge.row_aligned):
        size = max(size // row, 1) * row
    return [(start, min(start + size, entries)) for start in range(0, entries, size)]


def merge_tensor(
    job: Job,
    pieces: TensorPieces,
    out_dtype: torch.dtype,
    sink: Sink,
    vector: Sink | None = None,
    state: Any = None,
) -> None:
    """Write θ_0 + λ·(M(θ…) − θ_0) into ``sink``, rounded once to ``out_dtype``.

    Args:
        job: the tensor.
        pieces: its inputs.
        out_dtype: of the result.
        sink: takes the result.
        vector: takes M(θ…) − θ_0 in the dtype of the arithmetic, where it is wanted too.
        state: what :func:`prepared` returned for them, where somebody has asked it.

    Raises:
        LinesError: an input or the result is not finite, or cannot be read or written.
    """
    if state is None:
        state = prepared(job, pieces)
    compiled = _compiled(job, pieces, out_dtype)

    def write(index: int) -> None:
        if compiled and compiled(state, index, sink, vector):
            return
        base, models = pieces.load(index)
        if not job.allow_nonfinite:
            check_inputs(job, pieces, index, base, models)
        tau = job.merge.task_vector(pieces, state, index, base, models)
        if vector is not None:
            vector.write(pieces.bounds[index][0], tau)
        result = add_scaled(base, tau, job.coefficient).to(out_dtype)
        if not job.allow_nonfinite and not _is_finite(result):
            # The task vector was scaled in place, and is not there any more.
            base, models = pieces.load(index)
            tau = job.merge.task_vector(pieces, state, index, base, models)
            refuse_result(job.name, job.wrap, tau, out_dtype)
        sink.write(pieces.bounds[index][0], result)

    pieces.map(write)


def _compiled(
    job: Job, pieces: TensorPieces, out_dtype: torch.dtype
) -> Callable[[Any, int, Sink, Sink | None], bool] | None:
    """Return what merges one piece by compiled code, or None where none can.

    It tells whether it could: what is not finite is torch's to do, or to refuse.
    """
    kernel = compiled_kernel(job, pieces)
    if kernel is None or out_dtype not in CODES:
        return None
    library, merge = kernel

    def write(state: Any, index: int, sink: Sink, vector: Sink | None) -> bool:
        bounds = pieces.bounds[index]
        out = pieces.buffer("result", index, out_dtype)
        tau = None if vector is None else pieces.buffer("task vector", index, torch.float32)
        inputs, coefficient = pieces.stored(index), job.coefficient
        if not merged(library, merge, state, bounds, index, *inputs, coefficient, out, tau):
            return False
        if vector is not None and tau is not None:
            vector.write(bounds[0], tau)
        sink.write(bounds[0], out)
        return True

    return write


def compiled_kernel(job: Job, pieces: TensorPieces) -> tuple[Library, Merge | Agreement] | None:
    """Return the compiled kernels and what they do for this tensor, or None where none can."""
    library, merge = pieces.library, job.merge
    if library is None or not isinstance(merge, Merge | Agreement) or merge.row_aligned:
        return None
    return library, merge


def rescale_tensor(
    job: Job, pieces: TensorPieces, vector: Source, out_dtype: torch.dtype, sink: Sink
) -> None:
    """Write what :func:`merge_tensor` would, from the task vector that it gave away.

    Raises:
        LinesError: the result is not finite, or cannot be read or written.
    """

    def write(index: int) -> None:
        base, tau = pieces.load_with(index, vector)
        result = add_scaled(base, tau, job.coefficient).to(out_dtype)
        if not job.allow_nonfinite and not _is_finite(result):
            refuse_result(job.name, job.wrap, pieces.load_with(index, vector)[1], out_dtype)
        sink.write(pieces.bounds[index][0], result)

    pieces.map(write)


def _promoted(sources: Sequence[Source]) -> torch.dtype:
    dtype = sources[0].dtype
    for source in sources[1:]:
        dtype = torch.promote_types(dtype, source.dtype)
    return dtype


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum is one pass, and NaN and infinity survive it; it may overflow for finite entries.
    total = float(tensor.sum(dtype=work_dtype(tensor.dtype)))
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def check_inputs(
    job: Job, pieces: TensorPieces, index: int, base: torch.Tensor, models: list[torch.Tensor]
) -> None:
    """Refuse a piece of an input that is not finite.

    Raises:
        LinesError: names tensor and model.
    """
    for number, piece in enumerate([base, *models]):
        if not _is_finite(piece):
            place = f"tensor {job.name} of model {job.models[number]}"
            refuse_input(place, pieces.uncast(index, number), pieces.aligned)
