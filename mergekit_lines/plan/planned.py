"""One output tensor of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mergekit.architecture import WeightInfo

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.lines.alpha import Contribution
from mergekit_lines.lines.placed import Placed
from mergekit_lines.methods.words import plain_sum_factors


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: the task that makes it, what that wraps, its place and its schedule."""

    weight: WeightInfo
    task: LinesTask
    wrap: str
    placed: Placed

    @property
    def norm(self) -> str:
        """The norm of Eq. 2, which holds for the whole recipe."""
        return str(self.task.parameters["norm"])

    def contribution(self) -> Contribution:
        """Return the tensor as Eq. 2 sees it."""
        models = [model for model in self.task.model_order if model != self.task.base_model]
        values: dict[str, Any] = dict(self.task.parameters.items())
        values |= self.task.input_values(models)
        factors = plain_sum_factors(self.wrap, values, models)
        return Contribution(self.placed, frozenset(models), factors)
