"""The merges' formulas written out again in float64, to hold the kernels' results against.

Nothing here comes from the kernels but the random draws, which are a definition and no result.
Along with every number goes a bound of what its roundings in the merge's own arithmetic may
amount to, and along with every decision (to keep an entry, to elect a sign) whether that
arithmetic may have decided otherwise.

Source: TIES-Merging, arXiv 2306.01708; DARE, arXiv 2311.03099; Model Breadcrumbs, arXiv
2312.06795; DELLA, arXiv 2406.11617; LiNeS, arXiv 2410.17146; mergekit's choices of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergekit_lines.kernels.draws import Draws

# Sparsification and whether a sign is elected, by mergekit's name of the method.
METHODS: dict[str, tuple[str, bool]] = {
    "passthrough": ("", False),  # lines_postprocess: the merge is the model itself
    "task_arithmetic": ("", False),
    "ties": ("magnitude", True),
    "dare_linear": ("random", False),
    "dare_ties": ("random", True),
    "breadcrumbs": ("outliers", False),
    "breadcrumbs_ties": ("outliers", True),
    "della_linear": ("rows", False),
    "della": ("rows", True),
}
DRAWN = ("random", "rows")
# A norm over a whole tensor is a sum of sums: roundings of fp32, about these many of them.
NORM_ROUNDINGS = 16
_RUN = 1 << 20
_WORD = 1 << 32


def rounding(dtype: torch.dtype) -> float:
    """Return the largest relative error of one rounding in the arithmetic's dtype."""
    # Where the merge was in float64, so is what it is held against.
    return 2.0**-24 if dtype == torch.float32 else 2.0**-51


@dataclass(frozen=True)
class Parameters:
    """What the recipe gives a method for one tensor, the lists by model.

    Attributes:
        method: a key of :data:`METHODS`.
        weights: w.
        densities: share of entries to keep.
        gammas: breadcrumbs: share of the largest to drop.
        epsilons: DELLA: half the range of the probabilities.
        rescale: match each task vector's L1 norm from before.
        normalize: divide by the sum of the weights.
        scale: mergekit's ``lambda``.
        coefficient: λ of LiNeS.
    """

    method: str
    weights: Sequence[float]
    densities: Sequence[float]
    gammas: Sequence[float]
    epsilons: Sequence[float]
    rescale: bool
    normalize: bool
    scale: float
    coefficient: float


@dataclass
class Kept:
    """What stays of one model's task vector.

    Attributes:
        stays: per entry, whether it does; None where all do.
        doubtful: per entry, whether roundings may decide that; None where they cannot.
        factor: what the entries are multiplied by, to match the norm from before.
    """

    stays: torch.Tensor | None = None
    doubtful: torch.Tensor | None = None
    factor: float = 1.0


def keep(
    parameters: Parameters,
    model: int,
    delta: torch.Tensor,
    error: torch.Tensor | None,
    shape: Sequence[int],
    key: bytes,
    unit: float,
) -> Kept:
    """Sparsify one task vector.

    Args:
        parameters: the tensor's.
        model: number of the model.
        delta: its task vector, 1-D, float64; overwritten.
        error: bounds of its entries' errors beyond the rounding of the difference; None: exact.
        shape: of the tensor.
        key: what seeds the draws.
        unit: relative error of one rounding in the merge's arithmetic.
    """
    kind, density = METHODS[parameters.method][0], parameters.densities[model]
    if not kind or density >= 1:
        return Kept()
    size = delta.numel()
    if density <= 0 or not size:
        return Kept(torch.zeros(size, dtype=torch.bool))
    magnitude = delta.abs_()
    if kind == "magnitude":
        kept = _largest(magnitude, error, max(1, int(density * size)), unit)
    elif kind == "outliers":
        wanted, top = int(density * size), int(parameters.gammas[model] * size)
        bottom = max(0, size - wanted - top)
        kept = _largest(magnitude, error, size - bottom, unit)
        kept = _without(kept, _largest(magnitude, error, size - min(size, bottom + wanted), unit))
    elif kind == "random":
        kept = _below(_uniform(key, 0, size), torch.tensor(density, dtype=torch.float64))
    else:
        kept = _by_rows(magnitude, error, shape, density, parameters.epsilons[model], key, unit)
    if parameters.rescale and kept.stays is not None:
        before = float(magnitude.sum())
        parts = zip(torch.split(magnitude, _RUN), torch.split(kept.stays, _RUN), strict=True)
        after = sum(float(part[stays].sum()) for part, stays in parts)
        if before >= 1e-7 and after >= 1e-7:  # mergekit matches no norm below
            kept.factor = before / after
    return kept


