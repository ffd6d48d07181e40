"""Coefficients learnt by gradient: one for each block, and one for what is outside of them.

Adam moves them against the gradient of an objective, as AdaMerging (arXiv 2310.02575) does with
the entropy of predictions, and aTLAS (arXiv 2407.02880) with a loss. Each step's weights are those
that ``mergekit-yaml`` would write for the recipe of that step.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mergekit_lines.errors import LinesError
from mergekit_lines.lines.placed import Placed
from mergekit_lines.lines.rules import shares
from mergekit_lines.lines.summary import Summary
from mergekit_lines.live.model import LiveModel
from mergekit_lines.recipe.settings import without_words

DECIMALS = 6  # of a coefficient: what is measured is what the recipe says
# What a recipe says of coefficients; ``gamma`` only where it is not the wrapped method's own.
OWN = ("alpha", "beta", "schedule", "outside", "norm")


@dataclass(frozen=True)
class Coefficients:
    """What is learnt.

    Attributes:
        blocks: from the first block to the last, two at least; containers of fewer blocks have
            what lies between, as every schedule of values is spread.
        outside: of the tensors outside the blocks.
    """

    blocks: tuple[float, ...]
    outside: float

    @classmethod
    def of(cls, summary: Summary) -> Coefficients:
        """Return those that were set: of several in one block their mean.

        Raises:
            LinesError: there are no blocks.
        """
        count = max(map(len, summary.containers.values()), default=0)
        if not count:
            raise LinesError(
                "learn: found no blocks in this recipe's output, wanted one at least: a "
                "coefficient is learnt for each. Name the lists that count with `blocks`."
            )
        longest = [blocks for blocks in summary.containers.values() if len(blocks) == count]
        means = [_mean(map(_mean, at)) for at in zip(*longest, strict=True)]
        outside = list(summary.outside.values())
        return cls(tuple(means * 2 if count == 1 else means), _mean(outside or means))

    @classmethod
    def uniform(cls, value: float, count: int) -> Coefficients:
        """Return one value for ``count`` blocks and for what is outside."""
        return cls((value,) * count, value)

    @property
    def mean(self) -> float:
        """The mean over the blocks."""
        return statistics.fmean(self.blocks)

    def rounded(self) -> Coefficients:
        """Return them as a recipe has them."""
        blocks = (round(value, DECIMALS) + 0.0 for value in self.blocks)
        return Coefficients(tuple(blocks), round(self.outside, DECIMALS) + 0.0)

    def recipe(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe with these coefficients for all its tensors, and with no others.

        Args:
            document: the recipe, as YAML would hold it.
        """
        own = {*OWN, "gamma"} if document.get("merge_method") == "lines_postprocess" else set(OWN)
        result: dict[str, Any] = without_words(copy.deepcopy(dict(document)), own)
        result["parameters"] = {
            **(result.get("parameters") or {}),
            "schedule": ", ".join(map(repr, self.blocks)),
            "outside": self.outside,
        }
        return result


def _mean(values: Iterable[float]) -> float:
    """Return the mean; of equal values their own, to the bit."""
    listed = list(values)
    return listed[0] if len(set(listed)) == 1 else statistics.fmean(listed)


def gathered(
    products: Mapping[str, float], placed: Mapping[str, Placed], count: int
) -> Coefficients:
    """Return the gradient by ``count`` coefficients from that by every tensor's λ.

    Args:
        products: d loss/dλ by tensor.
        placed: every tensor's place.
        count: of the coefficients of blocks.
    """
    blocks, outside = defaultdict[int, list[float]](list), list[float]()
    for name, product in products.items():
        depth = placed[name].depth
        if depth is None:
            outside.append(product)
            continue
        for place, share in shares(count, depth.index, depth.count):
            blocks[place].append(share * product)
    sums = tuple(math.fsum(blocks[place]) for place in range(count))
    return Coefficients(sums, math.fsum(outside))


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

    def moved(self, values: Coefficients, gradient: Coefficients) -> Coefficients:
        """Return the values one step further down."""
        self._steps += 1
        numbers = (*values.blocks, values.outside)
        slopes = (*gradient.blocks, gradient.outside)
        *blocks, outside = (
            number - self.rate * self._direction(place, slope)
            for place, (number, slope) in enumerate(zip(numbers, slopes, strict=True))
        )
        return Coefficients(tuple(blocks), outside)

    def _direction(self, place: int, slope: float) -> float:
        first, second = self._moments.get(place, (0.0, 0.0))
        one, two = self.betas
        first, second = one * first + (1 - one) * slope, two * second + (1 - two) * slope**2
        self._moments[place] = first, second
        mean, square = first / (1 - one**self._steps), second / (1 - two**self._steps)
        return mean / (math.sqrt(square) + self.epsilon)


Batch = Any
Loss = Callable[[Any, Batch], torch.Tensor]


def slope(
    live: LiveModel, coefficients: Coefficients, batch: Batch, loss: Loss
) -> tuple[float, Coefficients]:
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
    with live.gradients() as gradients, torch.enable_grad():
        value = loss(live.model, batch)
        products = gradients.of(value)
    gradient = gathered(products, placed, len(coefficients.blocks))
    if not all(map(math.isfinite, (float(value.detach()), *gradient.blocks, gradient.outside))):
        raise LinesError(
            f"learn: the objective is {float(value.detach()):g} at a mean coefficient of "
            f"{coefficients.mean:.4g}, and it or its gradient is not finite. Give a smaller "
            f"--lr, or start from smaller coefficients."
        )
    return float(value.detach()), gradient


def descend(
    live: LiveModel,
    start: Coefficients,
    batches: Iterator[Batch],
    loss: Loss,
    rate: float,
) -> Iterator[tuple[float, Coefficients]]:
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
        value, gradient = slope(live, exact.rounded(), batch, loss)
        exact = adam.moved(exact, gradient)
        yield value, exact.rounded()


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
