"""Weighted task vectors become one, with or without TIES' sign election."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def weighted_sum(deltas: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Return Σ factor·delta, in the memory of the first delta.

    Args:
        deltas: the task vectors, of one shape and dtype.
        factors: one per task vector.
    """
    total = deltas[0].mul_(factors[0])
    for delta, factor in zip(deltas[1:], factors[1:], strict=True):
        total.add_(delta, alpha=factor)
    return total


def elected_sum(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    by_count: bool,
    normalize: bool,
    zero_positive: bool = True,
) -> torch.Tensor:
    """Return the sum, entry by entry, of the task vectors that have the elected sign.

    The elected sign is that of the sum of the task vectors, or of their signs. A zero has no sign
    and never agrees.

    Args:
        deltas: the sparsified task vectors times their weights, of one shape, fp32 or
            float64; overwritten.
        weights: w, one per task vector.
        by_count: elect by the sum of the signs.
        normalize: divide by the sum of the weights of those that agree, if it is not 0.
        zero_positive: whether a sum of zero elects +.

    Source: TIES-Merging, arXiv 2306.01708, §3; sign by count is mergekit's.
    """
    words = torch.int64 if deltas[0].dtype == torch.float64 else torch.int32
    vote = _vote(deltas, by_count=by_count)
    elected = vote.view(words)
    if not zero_positive:
        # The pattern of +0 alone becomes a negative one, whatever a process does to subnormals.
        elected.sub_(elected.eq(0).to(words))
    # Only the sign bit, as a pattern to flip signs with: a sum of zero is +0 (−0 needs all −0).
    elected.bitwise_and_(torch.iinfo(words).min)
    for delta in deltas:
        delta.view(words).bitwise_xor_(elected)
        delta.clamp_min_(0)
    if not normalize:
        mixed = deltas[0]
        for delta in deltas[1:]:
            mixed.add_(delta)
    else:
        mixed = _sum(deltas)
        divisor = deltas[0].gt_(0).mul_(weights[0])
        for delta, weight in zip(deltas[1:], weights[1:], strict=True):
            divisor.add_(delta.gt_(0), alpha=weight)
        divisor.add_(divisor.clone().eq_(0))
        mixed.div_(divisor)
    mixed.view(words).bitwise_xor_(elected)
    return mixed


def _vote(deltas: Sequence[torch.Tensor], *, by_count: bool) -> torch.Tensor:
    if not by_count:
        return _sum(deltas)
    votes = torch.sign(deltas[0])
    for delta in deltas[1:]:
        votes.add_(torch.sign(delta))
    return votes


def _sum(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum in memory of its own."""
    if len(deltas) == 1:
        return deltas[0].clone()
    total = torch.add(deltas[0], deltas[1])
    for delta in deltas[2:]:
        total.add_(delta)
    return total
