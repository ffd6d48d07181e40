"""Coefficients learnt by gradient: by the way of Adam, and the one that is best for all.

Adam moves them against the gradient of an objective, as AdaMerging (arXiv 2310.02575) does with
the entropy of predictions, and aTLAS (arXiv 2407.02880) with a loss. Each step's weights are those
that ``mergekit-yaml`` would write for the recipe of that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mergekit_lines.errors import LinesError
from mergekit_lines.live.coefficients import C, rounded
from mergekit_lines.live.model import LiveModel


@dataclass
class Adam:
    """Adam (arXiv 1412.6980) over a few numbers, in float64.

    Attributes:
        rate: the learning rate: about what a coefficient moves in one step.
    """

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    _steps: int = 0
    _moments: dict[int, tuple[float, float]] = field(default_factory=dict)

    def moved(self, values: C, gradient: C) -> C:
        """Return the values one step further down."""
        self._steps += 1
        pairs = zip(values.numbers, gradient.numbers, strict=True)
        return values.like(
            [
                number - self.rate * self._direction(place, slope)
                for place, (number, slope) in enumerate(pairs)
            ]
        )

    def _direction(self, place: int, slope: float) -> float:
        first, second = self._moments.get(place, (0.0, 0.0))
        one, two = self.betas
        first, second = one * first + (1 - one) * slope, two * second + (1 - two) * slope**2
        self._moments[place] = first, second
        mean, square = first / (1 - one**self._steps), second / (1 - two**self._steps)
        return mean / (math.sqrt(square) + self.epsilon)


Batch = Any
Loss = Callable[[Any, Batch], torch.Tensor]


def slope(live: LiveModel, coefficients: C, batch: Batch, loss: Loss) -> tuple[float, C]:
    """Return an objective on one batch, and its gradient by the coefficients.

    Args:
        live: the model; its weights become those of the coefficients.
        coefficients: to be set.
        batch: handed to ``loss``.
        loss: the objective of model and batch, a scalar; lower is better.

    Raises:
        LinesError: the objective or its gradient is not finite.
    """
    live.set_recipe(coefficients.recipe(live.recipe))
    placed = {item.weight.name: item.placed for item in live.planned}
    with live.gradients(per_model=coefficients.per_model) as gradients, torch.enable_grad():
        value = loss(live.model, batch)
        products = gradients.of(value)
    gradient = coefficients.gathered(products, placed)
    if not all(map(math.isfinite, (float(value.detach()), *gradient.numbers))):
        raise LinesError(
            f"learn: the objective is {float(value.detach()):g} at a mean coefficient of "
            f"{coefficients.mean:.4g}, and it or its gradient is not finite. Give a smaller "
            f"--lr, or start from smaller coefficients."
        )
    return float(value.detach()), gradient


def descend(
    live: LiveModel,
    start: C,
    batches: Iterator[Batch],
    loss: Loss,
    rate: float,
) -> Iterator[tuple[float, C]]:
    """Yield the objective on each batch before a step, and the coefficients after it.

    Args:
        live: the model.
        start: the first coefficients.
        batches: one for each step.
        loss: see :func:`slope`.
        rate: the learning rate of Adam.

    Raises:
        LinesError: the objective or its gradient is not finite.
    """
    adam, exact = Adam(rate), start
    for batch in batches:
        value, gradient = slope(live, rounded(exact), batch, loss)
        exact = adam.moved(exact, gradient)
        yield value, rounded(exact)


@dataclass(frozen=True)
class Uniform:
    """The one coefficient at which an objective is lowest, of those that were tried.

    Attributes:
        value: the coefficient, not negative.
        at_edge: no larger one was tried.
    """

    value: float
    at_edge: bool


def best_uniform(measure: Callable[[float], float], start: float) -> Uniform:
    """Search the one coefficient at which an objective is lowest, on a grid that is refined.

    The grid goes from 0 to twice the start in steps of its half. While its end is the best, twice
    at most, it becomes twice as long with a step twice as large. Then the steps beside the best
    are halved, to an eighth of the start.

    Args:
        measure: the objective, lower is better; not finite counts as worst.
        start: about where it lies.
    """
    unit, step = (abs(start) or 0.5) / 8, 4
    values: dict[int, float] = {}  # by the coefficient in units

    def best(*places: int) -> int:
        for place in places:
            if place >= 0 and place not in values:
                value = measure(place * unit)
                values[place] = value if math.isfinite(value) else math.inf
        return min(values, key=values.__getitem__)

    lowest = best(*range(0, 4 * step + 1, step))
    while lowest == max(values) and step < 16:
        end, step = max(values), 2 * step
        lowest = best(end + step, end + 2 * step)
    while step > 1:
        step //= 2
        lowest = best(lowest - step, lowest + step)
    return Uniform(lowest * unit, lowest == max(values))
