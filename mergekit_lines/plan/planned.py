"""One output tensor of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mergekit.architecture import WeightInfo

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.schedule import Schedule


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: the task that makes it, its place, and its schedule."""

    weight: WeightInfo
    task: LinesTask
    wrap: str
    depth: BlockDepth | None
    values: dict[str, Any]

    def coefficient(self, auto: float | None) -> float:
        """Return λ, with ``auto`` in the place of ``alpha: auto``."""
        alpha, beta = self.values["alpha"], self.values["beta"]
        # Under ``lines`` a gamma is the wrapped method's own.
        if "wrap" not in self.values and self.values["gamma"] is not None:
            alpha, beta = self.values["gamma"], 1 - self.values["gamma"]
        if alpha == "auto":
            alpha = auto
        if self.depth is None:
            outside = self.values["outside"]
            return float(alpha if outside == "alpha" else outside)
        schedule = Schedule(alpha, beta, self.values["schedule"])
        return schedule.coefficient(self.depth.index, self.depth.count)
