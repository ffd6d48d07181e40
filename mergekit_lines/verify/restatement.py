"""The merges' formulas written out again in float64, to hold the kernels' results against.

Along with every number goes a bound of what its roundings in the merge's own arithmetic may
amount to, and along with every sign that is elected whether that arithmetic may have elected the
other.

Source: TIES-Merging, arXiv 2306.01708; LiNeS, arXiv 2410.17146.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergekit_lines.verify.masks import Kept
from mergekit_lines.verify.parameters import RESTATED, Parameters

# A norm over a whole tensor is a sum of sums: roundings of fp32, about these many of them.
NORM_ROUNDINGS = 16


def rounding(dtype: torch.dtype) -> float:
    """Return the largest relative error of one rounding in the arithmetic's dtype."""
    # Where the merge was in float64, so is what it is held against.
    return 2.0**-24 if dtype == torch.float32 else 2.0**-51


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
            [one.at(places) for one in self.kept],
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
    flipped: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return θ_0 + λ·(M − θ_0), the bound of its error, and where roundings may have made it so.

    That is everywhere where nothing is turned or flipped.

    Args:
        parameters: the tensor's.
        piece: the entries.
        shares: per model, 1 where an entry stays and 0 where not; −1 turns its sign.
        arithmetic: the dtype of the merge's own arithmetic.
        turned: whether to elect the other sign everywhere.
        flipped: whether to decide the other way everywhere whether enough models agree.
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
    allowed = torch.ones_like(piece.base, dtype=torch.bool)
    weights = torch.tensor(list(parameters.weights), dtype=arithmetic)
    if RESTATED[parameters.method][1]:
        # Only where there is anything to elect from.
        doubtful = (total.abs() <= bound) & (sizes > 0)
        for term, own in zip(terms, bounds, strict=True):
            doubtful |= (term.abs() <= own) & (own > 0)
        allowed &= doubtful | (not turned)
        positive = total >= 0 if parameters.zero_sign > 0 else total > 0
        total, sizes, bound, divisor = _elected(terms, bounds, weights, positive != turned)
        bound += count * unit * sizes
        divisor[divisor == 0] = 1
    else:
        allowed &= not turned
        # One number for all entries; mergekit's arithmetic tells whether it is near zero.
        divisor = weights.sum()
        divisor = torch.ones_like(divisor) if abs(float(divisor)) < 1e-8 else divisor
    if parameters.min_agree:
        stays, doubtful = _agreement(parameters, piece, total, bound, unit)
        allowed &= doubtful | (not flipped)
        total = total * (stays != flipped)
        bound = bound * (stays != flipped)
    else:
        allowed &= not flipped
    scale = torch.tensor(parameters.coefficient * parameters.scale, dtype=torch.float64)
    if parameters.normalize:
        scale = scale / divisor.double()
    scaled = total * scale
    result = piece.base + scaled
    # Four roundings on the way (division, two products, the last sum), and of the base's part.
    bound = bound * scale.abs() + 4 * unit * scaled.abs() + unit * result.abs() + piece.base_error
    return result, bound, allowed


def _agreement(
    parameters: Parameters,
    piece: Piece,
    total: torch.Tensor,
    bound: torch.Tensor,
    unit: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where enough models want an entry of the sum, and where roundings may decide that.

    A model does where |s| > λ_t·|Σ − s|; s is its whole task vector times its weight.

    Args:
        parameters: the tensor's.
        piece: the entries.
        total: Σ.
        bound: of its error.
        unit: relative error of one rounding in the merge's arithmetic.

    Source: arXiv 2405.07813, Eq. 5 and 6.
    """
    votes, least, most = (torch.zeros_like(total) for _ in range(3))
    for delta, error, weight, tall_lambda in zip(
        piece.deltas, piece.errors, parameters.weights, parameters.tall_lambdas, strict=True
    ):
        share = delta * weight
        own = error * abs(weight) + unit * share.abs()
        rest = (total - share).abs() * tall_lambda
        gap = share.abs() - rest
        # λ_t is rounded, and so are the difference and the product.
        slack = own + tall_lambda * (own + bound) + 3 * unit * rest
        votes += gap > 0
        least += gap > slack
        most += (gap >= -slack) & (share.abs() + own > 0)
    needed = parameters.min_agree
    return votes >= needed, (least >= needed) != (most >= needed)


def _elected(
    terms: Sequence[torch.Tensor],
    bounds: Sequence[torch.Tensor],
    weights: torch.Tensor,
    positive: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sums of the terms of the elected sign, of their sizes, bounds and weights."""
    total, sizes, bound = (torch.zeros(positive.shape, dtype=torch.float64) for _ in range(3))
    divisor = torch.zeros(positive.shape, dtype=weights.dtype)
    for term, own, weight in zip(terms, bounds, weights, strict=True):
        agrees = ((term > 0) & positive) | ((term < 0) & ~positive)
        total += term * agrees
        sizes += term.abs() * agrees
        bound += own * agrees
        # The weights are rounded to the arithmetic's dtype first: that is mergekit's method.
        divisor += weight * agrees
    return total, sizes, bound, divisor


def spacing(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance between neighbours in ``dtype`` at these float64 numbers."""
    facts = torch.finfo(dtype)
    least = torch.frexp(torch.tensor(facts.tiny, dtype=torch.float64)).exponent
    exponent = torch.frexp(values).exponent
    exponent = torch.where(values == 0, least, exponent).clamp_min(least) - 1
    return torch.ldexp(torch.full_like(values, facts.eps), exponent)
