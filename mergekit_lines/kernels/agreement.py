"""Consensus merging: a sum of task vectors, kept where enough of the models want it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergekit_lines.kernels.draws import mask
from mergekit_lines.kernels.merge import Merge, State
from mergekit_lines.kernels.pieces import Pieces


def agreed(
    total: torch.Tensor,
    shares: Sequence[torch.Tensor],
    tall_lambdas: Sequence[float],
    min_agree: int,
) -> torch.Tensor:
    """Return the sum where at least ``min_agree`` models want it, and 0 elsewhere; in place.

    Model t wants an entry where |s_t| > λ_t·|Σ − s_t|: its own share of the sum is not small
    beside what the others add.

    Args:
        total: Σ, 1-D, fp32 or float64.
        shares: s_t, each model's whole task vector times its weight; overwritten.
        tall_lambdas: λ_t, one per model, above 0.
        min_agree: how many models have to want an entry.

    Source: TALL masks and consensus merging, arXiv 2405.07813, Eq. 5 and 6.
    """
    rest, votes = torch.empty_like(total), torch.zeros_like(total)
    for share, tall_lambda in zip(shares, tall_lambdas, strict=True):
        torch.sub(total, share, out=rest)
        votes.add_(share.abs_().gt_(rest.abs_().mul_(tall_lambda)))
    kept = torch.int64 if total.dtype == torch.float64 else torch.int32
    mask(total, votes.ge_(min_agree).to(kept))
    return total


@dataclass(frozen=True)
class Agreement:
    """M − θ_0 of consensus merging, for one tensor's parameters.

    The sum Σ that the masks look at is not scaled: ``lambda`` comes last. A model's share is its
    whole task vector, untrimmed, times its weight, so that equal weights of any size give the
    paper's masks.

    Attributes:
        merge: gives Σ.
        tall_lambdas: λ_t, one per model.
        min_agree: how many models have to want an entry.
        scale: what the kept entries are multiplied by.

    Source: arXiv 2405.07813; its code compares untrimmed task vectors, TIES or not.
    """

    merge: Merge
    tall_lambdas: tuple[float, ...]
    min_agree: int
    scale: float = 1.0

    @property
    def linear(self) -> bool:
        """Whether the result is a weighted sum of whole task vectors."""
        return False

    @property
    def row_aligned(self) -> bool:
        """Whether the pieces have to be whole slices along the first dimension."""
        return self.merge.row_aligned

    def supports(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape can be merged in pieces."""
        return self.merge.supports(shape)

    def beside(self, shape: tuple[int, ...], width: int) -> int:
        """Return the bytes that the sum holds of a tensor beside its pieces."""
        return self.merge.beside(shape, width)

    def prepare(self, pieces: Pieces, keys: Sequence[bytes]) -> State:
        """Return what the sum has to know of the whole tensor."""
        return self.merge.prepare(pieces, keys)

    def task_vector(
        self,
        pieces: Pieces,
        state: State,
        index: int,
        base: torch.Tensor,
        models: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return M − θ_0 of one piece, 1-D, in the dtype of the arithmetic."""
        total = self.merge.task_vector(pieces, state, index, base, models)
        # In the memory of a model's piece, which is read again: a copy of each would be N more.
        total = total.clone()
        base, models = pieces.load(index)
        shares = [model.sub_(base) for model in models]
        for share, weight in zip(shares, self.merge.weights, strict=True):
            if weight != 1:
                share.mul_(weight)
        agreed(total, shares, self.tall_lambdas, self.min_agree)
        return total if self.scale == 1 else total.mul_(self.scale)
