"""Which entries of a task vector stay: mergekit's four sparsifications, and a given cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("none", "magnitude", "floor", "random", "magnitude_outliers", "della_magprune")

_EPSILON = 1e-7  # mergekit's: a norm below it is not matched
# Of 1/density: draws have 32 bits, a smaller share keeps nothing, and its inverse may be no fp32.
_LARGEST = 2.0**64


@dataclass(frozen=True)
class Sparsity:
    """How one model's task vector is sparsified.

    Attributes:
        kind: one of :data:`KINDS`; the words are mergekit's.
        density: share of the entries to keep; 1 or more keeps all, 0 or less none.
        floor: the least magnitude that stays; NaN while nobody knows it.
        gamma: magnitude_outliers: share of the entries to drop as too large.
        epsilon: della_magprune: half the range of the probabilities.
        rescale: make up for what is dropped: match the L1 norm from before.
        by_share: random: make up for it by 1/density instead, in expectation.

    Raises:
        ValueError: the kind is unknown, density is no probability (random), or density ±
            epsilon is not within (0, 1) (della_magprune).
    """

    kind: str
    density: float = 1.0
    gamma: float = 0.01
    epsilon: float = 0.15
    rescale: bool = False
    by_share: bool = False
    floor: float = math.nan

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"sparsification: found {self.kind!r}, wanted one of {KINDS}")
        if self.kind == "random" and not self.density >= 0:
            raise ValueError(f"density: found {self.density}, wanted 0 or more")
        if self.kind == "della_magprune" and self.drawn:
            low, high = self.density - self.epsilon, self.density + self.epsilon
            if low <= 0 or high >= 1:
                raise ValueError(
                    f"density {self.density} and epsilon {self.epsilon}: density − epsilon and "
                    f"density + epsilon must lie within (0, 1)"
                )

    @property
    def drawn(self) -> bool:
        """Whether draws decide what stays."""
        return self.kind in ("random", "della_magprune") and 0 < self.density < 1

    @property
    def matched(self) -> bool:
        """Whether draws are made up for by the norm from before, which has to be read."""
        return self.drawn and self.rescale and not self.by_share

    @property
    def factor(self) -> float:
        """What entries that stay are multiplied with, where no norm is matched.

        Source: DARE, arXiv 2311.03099, Eq. 3: 1/(1 − p), with p = 1 − density.
        """
        if not (self.drawn and self.rescale and self.by_share):
            return 1.0
        return min(1 / self.density, _LARGEST)

    @property
    def by_rows(self) -> bool:
        """Whether entries are ranked within rows."""
        return self.kind == "della_magprune" and self.drawn

    def ranks(self, size: int) -> tuple[int, int] | None:
        """Return how many of the largest to drop and how many of the next to keep.

        None where that is not how the kind works: all stay, or draws decide.

        Args:
            size: number of entries of the tensor.
        """
        if self.kind in ("none", "floor") or self.drawn or self.density >= 1:
            return None
        if self.density <= 0 or not size:
            return 0, 0
        if self.kind == "magnitude":
            return 0, max(1, int(self.density * size))
        target = int(self.density * size)
        first = max(0, size - target - int(self.gamma * size))
        end = min(size, first + target)
        return size - end, max(0, end - first)


def rescale_factor(before: float, after: float) -> float:
    """Return what the sparsified task vector is multiplied with to have the L1 norm from before.

    Args:
        before: Σ|δ| of all entries.
        after: Σ|δ| of those that stayed.
    """
    if before < _EPSILON or after < _EPSILON:
        return 1.0
    return before / after
