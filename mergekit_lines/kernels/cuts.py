"""The largest magnitudes of a tensor in pieces: exact, in one counting pass as a rule."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mergekit_lines.kernels.bracket import Bracket, draw_bracket, spread_of
from mergekit_lines.kernels.compiled.counting import counted, sampled, stored
from mergekit_lines.kernels.compiled.library import Library, pattern
from mergekit_lines.kernels.pieces import Pieces
from mergekit_lines.kernels.scale import total as sum_of

_SMALL = 1 << 14  # entries; below, gathering all of them is cheaper than a sample
_SAMPLE = 1 << 15  # entries of a sample
_ROUNDS = 6  # of passes with bounded memory; then the rest is gathered whatever it takes


@dataclass(frozen=True)
class Cut:
    """The ``rank`` largest magnitudes of one tensor; of equals, the lowest flat indices.

    Attributes:
        threshold: the smallest magnitude of them.
        stay: per piece, how many entries of that magnitude are among them.
        there: per piece, how many entries have that magnitude.
        total: Σ|δ| over them, in float64; 0 where sums were not asked for.
    """

    threshold: float
    stay: tuple[int, ...]
    there: tuple[int, ...]
    total: float = 0.0

    def limit(self, index: int) -> tuple[int, int]:
        """Return above which fp32 pattern all of piece ``index`` are, and how many of it itself."""
        stay, there = self.stay[index], self.there[index]
        own = pattern(self.threshold)
        return (own - 1, 0) if stay == there else (own, stay)

    def apply(self, delta: torch.Tensor, index: int) -> torch.Tensor:
        """Set the entries of piece ``index`` that are not among them to 0, in place.

        Args:
            delta: the piece, 1-D; its dtype is the one the cut was found in.
            index: number of the piece.
        """
        stay, there = self.stay[index], self.there[index]
        if stay == there:
            limit = beside(self.threshold, -math.inf, delta.dtype)
            return torch.hardshrink(delta, limit, out=delta)
        if not stay:
            return torch.hardshrink(delta, self.threshold, out=delta)
        equals = (delta.abs() == self.threshold).nonzero().view(-1)[:stay]
        values = delta[equals]
        torch.hardshrink(delta, self.threshold, out=delta)
        delta[equals] = values
        return delta


@dataclass
class Search:
    """The search for one cut: rank ``rank`` from the largest |δ| of model ``model``."""

    model: int
    rank: int
    size: int
    above: int = 0  # entries larger than the region
    region: Bracket = field(default_factory=Bracket)  # where the rank lies for certain
    bracket: Bracket = field(default_factory=Bracket)  # where the next pass looks
    cut: Cut | None = None

    def aim(self, sample: torch.Tensor, parts: list[torch.Tensor], share: float) -> None:
        """Choose the next bracket by a sample of the region."""
        quantile = (self.rank - self.above - 0.5) / max(1, self.size)
        quantile = min(max(quantile, 0.0), 1.0)
        spread = spread_of(parts, quantile, share)
        self.bracket = draw_bracket(sample, self.region, quantile, spread)

    def absorb(self, counts: Sequence[_Count], overview: torch.Tensor) -> None:
        """Take in a pass: the cut, or a smaller region and the next bracket."""
        low, high = self.bracket.low, self.bracket.high
        above = sum(count.above for count in counts)
        inside = sum(count.inside for count in counts)
        if self.rank > above + inside and low <= 0:
            self.rank = above + inside  # NaN has no magnitude, so there are fewer than asked for
        if above < self.rank <= above + inside:
            if not any(count.thinned for count in counts):
                self.cut = _settle(self, counts, above)
                return
            self.region, self.above, self.size = Bracket(low, high), above, inside
            sample = torch.cat([count.sample(self.bracket.pivots) for count in counts])
        elif self.rank <= above:
            self.region = Bracket(beside(high, math.inf, overview.dtype), self.region.high)
            self.size = above - self.above
            sample = overview
        else:
            self.region = Bracket(self.region.low, beside(low, -math.inf, overview.dtype))
            self.size -= above + inside - self.above
            self.above = above + inside
            sample = overview
        held = (sample >= self.region.low) & (sample <= self.region.high)
        if self.rank:
            self.aim(sample[held], [], 1.0)
        else:
            self.cut = Cut(math.inf, (0,) * len(counts), (0,) * len(counts))


@dataclass
class _Count:
    """What one pass found in one piece for one search."""

    above: int
    total: float  # Σ|δ| of those above
    pivots: list[int]  # entries equal to each of the bracket's pivots
    candidates: torch.Tensor  # the other entries in the bracket, or every ``step``th of them
    step: int
    gathered: int
    thinned: bool

    @property
    def inside(self) -> int:
        return self.gathered + sum(self.pivots)

    def sample(self, pivots: Sequence[float]) -> torch.Tensor:
        kept = self.candidates if self.thinned else self.candidates[:: self.step]
        pairs = zip(self.pivots, pivots, strict=True)
        counted = [kept.new_full((n // self.step,), p) for n, p in pairs]
        return torch.cat([kept, *counted])


def find_cuts(
    pieces: Pieces, ranks: Sequence[tuple[int, int]], *, sums: bool = False
) -> tuple[list[Cut], list[float]]:
    """Return the cut of every (model, rank), and Σ|δ| of every model.

    δ is model minus base. All searches share their passes: a look at an eighth of the pieces (of
    few at four), then one pass over all as a rule, and more where those were unlike all. Beside
    the pieces, memory holds the entries of a narrow range around each rank: some hundredths of
    the tensor, and at most a sixteenth or 16 pieces of it. Only what six passes could not
    narrow down that far is gathered whatever it takes.

    Args:
        pieces: the tensor.
        ranks: model number and rank, from 1 to the number of entries.
        sums: whether Σ|δ| is wanted; else the totals are 0.
    """
    size = pieces.bounds[-1][1]
    searches = [Search(model, rank, size) for model, rank in ranks]
    stride = max(1, size // _SAMPLE) | 1
    if size > _SMALL:
        _look(pieces, searches, stride)
    totals = [0.0] * pieces.models
    for tries in range(_ROUNDS + 2):
        open_ = [search for search in searches if search.cut is None]
        if not open_:
            break
        bounded = size > _SMALL and tries < _ROUNDS
        if tries >= _ROUNDS:
            for search in open_:
                search.bracket = search.region
        counted = pieces.map(_Pass(pieces, open_, stride, bounded=bounded, sums=sums))
        for number, search in enumerate(open_):
            overview = torch.cat([views[search.model] for _, _, views in counted])
            search.absorb([counts[number] for counts, _, _ in counted], overview)
        if not tries:
            totals = [
                math.fsum(norms.get(model, 0.0) for _, norms, _ in counted)
                for model in range(pieces.models)
            ]
    return [search.cut for search in searches if search.cut is not None], totals


def beside(value: float, towards: float, dtype: torch.dtype) -> float:
    """Return the number of ``dtype`` next to ``value``."""
    here, there = (torch.tensor(number, dtype=dtype) for number in (value, towards))
    return float(torch.nextafter(here, there))


def deltas(
    pieces: Pieces, index: int, models: Sequence[int]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Load piece ``index``; return the base's piece and, by model, model minus base."""
    if len(models) == 1:
        base, loaded = pieces.load(index, models[0])
        return base, {models[0]: loaded[0].sub_(base)}
    base, loaded = pieces.load(index)
    return base, {model: loaded[model].sub_(base) for model in models}


