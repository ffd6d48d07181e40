"""What an adapter does to one tensor, done piece by piece as the tensor is read.

Each change is laid over a :class:`Source` and is one itself. None of them keeps a buffer
between reads, so that several threads may read one source at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mergekit_lines.checkpoint.sources import Source, whole

# Entries that a norm over a whole tensor is computed from at a time.
PIECE = 1 << 20


class Change(Protocol):
    """What an adapter does to a tensor."""

    def over(self, base: Source) -> Source:
        """Return ``base`` with the change."""


@dataclass(frozen=True)
class Saved:
    """A tensor that the adapter holds whole: it takes the base's place."""

    tensor: Source

    def over(self, base: Source) -> Source:
        """Return the adapter's tensor."""
        return self.tensor


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that the adapter holds: ``rows[k]`` is row ``indices[k]``."""

    indices: Sequence[int]
    rows: Source

    def over(self, base: Source) -> Source:
        """Return ``base`` with the adapter's rows in the place of its own."""
        return _WithRows(base, self)


@dataclass(frozen=True)
class Shift:
    """A bias that LoRA trained beside B: b' = b + scale·bias."""

    bias: Source
    scale: float

    def over(self, base: Source) -> Source:
        """Return ``base`` plus the scaled bias."""
        return _Shifted(base, self)


@dataclass(frozen=True)
class Update:
    """A low-rank update of a matrix, an embedding or a convolution, as PEFT merges it.

    LoRA (arXiv:2106.09685): W' = W + scale·B·A, where a convolution's W is
    [out, in·kernel]. DoRA (arXiv:2402.09353, Eq. 5): every output's part of W' is scaled to
    the length that ``magnitude`` gives it.

    Attributes:
        a: A, shape [rank, in, ...].
        b: B, shape [out, rank, ...].
        scale: alpha/rank, or alpha/√rank with rank-stabilised LoRA.
        transposed: whether the tensor is stored as [in, out], as embeddings are and the
            matrices of GPT-2.
        magnitude: DoRA's vector, one entry per output, or None.
    """

    a: Source
    b: Source
    scale: float
    transposed: bool
    magnitude: Source | None

    def over(self, base: Source) -> Source:
        """Return ``base`` with the update."""
        return _Updated(base, self)


@dataclass(frozen=True)
class _Changed:
    """A tensor with a change: of its shape, in the dtype that the change is computed in."""

    base: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return _computed(self.base)


@dataclass(frozen=True)
class _WithRows(_Changed):
    tokens: Tokens

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        self.base.read_into(start, stop, into)
        columns = self.shape[1]
        for place, row in enumerate(self.tokens.indices):
            first, last = max(start, row * columns), min(stop, (row + 1) * columns)
            if first < last:
                shift = (place - row) * columns
                piece = into[first - start : last - start]
                self.tokens.rows.read_into(first + shift, last + shift, piece)


@dataclass(frozen=True)
class _Shifted(_Changed):
    shift: Shift

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        self.base.read_into(start, stop, into)
        bias = torch.empty_like(into)
        self.shift.bias.read_into(start, stop, bias)
        into.add_(bias, alpha=self.shift.scale)


@dataclass
class _Factors:
    """An update as matrices of one dtype: left [rows, rank] times right [rank, columns]."""

    left: torch.Tensor
    right: torch.Tensor
    magnitude: torch.Tensor | None
    per_column: torch.Tensor | None = None


class _Updated:
    """A tensor with a low-rank update; the update's factors are loaded at the first read."""

    def __init__(self, base: Source, update: Update) -> None:
        self.base, self.update = base, update
        self.shape, self.dtype = base.shape, _computed(base)
        self._factors: dict[torch.dtype, _Factors] = {}
        self._lock = threading.Lock()

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        if start == stop:
            return
        factors = self._load(into.dtype)
        if factors.magnitude is not None and factors.per_column is None:
            self._read_rows(factors, factors.magnitude, start, stop, into)
            return
        self.base.read_into(start, stop, into)
        columns = factors.right.shape[1]
        for rows, row_part, piece in _parts(start, stop, columns, into):
            piece.addmm_(factors.left[rows], factors.right[:, row_part])
            if factors.per_column is not None:
                piece.mul_(factors.per_column[row_part])

    def _read_rows(
        self,
        factors: _Factors,
        magnitude: torch.Tensor,
        start: int,
        stop: int,
        into: torch.Tensor,
    ) -> None:
        """Read rows that DoRA scales each to its magnitude; a row's norm needs it whole."""
        columns = factors.right.shape[1]
        first, last = start // columns, -(-stop // columns)
        aligned = (last - first) * columns == stop - start
        whole = into if aligned else into.new_empty((last - first) * columns)
        rows = self._merged_rows(factors, first, last, whole)
        norms = torch.linalg.vector_norm(rows, dim=1)
        rows.mul_((magnitude[first:last] / norms).unsqueeze(1))
        if not aligned:
            into.copy_(whole[start - first * columns :][: stop - start])

    def _merged_rows(
        self, factors: _Factors, first: int, last: int, into: torch.Tensor
    ) -> torch.Tensor:
        columns = factors.right.shape[1]
        self.base.read_into(first * columns, last * columns, into)
        rows = into.view(last - first, columns)
        return rows.addmm_(factors.left[first:last], factors.right)

    def _load(self, dtype: torch.dtype) -> _Factors:
        with self._lock:
            if dtype not in self._factors:
                self._factors[dtype] = self._load_factors(dtype)
            return self._factors[dtype]

    def _load_factors(self, dtype: torch.dtype) -> _Factors:
        update = self.update
        rank = update.a.shape[0]
        a = _whole(update.a, dtype).view(rank, -1)
        b = _whole(update.b, dtype).view(-1, rank)
        left, right = (a.T.contiguous(), b.T.contiguous()) if update.transposed else (b, a)
        factors = _Factors(left * update.scale, right, None)
        if update.magnitude is not None:
            factors.magnitude = _whole(update.magnitude, dtype)
            if update.transposed:
                factors.per_column = factors.magnitude / self._column_norms(factors, dtype)
        return factors

    def _column_norms(self, factors: _Factors, dtype: torch.dtype) -> torch.Tensor:
        rows, columns = len(factors.left), factors.right.shape[1]
        squares = torch.zeros(columns, dtype=torch.float64)
        step = max(1, PIECE // columns)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            scratch = torch.empty((last - first) * columns, dtype=dtype)
            merged = self._merged_rows(factors, first, last, scratch)
            squares += merged.square_().sum(dim=0, dtype=torch.float64)
        return squares.sqrt_().to(dtype)


def _computed(base: Source) -> torch.dtype:
    return torch.float64 if base.dtype == torch.float64 else torch.float32


def _whole(source: Source, dtype: torch.dtype) -> torch.Tensor:
    return whole(source).to(dtype).view(-1)


def _parts(
    start: int, stop: int, columns: int, flat: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Cut a run of a matrix's entries into rectangles: rows, columns, and the run's view."""
    at = start
    while at < stop:
        row, column = divmod(at, columns)
        if column or stop - at < columns:
            end = min(stop, at - column + columns)
            rows, width = slice(row, row + 1), slice(column, column + end - at)
        else:
            count = (stop - at) // columns
            end = at + count * columns
            rows, width = slice(row, row + count), slice(0, columns)
        piece = flat[at - start : end - start].view(rows.stop - rows.start, -1)
        yield rows, width, piece
        at = end
