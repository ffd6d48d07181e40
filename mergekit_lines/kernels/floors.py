"""A magnitude by its rank among all of a model's: counted tensor by tensor, and exact.

Nothing is sorted and no tensor is kept: non-negative floats are ordered as their bit patterns
are, and what is counted is how many entries have which pattern.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import torch

from mergekit_lines.kernels.bracket import Bracket
from mergekit_lines.kernels.compiled.counting import counted, sampled, stored
from mergekit_lines.kernels.cuts import beside, deltas, gather, tally
from mergekit_lines.kernels.pieces import Pieces

BINS = 1 << 20  # counters of a pass; 8 bytes each
APART = 8  # of the pieces of a tensor, the first look takes one in so many
STRIDE = 5  # and of its entries one in so many; odd, to fall on every column
_COARSE = 15  # bits of a pattern that the first look tells apart: 0.8 % of a magnitude
_DOUBT = 0.005  # of the entries, on both sides of the rank that a look has guessed, at least
_OF_THREADS = ("_counting", "_own")
_SIGMAS = 4.0  # of independent draws


class Ranking:
    """The search for one model's ``rank`` largest magnitude, in passes over its task vector.

    A look at some of the entries, then one pass over all as a rule; each needs the memory of
    its counters and of one piece's entries near the rank.

    Args:
        density: share of the d entries; the rank is int(density·d) + 1, from the largest.
        wide: whether any tensor is computed in float64, whose patterns are twice as long.

    Source: the rank is that of TIES' code, which keeps what reaches the (d − int(density·d))-th
    smallest magnitude.
    """

    def __init__(self, density: float, *, wide: bool = False) -> None:
        self.wide = wide
        self._density, self._dtype = density, torch.float64 if wide else torch.float32
        self._bits = 63 if wide else 31
        self._inf = int(torch.tensor(torch.inf, dtype=self._dtype).view(self._words))
        self._low, self._high = 0, self._inf  # where it lies for certain
        self._counting, self._own = threading.Lock(), threading.local()
        self._looked = 0
        self._open(0, self._inf, self._bits - _COARSE)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process counts on with: all but what threads share."""
        return {name: value for name, value in vars(self).items() if name not in _OF_THREADS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, with a lock and buffers of this process's own."""
        vars(self).update(state, _counting=threading.Lock(), _own=threading.local())

    def join(self, other: Ranking) -> None:
        """Add what another has counted of other tensors in the same pass."""
        self._bins += other._bins
        self._beyond += other._beyond
        self._entries += other._entries
        self._looked += other._looked

    @property
    def done(self) -> bool:
        """Whether the magnitude stands firm."""
        return self._low == self._high

    @property
    def bracket(self) -> Bracket:
        """The range in which the pass counts."""
        return Bracket(self._value(self._first), self._value(self._last))

    @property
    def magnitude(self) -> float:
        """The magnitude of the rank."""
        return self._value(self._low)

    def size(self, entries: int) -> None:
        """Take note of one tensor's number of entries, in a pass over it."""
        with self._counting:
            self._entries += entries

    def look(self, magnitudes: torch.Tensor, weight: int) -> None:
        """Take some entries, each of which stands for ``weight`` of them.

        Args:
            magnitudes: |δ|, 1-D, fp32 or float64.
            weight: how many entries one stands for.
        """
        self.add(magnitudes, 0, weight)
        with self._counting:
            self._looked += len(magnitudes)

    def take(self, magnitudes: torch.Tensor) -> None:
        """Take all entries of one piece; several threads may at once.

        Args:
            magnitudes: |δ|, 1-D, fp32 or float64.
        """
        inside, above = magnitudes.to(self._dtype), 0
        low, high = self.bracket.low, self.bracket.high
        if low > 0 or high < math.inf:
            marks = self._scratch(inside)
            above = tally(marks.copy_(inside).gt_(high))
            inside = gather(inside, torch.clamp(inside, low, high, out=marks).eq_(inside))
        self.add(inside, above)

    def guess(self) -> None:
        """End a look: the next pass counts near where the rank seems to be."""
        below = self._bins.flip(0).cumsum(0)  # from the largest pattern on
        total, size = int(below[-1]), len(self._bins)

        def place(share: float) -> int:
            return int(torch.searchsorted(below, math.ceil(total * min(1.0, max(0.0, share)))))

        # As many as can be counted pattern by pattern; of the wide ones not even one can.
        most = max(1, BINS >> self._shift)
        error = math.sqrt(self._density * (1 - self._density) / max(1, self._looked))
        doubt = max(_DOUBT, _SIGMAS * error)
        first = max(place(self._density - doubt) - 1, place(self._density) - most // 2, 0)
        last = min(place(self._density + doubt) + 1, first + most - 1, size - 1)
        low, high = (size - 1 - last) << self._shift, ((size - first) << self._shift) - 1
        self._open(low, min(self._inf, high))

    def settle(self) -> None:
        """End a pass over all entries: the rank's region is smaller, or one pattern."""
        rank = min(int(self._density * self._entries) + 1, self._entries)
        beyond, inside = self._beyond, int(self._bins.sum())
        if rank <= beyond and rank:
            self._low = self._last + 1
        elif rank <= beyond + inside and rank:
            below = self._bins.flip(0).cumsum(0)
            place = int(torch.searchsorted(below, rank - beyond))
            number = len(self._bins) - 1 - place
            self._low = self._first + (number << self._shift)
            self._high = min(self._last, self._low + (1 << self._shift) - 1)
        elif self._first > 0:
            self._high = self._first - 1
        else:
            self._low = self._high = 0  # NaN has no magnitude, so there are fewer than asked for
        if not self.done:
            self._open(self._low, self._high)

    def _open(self, first: int, last: int, shift: int | None = None) -> None:
        """Begin a pass that counts patterns from ``first`` to ``last``."""
        needed = (last - first).bit_length() - (BINS.bit_length() - 1)
        self._first, self._last = first, last
        self._shift = max(0, needed) if shift is None else shift
        self._beyond = self._entries = 0
        self._bins = torch.zeros(((last - first) >> self._shift) + 1, dtype=torch.int64)

    def add(self, inside: torch.Tensor, above: int, weight: int = 1) -> None:
        """Take the magnitudes of some entries in the range, and the number of those above it.

        Args:
            inside: 1-D, fp32 or float64.
            above: how many are larger than the range.
            weight: how many entries each inside stands for.
        """
        # In the order of the patterns; what is NaN is larger than infinity, and left out.
        patterns = inside.to(self._dtype).view(self._words).to(torch.int64).cpu()
        if self._first == 0:
            patterns = patterns[patterns <= self._last]
        places = patterns.sub_(self._first).bitwise_right_shift_(self._shift)
        ones = torch.full_like(places, weight)
        with self._counting:
            self._bins.scatter_add_(0, places, ones)
            self._beyond += above

    def _scratch(self, like: torch.Tensor) -> torch.Tensor:
        held: torch.Tensor | None = getattr(self._own, "scratch", None)
        if held is None or len(held) < len(like) or held.device != like.device:
            held = self._own.scratch = torch.empty_like(like)
        return held[: len(like)]

    @property
    def _words(self) -> torch.dtype:
        return torch.int64 if self._dtype == torch.float64 else torch.int32

    def _value(self, pattern: int) -> float:
        return float(torch.tensor(pattern, dtype=self._words).view(self._dtype))


class _Search(NamedTuple):
    """What compiled code counts of one model; see kernels/compiled/counting.py."""

    model: int
    bracket: Bracket


def looked_at(pieces: int) -> list[int]:
    """Return the numbers of the pieces of a tensor that the first look reads."""
    return list(range(0, pieces, APART))


def look(pieces: Pieces, rankings: dict[int, Ranking]) -> None:
    """Let every ranking look at a tensor, by the number of its model."""
    count, chosen = len(pieces.bounds), set(looked_at(len(pieces.bounds)))
    entries = pieces.bounds[-1][1]
    weight = max(1, round(entries * STRIDE / sum(_length(pieces, n) for n in chosen)))

    def some(index: int) -> None:
        if index not in chosen:
            return
        if pieces.library is not None:
            inputs = stored(pieces, index, list(rankings))
            samples = sampled(pieces.library, *inputs, STRIDE)
        else:
            _, magnitudes = deltas(pieces, index, list(rankings))
            samples = {model: delta[::STRIDE] for model, delta in magnitudes.items()}
        for model, ranking in rankings.items():
            ranking.look(samples[model].abs(), weight)

    if count:
        pieces.map(some)


def take(pieces: Pieces, rankings: dict[int, Ranking]) -> None:
    """Let every ranking count all entries of a tensor, by the number of its model."""
    searches = [_Search(model, ranking.bracket) for model, ranking in rankings.items()]
    narrow = not any(ranking.wide for ranking in rankings.values())

    def one(index: int) -> None:
        if pieces.library is not None and narrow:
            inputs = stored(pieces, index, list(rankings))
            counts, _ = counted(pieces.library, *inputs, searches, len(inputs[0]) + 1)
            for ranking, (above, _, inside) in zip(rankings.values(), counts, strict=True):
                ranking.add(inside, above)
            return
        _, magnitudes = deltas(pieces, index, list(rankings))
        for model, ranking in rankings.items():
            ranking.take(magnitudes[model].abs_())

    for ranking in rankings.values():
        ranking.size(pieces.bounds[-1][1])
    pieces.map(one)


def _length(pieces: Pieces, index: int) -> int:
    start, end = pieces.bounds[index]
    return end - start


def below(floor: float, dtype: torch.dtype) -> float:
    """Return the largest number of ``dtype`` that is less than ``floor``."""
    number = float(torch.tensor(floor, dtype=dtype))
    return beside(number, -math.inf, dtype) if number >= floor else number


def keep_above(vector: torch.Tensor, floor: float) -> None:
    """Set the entries whose magnitude is below ``floor`` to 0, in place."""
    torch.hardshrink(vector, below(floor, vector.dtype), out=vector)
