"""A tensor's place in the depth of a model, and the coefficient that it gets there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.readings import UNREAD, Readings
from mergekit_lines.lines.rules import at_depth
from mergekit_lines.lines.schedule import Schedule

AUTO = "auto"
BLOCK = "block"
LARV = "larv"


@dataclass(frozen=True)
class ScheduleWords:
    """What a recipe says of one tensor's coefficient; γ is folded into α and β.

    Attributes:
        alpha: coefficient of the first block; or ``auto`` (Eq. 2), or ``block``, by which each
            block has its own α, of Eq. 2 over the tensors in it.
        beta: coefficient gained from the first block to the last; 0 where the shape says it all.
        shape: the exponent of the schedule, 1 for linear; or the coefficients themselves, from
            the first block to the last; or ``larv``: α times a level that the weights tell.
        outside: coefficient of a tensor outside the blocks: ``alpha``, or a number.
    """

    alpha: float | str
    beta: float
    shape: float | tuple[float, ...] | str
    outside: float | str

    @property
    def from_norms(self) -> bool:
        """Whether α is that of Eq. 2."""
        return self.alpha in (AUTO, BLOCK)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ScheduleWords:
        """Return the words of one tensor from its resolved parameters, which are complete.

        Only ``lines`` has ``wrap``; under it a ``gamma`` is the wrapped method's own. Under
        ``lines_postprocess`` γ stands for α = γ, β = 1 − γ (arXiv 2410.17146, C.1). A merge
        alone has no schedule: λ = 1.
        """
        if "alpha" not in values:
            return cls(1.0, 0.0, 1.0, "alpha")
        alpha, beta, shape = values["alpha"], values["beta"], values["schedule"]
        gamma = None if "wrap" in values else values["gamma"]
        if isinstance(shape, tuple):  # α is the first block's, as everywhere
            alpha, beta = shape[0], 0.0
        elif gamma is not None:
            alpha, beta = gamma, 1 - gamma
        elif alpha is None:
            alpha = AUTO
        if shape == LARV:
            beta = 0.0
        return cls(alpha, beta, shape, values["outside"])


@dataclass(frozen=True)
class Placed:
    """One output tensor: its name, its block, and the words of its schedule."""

    name: str
    depth: BlockDepth | None
    words: ScheduleWords

    def coefficient(self, readings: Readings = UNREAD) -> float:
        """Return λ, with α and levels from ``readings`` where the words leave them to the weights.

        Outside the blocks ``alpha: block`` is the α of the whole model.
        """
        words = self.words
        alpha: Any = words.alpha
        if words.from_norms:
            alpha = readings.alpha(self.depth if words.alpha == BLOCK else None)
        if self.depth is None:
            return float(alpha if words.outside == "alpha" else words.outside)
        if isinstance(words.shape, tuple):
            return at_depth(words.shape, self.depth.index, self.depth.count)
        if isinstance(words.shape, str):
            return float(alpha) * readings.level(self.depth)
        schedule = Schedule(alpha, words.beta, words.shape)
        return schedule.coefficient(self.depth.index, self.depth.count)