def _largest(magnitude: torch.Tensor, error: torch.Tensor | None, rank: int, unit: float) -> Kept:
    """Keep the ``rank`` largest; of equals the first."""
    size = magnitude.numel()
    if rank <= 0 or rank >= size:
        return Kept(torch.full((size,), rank > 0))

    def nth(values: torch.Tensor) -> torch.Tensor:
        return values.kthvalue(size - rank + 1).values

    limit = nth(magnitude)
    stays = magnitude > limit
    equals = (magnitude == limit).nonzero().view(-1)
    stays[equals[: rank - int(stays.sum())]] = True
    if error is None:
        # Neither the entry's own rounding nor that of the limit.
        low, high = limit * (1 - 4 * unit), limit * (1 + 4 * unit)
        doubtful = (magnitude >= low) & (magnitude <= high)
    else:
        slack = 2 * unit * magnitude + error
        low, high = nth(magnitude - slack), nth(magnitude + slack)
        doubtful = (magnitude + slack >= low) & (magnitude - slack <= high)
    if error is None and bool((magnitude[doubtful] == limit).all()):
        # Differences that are equal are rounded alike: which of them stay is settled.
        return Kept(stays)
    return Kept(stays, doubtful)


def _without(kept: Kept, dropped: Kept) -> Kept:
    assert kept.stays is not None and dropped.stays is not None  # noqa: S101, PT018 - both are cuts
    doubts = [one for one in (kept.doubtful, dropped.doubtful) if one is not None]
    doubtful = None
    if doubts:
        doubtful = doubts[0] if len(doubts) == 1 else doubts[0] | doubts[1]
    return Kept(kept.stays & ~dropped.stays, doubtful)


def draws_key(seed: int, name: str, model: int) -> bytes:
    """Return what seeds a model's draws for a tensor."""
    return hashlib.sha256(f"{seed}\0{name}\0{model}".encode()).digest()


def _uniform(key: bytes, start: int, count: int) -> torch.Tensor:
    """Return the draws of the entries from ``start`` on, in [0, 1)."""
    result = torch.empty(count, dtype=torch.float64)
    for first in range(0, count, _RUN):
        run = result[first : first + _RUN]
        drawn = Draws(start + first, run.numel(), torch.device("cpu")).draw(key)
        run.copy_(drawn).add_(_WORD / 2).div_(_WORD)
    return result


def _below(draws: torch.Tensor, odds: torch.Tensor) -> Kept:
    # Draws are whole multiples of 2⁻³², so that is how exactly probabilities are met.
    doubtful = (draws - odds).abs_() <= 1 / _WORD
    return Kept(draws < odds, doubtful if bool(doubtful.any()) else None)


