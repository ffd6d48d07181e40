"""Which entries of a task vector a method keeps, decided again in float64.

Along with every decision goes whether roundings in the merge's own arithmetic may have decided
otherwise. Nothing here comes from the kernels but the random draws, which are a definition and no
result.

Source: TIES-Merging, arXiv 2306.01708; DARE, arXiv 2311.03099; Model Breadcrumbs, arXiv
2312.06795; DELLA, arXiv 2406.11617; mergekit's choices of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from mergekit_lines.kernels.draws import Draws
from mergekit_lines.verify.parameters import RESTATED, Parameters

DRAWN = ("random", "rows")
_AT_ONCE = 1 << 20  # entries
_WORD = 1 << 32


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

    def at(self, places: torch.Tensor | slice) -> Kept:
        """Return the same of the entries at these places alone."""
        return Kept(
            None if self.stays is None else self.stays[places],
            None if self.doubtful is None else self.doubtful[places],
            self.factor,
        )


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
    kind, density = RESTATED[parameters.method][0], parameters.densities[model]
    if not kind or density >= 1:
        return Kept()
    size = delta.numel()
    if parameters.floors and size:
        return _reaching(delta.abs_(), error, parameters.floors[model], unit)
    if density <= 0 or not size:
        return Kept(torch.zeros(size, dtype=torch.bool))
    magnitude = delta.abs_()
    if kind == "magnitude":
        kept = _largest(magnitude, error, max(1, int(density * size)), unit)
    elif kind == "outliers":
        count, top = int(density * size), int(parameters.gammas[model] * size)
        bottom = max(0, size - count - top)
        kept = _largest(magnitude, error, size - bottom, unit)
        kept = _without(kept, _largest(magnitude, error, size - min(size, bottom + count), unit))
    elif kind == "random":
        kept = _where_doubtful(*_below(_uniform(key, 0, size), density))
    else:
        kept = _by_rows(magnitude, error, shape, density, parameters.epsilons[model], key, unit)
    if parameters.rescale and parameters.by_share:
        kept.factor = 1 / density
    elif parameters.rescale and kept.stays is not None:
        before = float(magnitude.sum())
        parts = zip(
            torch.split(magnitude, _AT_ONCE), torch.split(kept.stays, _AT_ONCE), strict=True
        )
        after = sum(float(part[stays].sum()) for part, stays in parts)
        if before >= 1e-7 and after >= 1e-7:  # mergekit matches no norm below
            kept.factor = before / after
    return kept


def _reaching(
    magnitude: torch.Tensor, error: torch.Tensor | None, floor: float, unit: float
) -> Kept:
    """Keep what reaches a magnitude that was found over the whole model."""
    slack = 2 * unit * magnitude if error is None else 2 * unit * magnitude + error
    doubtful = (magnitude + slack >= floor) & (magnitude - slack < floor)
    if error is None and bool((magnitude[doubtful] == floor).all()):
        return Kept(magnitude >= floor)  # it is a number of the merge's arithmetic, met exactly
    return Kept(magnitude >= floor, doubtful)


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
    doubtful = reduce(torch.logical_or, doubts) if doubts else None
    return Kept(kept.stays & ~dropped.stays, doubtful)


def draws_key(seed: int, name: str, model: int) -> bytes:
    """Return what seeds a model's draws for a tensor."""
    return hashlib.sha256(f"{seed}\0{name}\0{model}".encode()).digest()


def _uniform(key: bytes, start: int, count: int) -> torch.Tensor:
    """Return the draws of the entries from ``start`` on, in [0, 1)."""
    result = torch.empty(count, dtype=torch.float64)
    for first in range(0, count, _AT_ONCE):
        piece = result[first : first + _AT_ONCE]
        drawn = Draws(start + first, piece.numel(), torch.device("cpu")).draw(key)
        piece.copy_(drawn).add_(_WORD / 2).div_(_WORD)
    return result


def _below(draws: torch.Tensor, odds: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which draws are below, and for which that is doubtful."""
    # Draws are whole multiples of 2⁻³², so that is how exactly probabilities are met.
    return draws < odds, (draws - odds).abs_() <= 1 / _WORD


def _where_doubtful(stays: torch.Tensor, doubtful: torch.Tensor) -> Kept:
    return Kept(stays, doubtful if bool(doubtful.any()) else None)


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
    step = max(1, _AT_ONCE // row)
    for first in range(0, rows, step):
        piece = slice(first * row, min(first + step, rows) * row)

        def along(values: torch.Tensor, piece: slice = piece) -> torch.Tensor:
            return values[piece].view(-1, length, rest).transpose(1, 2)

        draws = along(_uniform(key, piece.start, piece.stop - piece.start), slice(None))
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
        below, vague = zip(*(_below(draws, one) for one in odds), strict=True)
        certain, lower, upper = below
        unsure = reduce(torch.logical_or, [*vague, lower != upper])
        stays[piece] = certain.transpose(1, 2).reshape(-1)
        doubtful[piece] = unsure.transpose(1, 2).reshape(-1)
    return _where_doubtful(stays, doubtful)


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