def _look(pieces: Pieces, searches: Sequence[Search], stride: int) -> None:
    """Aim every search by a sample of an eighth of the pieces, four at least, evenly spread."""
    count = len(pieces.bounds)
    chosen = count if count <= 4 else max(4, -(-count // 8))
    numbers = {(2 * place + 1) * count // (2 * chosen) for place in range(chosen)}
    # The whole sample's size, from fewer pieces; odd, to fall on every column.
    step = max(1, stride * chosen // count) | 1
    models = sorted({search.model for search in searches})

    def look(index: int) -> dict[int, torch.Tensor]:
        if index not in numbers:
            return {}
        if pieces.library is not None:
            return sampled(pieces.library, *stored(pieces, index, models), step)
        base, loaded = pieces.load(index)
        return {model: loaded[model][::step].sub(base[::step]).abs_() for model in models}

    samples = [sample for sample in pieces.map(look) if sample]
    for search in searches:
        parts = [sample[search.model] for sample in samples]
        search.aim(torch.cat(parts), parts, chosen / count)


class _Pass:
    """One counting pass: call it with the number of a piece."""

    def __init__(
        self, pieces: Pieces, searches: Sequence[Search], stride: int, *, bounded: bool, sums: bool
    ) -> None:
        self.pieces = pieces
        self.searches = searches
        self.models = sorted({search.model for search in searches})
        self.stride = stride
        self.sums = sums
        share = max(16 / len(pieces.bounds), 1 / 16) if bounded else 1.0
        self.share = min(1.0, share)
        self.step = math.ceil(1 / self.share) | 1
        # Fresh memory is slower than the arithmetic: every thread keeps its own.
        self.own = threading.local()

    def __call__(
        self, index: int
    ) -> tuple[list[_Count], dict[int, float], dict[int, torch.Tensor]]:
        library = self.pieces.library
        if library is not None and not self.sums:
            return self._compiled(library, index)
        _, magnitudes = deltas(self.pieces, index, self.models)
        norms, views = {}, {}
        for model, delta in magnitudes.items():
            delta.abs_()
            views[model] = delta[:: self.stride].clone()
            if self.sums:
                norms[model] = sum_of(delta)
        counts = [self._count(magnitudes[search.model], search.bracket) for search in self.searches]
        return counts, norms, views

    def _compiled(
        self, library: Library, index: int
    ) -> tuple[list[_Count], dict[int, float], dict[int, torch.Tensor]]:
        base, models = stored(self.pieces, index, self.models)
        counts, views = counted(library, base, models, self.searches, self.stride)
        results = []
        for above, pivots, candidates in counts:
            gathered, thinned = len(candidates), len(candidates) > self.share * len(base)
            kept = candidates[:: self.step if thinned else 1].clone()
            results.append(_Count(above, 0.0, pivots, kept, self.step, gathered, thinned))
        return results, {}, views

    def _count(self, magnitudes: torch.Tensor, bracket: Bracket) -> _Count:
        low, high = bracket.low, bracket.high
        marks, equal = self._scratch(magnitudes)
        above, total = 0, 0.0
        if high < math.inf:
            above = tally(marks.copy_(magnitudes).gt_(high))
            if self.sums:
                torch.hardshrink(magnitudes, high, out=marks)
                total = sum_of(marks)
        pivots: list[int] = []
        if low == high and bracket.pivots:
            pivots.append(tally(marks.copy_(magnitudes).eq_(low)))
            return _Count(above, total, pivots, magnitudes[:0].clone(), self.step, 0, thinned=False)
        torch.clamp(magnitudes, low, high, out=marks).eq_(magnitudes)
        for pivot in bracket.pivots:
            equal.copy_(magnitudes).eq_(pivot)
            pivots.append(tally(equal))
            marks.sub_(equal)
        candidates = gather(magnitudes, marks)
        gathered = candidates.numel()
        thinned = gathered > self.share * magnitudes.numel()
        if thinned:
            candidates = candidates[:: self.step].clone()
        return _Count(above, total, pivots, candidates, self.step, gathered, thinned)

    def _scratch(self, magnitudes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = magnitudes.numel()
        held: torch.Tensor | None = getattr(self.own, "scratch", None)
        if held is None or held.shape[1] < count:
            held = self.own.scratch = magnitudes.new_empty((2, count))
        return held[0, :count], held[1, :count]


def _settle(search: Search, counts: Sequence[_Count], above: int) -> Cut:
    """Return the cut; the rank lies in the bracket, and all of the bracket is at hand."""
    candidates = torch.cat([count.candidates for count in counts])
    pivots = search.bracket.pivots
    larger = 0  # entries equal to a pivot above the threshold
    total = math.fsum(count.total for count in counts)
    for number, pivot in enumerate(pivots):
        equal = [count.pivots[number] for count in counts]
        before = above + larger + int((candidates > pivot).sum())
        if search.rank <= before:
            break
        if search.rank <= before + sum(equal):
            total += sum_of(candidates[candidates > pivot])
            stays = search.rank - before
            return Cut(pivot, _share(equal, stays), tuple(equal), total + stays * pivot)
        larger += sum(equal)
        total += pivot * sum(equal)
    rank = search.rank - above - larger
    threshold = float(candidates.kthvalue(candidates.numel() - rank + 1).values)
    equal = [int((count.candidates == threshold).sum()) for count in counts]
    larger_ones = candidates[candidates > threshold]
    stays = rank - larger_ones.numel()
    total += sum_of(larger_ones) + stays * threshold
    return Cut(threshold, _share(equal, stays), tuple(equal), total)


def _share(equal: Sequence[int], stays: int) -> tuple[int, ...]:
    """Give the places to the pieces in their order."""
    shares = []
    for count in equal:
        shares.append(min(count, stays))
        stays -= shares[-1]
    return tuple(shares)


def gather(magnitudes: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Return the marked entries, of which there should be few."""
    flags = marks.bool()
    whole = flags.numel() // 8 * 8
    # Eight flags are one word, and most words are zero: twice as fast as a bool index.
    words = flags[:whole].view(torch.int64).nonzero().view(-1)
    rows = magnitudes[:whole].view(-1, 8).index_select(0, words)
    marked = rows[flags[:whole].view(-1, 8).index_select(0, words)]
    return torch.cat([marked, magnitudes[whole:][flags[whole:]]])


def tally(ones: torch.Tensor) -> int:
    """Count the ones; fp32 counts exactly to 2²⁴."""
    exact = ones.numel() <= 1 << 24
    return int(ones.sum(dtype=None if exact else torch.float64))
