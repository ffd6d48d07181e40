"""The cuts of ``trim: model``, held against a count of all entries in float64.

Nothing is searched for: of the magnitude that a report names it is counted how many entries are
above it and how many reach it, and of the sign how the entries vote.

Source: TIES-Merging, arXiv 2306.01708, as its authors' code merges flattened task vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mergekit_lines.errors import LinesError
from mergekit_lines.files import REPORT
from mergekit_lines.verify.parameters import Parameters
from mergekit_lines.verify.restatement import Piece, rounding


@dataclass
class _Count:
    """Of one model: its entries, those surely above its cut, and those that may reach it."""

    density: float
    entries: int = 0
    above: int = 0
    reaching: int = 0


@dataclass
class Cuts:
    """The cuts of a report, by its names of the models.

    Attributes:
        magnitudes: the least that stays.
        zero_sign: elected where a sum is 0; 0 stands for −.
    """

    magnitudes: Mapping[str, float]
    zero_sign: int
    _counts: dict[str, _Count] = field(default_factory=dict)
    _votes: int = 0
    _unsure: int = 0

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Cuts | None:
        """Return those of a report, if it has any."""
        trim = report.get("trim")
        return cls(trim["magnitudes"], trim["zero_sign"]) if trim else None

    def add(
        self,
        models: Sequence[str],
        parameters: Parameters,
        piece: Piece,
        arithmetic: torch.dtype,
    ) -> None:
        """Count some entries of a tensor.

        Args:
            models: the report's names of those that are merged.
            parameters: the tensor's.
            piece: the entries.
            arithmetic: the dtype of the merge's own arithmetic.
        """
        total, bound, sizes = (torch.zeros_like(piece.base) for _ in range(3))
        unsure = torch.zeros_like(piece.base, dtype=torch.bool)
        for number, model in enumerate(models):
            delta, error = piece.deltas[number], piece.errors[number]
            stays = torch.ones_like(unsure)
            if model in self.magnitudes:
                cut, size = self.magnitudes[model], delta.abs()
                stays, above, reaching = size >= cut, size - error > cut, size + error >= cut
                unsure |= reaching & (size - error < cut)
                count = self._counts.setdefault(model, _Count(parameters.densities[number]))
                count.entries += len(size)
                count.above += int(above.sum())
                count.reaching += int(reaching.sum())
            term = delta * stays * parameters.weights[number]
            total += term
            sizes += term.abs()
            bound += error * abs(parameters.weights[number])
        bound += (len(models) + 1) * rounding(arithmetic) * sizes
        unsure |= (total.abs() <= bound) & (sizes > 0)
        self._votes += int(torch.sign(total)[~unsure].sum())
        self._unsure += int(unsure.sum())

    def check(self) -> None:
        """Check the cuts, once every tensor was counted.

        Raises:
            LinesError: one is not that of the inputs.
        """
        for model, count in self._counts.items():
            rank = min(int(count.density * count.entries) + 1, count.entries)
            if not count.above < rank <= count.reaching:
                raise LinesError(
                    f"{REPORT}: the magnitude {self.magnitudes[model]:g} of {model} under trim is "
                    f"above {count.entries - count.reaching:,} and below {count.above:,} of "
                    f"{count.entries:,} entries, wanted the {rank:,}th largest. The report was "
                    f"edited, or an input changed: restore it, or merge again."
                )
        low, high = self._votes - self._unsure, self._votes + self._unsure
        fits = {1: high > 0, 0: low <= 0 <= high, -1: low < 0}
        if not fits[self.zero_sign]:
            raise LinesError(
                f"{REPORT}: the zero_sign {self.zero_sign} under trim is not the sign of "
                f"{self._votes:,}, by which the entries of all tensors vote. The report was "
                f"edited; restore it."
            )
