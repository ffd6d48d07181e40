"""One stored tensor held against its recomputation in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch

from mergekit_lines.engine.workers import Workers
from mergekit_lines.verify.exact import Exact
from mergekit_lines.verify.masks import DRAWN, Kept, draws_key, keep
from mergekit_lines.verify.parameters import RESTATED, Parameters
from mergekit_lines.verify.restatement import Piece, outcome, rounding, spacing

# Entries compared at a time; of float64 there are some dozens of copies of each.
PIECE = 1 << 16
# Bounds of errors are doubled: they count roundings, not what a library may do between them.
MARGIN = 2.0
# Of a method that is not restated no roundings are counted: this many fp32 ones are allowed it.
UNCOUNTED = 256


@dataclass(frozen=True)
class Comparison:
    """What came of one tensor.

    Attributes:
        entries: how many were compared.
        error: the largest difference among them, flips apart, in units: spacings of the
            output's dtype at the entry, or of the arithmetic's own bounds where those are wider.
        off: entries that are not the float64 result's nearest, within what roundings explain.
        threshold_flips: entries kept or dropped otherwise, which roundings explain.
        sign_flips: entries whose sign was elected otherwise, which roundings explain.
        wrong: entries that no rounding explains.
        example: one of the wrong ones: flat index, what is stored, and what was computed.
    """

    entries: int
    error: float = 0.0
    off: int = 0
    threshold_flips: int = 0
    sign_flips: int = 0
    wrong: int = 0
    example: tuple[int, float, float] | None = None

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.entries + other.entries,
            max(self.error, other.error),
            self.off + other.off,
            self.threshold_flips + other.threshold_flips,
            self.sign_flips + other.sign_flips,
            self.wrong + other.wrong,
            self.example or other.example,
        )


@dataclass(frozen=True)
class Restated:
    """One output tensor of a method that is restated here.

    Args:
        name: of the tensor, and ``seed`` of the recipe: the draws hang on them.
        parameters: what the recipe gives the method.
        base: θ_0, in the recipe's dtype.
        models: the others, likewise.
        arithmetic: the dtype that the merge computes in.
    """

    name: str
    seed: int
    parameters: Parameters
    base: Exact
    models: Sequence[Exact]
    arithmetic: torch.dtype


def pieces(merged: Restated) -> Iterator[Piece]:
    """Yield the entries of a tensor, run by run, with nothing said of which stay."""
    for start in range(0, merged.base.tensor.numel(), PIECE):
        kept = [Kept()] * len(merged.models)
        yield _piece(merged, kept, start, min(start + PIECE, merged.base.tensor.numel()))


def compare(merged: Restated, stored: torch.Tensor, workers: Workers) -> Comparison:
    """Recompute a tensor, and compare it with the stored one of the same shape."""
    size = stored.numel()
    kept = [_kept(merged, number, stored.shape) for number in range(len(merged.models))]
    flat = stored.reshape(-1)

    def part(index: int) -> Comparison:
        start, stop = index * PIECE, min((index + 1) * PIECE, size)
        return _compare_piece(merged, _piece(merged, kept, start, stop), flat[start:stop], start)

    return sum(workers.map(part, -(-size // PIECE)), Comparison(0))


def compare_whole(
    expected: torch.Tensor,
    again: Callable[[], torch.Tensor],
    inputs: Sequence[Exact],
    stored: torch.Tensor,
    coefficient: float,
) -> Comparison:
    """Compare with a result that was computed whole, whose roundings nobody counted.

    Args:
        expected: the result in float64.
        again: computes it in the merge's own arithmetic, where a method that selects entries
            may select others; asked only where the first result does not fit.
        inputs: what it was computed from.
        stored: the tensor.
        coefficient: λ.
    """
    size = stored.numel()
    result = Comparison(0)
    other: torch.Tensor | None = None
    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        widest = torch.zeros(stop - start, dtype=torch.float64)
        for one in inputs:
            values, error = one.piece(start, stop)
            widest = torch.maximum(widest, values.abs() + error)
        bound = UNCOUNTED * rounding(torch.float32) * (1 + abs(coefficient)) * widest
        piece = stored.reshape(-1)[start:stop]
        judged = _Judged(piece, expected.reshape(-1)[start:stop].double(), bound)
        wrong = judged.wrong
        if bool(wrong.any()):
            other = again() if other is None else other
            alternative = other.reshape(-1)[start:stop].double()
            wrong = wrong & _Judged(piece, alternative, bound).wrong
        result += judged.result(wrong, start, int((judged.wrong & ~wrong).sum()))
    return result


def compare_equal(expected: torch.Tensor, stored: torch.Tensor) -> Comparison:
    """Compare integers, which are copied and not merged."""
    wrong = (expected != stored).reshape(-1)
    count = int(wrong.sum())
    example = _example(wrong, stored.reshape(-1), expected.reshape(-1))
    return Comparison(stored.numel(), float(count > 0), wrong=count, example=example)


def _example(
    wrong: torch.Tensor, stored: torch.Tensor, expected: torch.Tensor, start: int = 0
) -> tuple[int, float, float] | None:
    """Return the first wrong entry: its flat index, what is stored, and what was computed."""
    if not bool(wrong.any()):
        return None
    place = int(wrong.nonzero()[0])
    return start + place, float(stored[place]), float(expected[place])


def _kept(merged: Restated, number: int, shape: Sequence[int]) -> Kept:
    kind, density = RESTATED[merged.parameters.method][0], merged.parameters.densities[number]
    if not kind or density >= 1:
        return Kept()
    size, unit = merged.base.tensor.numel(), rounding(merged.arithmetic)
    delta = torch.empty(size, dtype=torch.float64)
    exact = merged.base.error is None and merged.models[number].error is None
    error = None if exact else torch.empty_like(delta)
    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        base, base_error = merged.base.piece(start, stop)
        values, own = merged.models[number].piece(start, stop)
        torch.sub(values, base, out=delta[start:stop])
        if error is not None:
            torch.add(own, base_error, out=error[start:stop])
    key = draws_key(merged.seed, merged.name, number)
    return keep(merged.parameters, number, delta, error, shape, key, unit)


def _piece(merged: Restated, kept: Sequence[Kept], start: int, stop: int) -> Piece:
    base, base_error = merged.base.piece(start, stop)
    deltas, errors = [], []
    for model in merged.models:
        values, own = model.piece(start, stop)
        delta = values - base
        deltas.append(delta)
        errors.append(rounding(merged.arithmetic) * delta.abs() + own + base_error)
    return Piece(base, base_error, deltas, errors, [one.at(slice(start, stop)) for one in kept])


class _Judged:
    """Stored entries, what they should be, and how far off the two may be."""

    def __init__(self, stored: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
        self.stored, self.expected = stored.double(), expected
        unit, slack = spacing(expected, stored.dtype), MARGIN * bound
        gap = (self.stored - expected).abs()
        # What is beyond the output's dtype is infinity in both.
        same = self.stored == expected.to(stored.dtype).double()
        right = same | (gap <= unit / 2 + slack)
        self.wrong = ~right
        self.off = right & ~same
        self.error = torch.where(same, gap.clamp_max(unit), gap) / torch.maximum(unit, 2 * slack)

    def result(
        self, wrong: torch.Tensor, start: int, thresholds: int = 0, signs: int = 0
    ) -> Comparison:
        """Return the comparison, where ``wrong`` are those that remained so."""
        counted = self.error[~self.wrong | wrong]
        return Comparison(
            entries=len(self.stored),
            error=float(counted.max()) if len(counted) else 0.0,
            off=int(self.off.sum()),
            threshold_flips=thresholds,
            sign_flips=signs,
            wrong=int(wrong.sum()),
            example=_example(wrong, self.stored, self.expected, start),
        )


def _compare_piece(merged: Restated, piece: Piece, stored: torch.Tensor, start: int) -> Comparison:
    expected, bound, _ = outcome(merged.parameters, piece, piece.shares(), merged.arithmetic)
    judged = _Judged(stored, expected, bound)
    wrong = judged.wrong
    if not bool(wrong.any()):
        return judged.result(wrong, start)
    places = wrong.nonzero().view(-1)
    some, entries = piece.at(places), stored[places]
    kinds = torch.zeros(len(places), dtype=torch.int8)  # 1: a sign explains it, 2: a threshold
    for kind, shares in _alternatives(some):
        for turned, flipped in product((False, True), repeat=2):
            expected, bound, allowed = outcome(
                merged.parameters,
                some,
                shares,
                merged.arithmetic,
                turned=turned,
                flipped=flipped,
            )
            fits = ~_Judged(entries, expected, bound).wrong & (kinds == 0)
            kinds[fits & allowed] = 2 if flipped else kind
        if bool((kinds > 0).all()):
            break
    remaining = wrong.clone()
    remaining[places[kinds > 0]] = False
    return judged.result(remaining, start, int((kinds == 2).sum()), int((kinds == 1).sum()))


def _alternatives(piece: Piece) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield what roundings might have made of the shares, in at most two models at once."""
    shares = piece.shares()
    changes: list[tuple[int, int, torch.Tensor]] = []  # kind, model, its share
    for number, (share, one) in enumerate(zip(shares, piece.kept, strict=True)):
        vague = piece.deltas[number].abs() <= piece.errors[number]
        vague &= piece.errors[number] > 0
        if bool(vague.any()):
            changes += [
                (1, number, torch.where(vague, factor * share, share)) for factor in (0.0, -1.0)
            ]
        if one.doubtful is not None and bool(one.doubtful.any()):
            changes.append((2, number, torch.where(one.doubtful, 1 - share, share)))
    yield 1, shares
    chosen = [(change,) for change in changes]
    pairs = [pair for pair in combinations(changes, 2) if pair[0][1] != pair[1][1]]
    for picked in sorted([*chosen, *pairs], key=lambda some: max(one[0] for one in some)):
        changed = list(shares)
        for _, number, share in picked:
            changed[number] = share
        yield max(one[0] for one in picked), changed


def uses_draws(method: str, densities: Mapping[object, float]) -> bool:
    """Tell whether a method's results hang on random draws."""
    drawn = RESTATED.get(method, ("", False))[0] in DRAWN
    return drawn and any(0 < density < 1 for density in densities.values())