def _by_rows(
    magnitude: torch.Tensor,
    error: torch.Tensor | None,
    shape: Sequence[int],
    density: float,
    epsilon: float,
    key: bytes,
    unit: float,
) -> Kept:
    """Keep with probabilities that rise with the rank along dimension 1; equals rank by index."""
    rows, length = (shape[0], shape[1]) if len(shape) > 1 else (1, magnitude.numel())
    rest = magnitude.numel() // (rows * length)
    stays = torch.empty(magnitude.numel(), dtype=torch.bool)
    doubtful = torch.empty_like(stays)
    row = length * rest
    step = max(1, _RUN // row)
    for first in range(0, rows, step):
        run = slice(first * row, min(first + step, rows) * row)

        def along(values: torch.Tensor, run: slice = run) -> torch.Tensor:
            return values[run].view(-1, length, rest).transpose(1, 2)

        draws = _uniform(key, run.start, run.stop - run.start).view(-1, length, rest)
        slack = 2 * unit * along(magnitude)
        exact = error is None
        if error is not None:
            slack += along(error)
        ranks = _ranks(along(magnitude).contiguous(), slack.contiguous(), exact=exact)
        odds = [
            density - epsilon + rank * (2 * epsilon / (length - 1))
            if length > 1
            else torch.full_like(slack, density)
            for rank in ranks
        ]
        certain, lower, upper = (_below(draws.transpose(1, 2), probability) for probability in odds)
        unsure = torch.zeros_like(slack, dtype=torch.bool)
        for one in (certain, lower, upper):
            if one.doubtful is not None:
                unsure |= one.doubtful
        assert lower.stays is not None and upper.stays is not None  # noqa: S101, PT018 - of _below
        unsure |= lower.stays != upper.stays
        assert certain.stays is not None  # noqa: S101 - likewise
        stays[run] = certain.stays.transpose(1, 2).reshape(-1)
        doubtful[run] = unsure.transpose(1, 2).reshape(-1)
    return Kept(stays, doubtful if bool(doubtful.any()) else None)


def _ranks(
    rows: torch.Tensor, slack: torch.Tensor, *, exact: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each entry's rank along the last dimension, and the lowest and highest possible."""
    ordered, order = rows.sort(dim=-1, stable=True)
    places = torch.arange(rows.shape[-1], dtype=torch.float64).expand_as(rows)
    rank = torch.empty_like(rows).scatter_(-1, order, places)
    low = torch.searchsorted(ordered, rows - slack)
    high = torch.searchsorted(ordered, rows + slack, right=True) - 1
    if exact:  # equals are rounded alike, so the index settles their order
        settled = ordered.gather(-1, low) == ordered.gather(-1, high)
        return rank, torch.where(settled, rank, low), torch.where(settled, rank, high)
    return rank, low.double(), high.double()


@dataclass(frozen=True)
class Piece:
    """A run of entries: base and task vectors in float64, with bounds of their errors."""

    base: torch.Tensor
    base_error: torch.Tensor
    deltas: Sequence[torch.Tensor]
    errors: Sequence[torch.Tensor]
    kept: Sequence[Kept]  # of these entries

    def at(self, places: torch.Tensor) -> Piece:
        """Return the entries at these places alone."""
        return Piece(
            self.base[places],
            self.base_error[places],
            [delta[places] for delta in self.deltas],
            [error[places] for error in self.errors],
            [
                Kept(
                    None if one.stays is None else one.stays[places],
                    None if one.doubtful is None else one.doubtful[places],
                    one.factor,
                )
                for one in self.kept
            ],
        )

    def shares(self) -> list[torch.Tensor]:
        """Return per model 1 for the entries that stay and 0 for the others."""
        return [
            torch.ones_like(self.base) if one.stays is None else one.stays.double()
            for one in self.kept
        ]


def outcome(
    parameters: Parameters,
    piece: Piece,
    shares: Sequence[torch.Tensor],
    arithmetic: torch.dtype,
    *,
    turned: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return θ_0 + λ·(M − θ_0), the bound of its error, and where a sign was hard to elect.

    Args:
        parameters: the tensor's.
        piece: the entries.
        shares: per model, 1 where an entry stays and 0 where not; −1 turns its sign.
        arithmetic: the dtype of the merge's own arithmetic.
        turned: whether to elect the other sign everywhere.
    """
    unit, count = rounding(arithmetic), len(shares)
    terms, bounds = [], []
    for number, (delta, error, share) in enumerate(
        zip(piece.deltas, piece.errors, shares, strict=True)
    ):
        factor = parameters.weights[number] * piece.kept[number].factor
        term = delta * share * factor
        matched = NORM_ROUNDINGS if piece.kept[number].factor != 1 else 0
        bounds.append(error * share.abs() * abs(factor) + (3 + matched) * unit * term.abs())
        terms.append(term)
    total = sum(terms, torch.zeros_like(piece.base))
    sizes = sum((term.abs() for term in terms), torch.zeros_like(piece.base))
    bound = sum(bounds, count * unit * sizes)
    doubtful = torch.zeros_like(piece.base, dtype=torch.bool)
    weights = torch.tensor(list(parameters.weights), dtype=arithmetic)
    if METHODS[parameters.method][1]:
        # Only where there is anything to elect from.
        doubtful = (total.abs() <= bound) & (sizes > 0)
        positive = (total >= 0) != turned
        divisor = torch.zeros(piece.base.shape, dtype=arithmetic)
        total, sizes, bound = (torch.zeros_like(piece.base) for _ in range(3))
        for term, own, weight in zip(terms, bounds, weights, strict=True):
            agrees = ((term > 0) & positive) | ((term < 0) & ~positive)
            doubtful |= (term.abs() <= own) & (own > 0)
            total += term * agrees
            sizes += term.abs() * agrees
            bound += own * agrees
            # The weights are rounded to the arithmetic's dtype first: that is mergekit's method.
            divisor += weight * agrees
        bound += count * unit * sizes
        divisor[divisor == 0] = 1
    else:
        # One number for all entries; mergekit's arithmetic tells whether it is near zero.
        divisor = weights.sum()
        divisor = torch.ones_like(divisor) if abs(float(divisor)) < 1e-8 else divisor
    scale = torch.tensor(parameters.coefficient * parameters.scale, dtype=torch.float64)
    if parameters.normalize:
        scale = scale / divisor.double()
    scaled = total * scale
    result = piece.base + scaled
    # Four roundings on the way (division, two products, the last sum), and of the base's part.
    bound = bound * scale.abs() + 4 * unit * scaled.abs() + unit * result.abs() + piece.base_error
    return result, bound, doubtful


def spacing(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance between neighbours in ``dtype`` at these float64 numbers."""
    facts = torch.finfo(dtype)
    least = torch.frexp(torch.tensor(facts.tiny, dtype=torch.float64)).exponent
    exponent = torch.frexp(values).exponent
    exponent = torch.where(values == 0, least, exponent).clamp_min(least) - 1
    return torch.ldexp(torch.full_like(values, facts.eps), exponent)
