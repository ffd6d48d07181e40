"""What is learnt: coefficients of the blocks and of what is outside, of the merge or of each model.

The one are λ(ℓ) of the merged task vector, the others λ_t(ℓ) of every model's own (layer-wise
AdaMerging, arXiv 2310.02575). As recipes they are ``schedule`` and ``outside``, or the models'
``weight`` and ``weight_outside``, in the place of all that said coefficients before.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mergekit_lines.errors import LinesError
from mergekit_lines.lines.placed import Placed
from mergekit_lines.lines.rules import shares
from mergekit_lines.lines.summary import Summary
from mergekit_lines.live.gradients import MERGE
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.recipe.settings import with_words_of_models, without_words

DECIMALS = 6  # of a coefficient: what is measured is what the recipe says
# What a recipe says of coefficients; ``gamma`` only where it is not the wrapped method's own.
OWN = ("alpha", "beta", "schedule", "outside", "norm")
OF_MODELS = ("weight", "weight_outside", "lambda")
SEVERAL = (
    "the recipe has several coefficients in one block, or outside of the blocks; learn starts "
    "from their means"
)
Products = Mapping[str, Mapping[str, float]]
C = TypeVar("C", bound="Learnable")


class Learnable(Protocol):
    """Numbers that a recipe can hold, and that a gradient can be taken by."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of them, in an order of its own."""

    def like(self: C, numbers: Sequence[float]) -> C:
        """Return others of the same kind, from numbers in that order."""

    @property
    def mean(self) -> float:
        """The mean over the blocks."""

    @property
    def outside(self) -> float:
        """The coefficient outside of the blocks; of several their mean."""

    @property
    def per_model(self) -> bool:
        """Whether each model has its own."""

    @property
    def by_model(self) -> Mapping[str, Coefficients]:
        """Those of each model, or of the merge, under :data:`MERGE`."""

    def recipe(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe with these coefficients for all its tensors, and with no others."""

    def gathered(self: C, products: Products, placed: Mapping[str, Placed]) -> C:
        """Return the gradient by them from that by every tensor's λ."""


def rounded(coefficients: C) -> C:
    """Return coefficients as a recipe has them."""
    return coefficients.like([round(value, DECIMALS) + 0.0 for value in coefficients.numbers])


def uniform(coefficients: C, value: float) -> C:
    """Return one value in the place of all."""
    return coefficients.like([value] * len(coefficients.numbers))


@dataclass(frozen=True)
class Coefficients:
    """Of the merge.

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
        count = _count(summary)
        means = [_mean(map(_mean, at)) for at in _side_by_side(summary)]
        outside = list(summary.outside.values())
        return cls(tuple(means * 2 if count == 1 else means), _mean(outside or means))

    @property
    def numbers(self) -> tuple[float, ...]:
        """Those of the blocks, and that of what is outside."""
        return (*self.blocks, self.outside)

    def like(self, numbers: Sequence[float]) -> Coefficients:
        """See :class:`Learnable`."""
        *blocks, outside = numbers
        return Coefficients(tuple(blocks), outside)

    @property
    def mean(self) -> float:
        """The mean over the blocks."""
        return statistics.fmean(self.blocks)

    @property
    def per_model(self) -> bool:
        """See :class:`Learnable`."""
        return False

    @property
    def by_model(self) -> Mapping[str, Coefficients]:
        """See :class:`Learnable`."""
        return {MERGE: self}

    @property
    def text(self) -> str:
        """The blocks' as a recipe writes values by depth."""
        return ", ".join(map(repr, self.blocks))

    def recipe(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe with these coefficients for all its tensors, and with no others.

        Args:
            document: the recipe, as YAML would hold it.
        """
        words = {"schedule": self.text, "outside": self.outside}
        return _with_words(document, OWN, words)

    def gathered(self, products: Products, placed: Mapping[str, Placed]) -> Coefficients:
        """Return the gradient by these coefficients.

        Args:
            products: d loss/dλ by tensor, under :data:`MERGE`.
            placed: every tensor's place.
        """
        return _gathered(products.get(MERGE, {}), placed, len(self.blocks))


@dataclass(frozen=True)
class PerModel:
    """Of every model that is merged: what its own task vector is multiplied with.

    Attributes:
        models: by what the recipe calls them; of all as many blocks.
    """

    models: Mapping[str, Coefficients]

    @classmethod
    def of(cls, planned: Sequence[PlannedTensor], summary: Summary) -> PerModel:
        """Return those that were set: λ(ℓ), times each model's weight, times ``lambda``.

        Of several in one block, or outside, their mean.

        Args:
            planned: the output's tensors, each a sum of its models' task vectors.
            summary: of their λ.

        Raises:
            LinesError: there are no blocks.
        """
        merge, count = Coefficients.of(summary), _count(summary)
        inside, outside = _weights(planned, count)
        models = {}
        for model in {**inside, **outside}:
            weights = [_mean(inside[model][n] or [1.0]) for n in range(count)]
            weights = weights * 2 if count == 1 else weights
            blocks = (a * b for a, b in zip(merge.blocks, weights, strict=True))
            models[model] = Coefficients(
                tuple(blocks), merge.outside * _mean(outside[model] or weights)
            )
        return cls(models)

    @property
    def numbers(self) -> tuple[float, ...]:
        """Model by model, those of the blocks and that of what is outside."""
        return tuple(number for own in self.models.values() for number in own.numbers)

    def like(self, numbers: Sequence[float]) -> PerModel:
        """See :class:`Learnable`."""
        size = len(numbers) // len(self.models)
        return PerModel(
            {
                model: own.like(numbers[place * size : (place + 1) * size])
                for place, (model, own) in enumerate(self.models.items())
            }
        )

    @property
    def mean(self) -> float:
        """The mean over the blocks of all models."""
        return statistics.fmean(own.mean for own in self.models.values())

    @property
    def outside(self) -> float:
        """The mean over the models."""
        return statistics.fmean(own.outside for own in self.models.values())

    @property
    def per_model(self) -> bool:
        """See :class:`Learnable`."""
        return True

    @property
    def by_model(self) -> Mapping[str, Coefficients]:
        """See :class:`Learnable`."""
        return self.models

    def recipe(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe with these coefficients for all its tensors, and with no others.

        λ is 1 everywhere: alpha 1 and beta 0.

        Args:
            document: the recipe, as YAML would hold it.
        """
        result = _with_words(document, (*OWN, *OF_MODELS), {"alpha": 1.0, "beta": 0.0})
        words = {
            model: {"weight": own.text, "weight_outside": own.outside}
            for model, own in self.models.items()
        }
        return dict(with_words_of_models(result, words))

    def gathered(self, products: Products, placed: Mapping[str, Placed]) -> PerModel:
        """Return the gradient by these coefficients.

        Args:
            products: d loss/dλ_t by model, then tensor.
            placed: every tensor's place.
        """
        return PerModel(
            {
                model: _gathered(products.get(model, {}), placed, len(own.blocks))
                for model, own in self.models.items()
            }
        )


def _with_words(
    document: Mapping[str, Any], without: Iterable[str], words: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a recipe with other words of coefficients under its own parameters."""
    gone = {*without}
    if document.get("merge_method") == "lines_postprocess":
        gone.add("gamma")
    result: dict[str, Any] = without_words(copy.deepcopy(dict(document)), gone)
    result["parameters"] = {**(result.get("parameters") or {}), **words}
    return result


def _count(summary: Summary) -> int:
    """Return the number of blocks of the longest container."""
    count = max(map(len, summary.containers.values()), default=0)
    if not count:
        raise LinesError(
            "learn: found no blocks in this recipe's output, wanted one at least: a "
            "coefficient is learnt for each. Name the lists that count with `blocks`."
        )
    return count


def _side_by_side(summary: Summary) -> list[tuple[list[float], ...]]:
    """Return, block by block, the coefficients that each of the longest containers has there."""
    count = _count(summary)
    longest = [blocks for blocks in summary.containers.values() if len(blocks) == count]
    return list(zip(*longest, strict=True))


def _weights(
    planned: Sequence[PlannedTensor], count: int
) -> tuple[dict[str, dict[int, list[float]]], dict[str, list[float]]]:
    """Return each model's weights, times ``lambda``: of each of ``count`` blocks, and outside."""
    inside: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    outside: dict[str, list[float]] = defaultdict(list)
    for item in planned:
        depth, scale = item.placed.depth, item.task.parameters["lambda"]
        by_model = dict(item.task.input_parameters.items())
        for model in item.task.model_order:
            if model == item.task.base_model:
                continue
            weight = by_model[model]["weight"] * scale
            if depth is None:
                outside[str(model)].append(weight)
            else:
                # A block of a model that another model takes in other slices has no weight.
                at = depth.index if depth.count == count else -1
                inside[str(model)][at].append(weight)
    return inside, outside


def holds_several(planned: Sequence[PlannedTensor], summary: Summary, *, per_model: bool) -> bool:
    """Tell whether one block, or what is outside, has several coefficients: what is no schedule.

    Args:
        planned: the output's tensors.
        summary: of their λ.
        per_model: of the models too, each a factor of its own.
    """
    groups = [list(itertools.chain(*at)) for at in _side_by_side(summary)]
    groups += [values for blocks in summary.containers.values() for values in blocks]
    groups.append(list(summary.outside.values()))
    if per_model:
        inside, outside = _weights(planned, _count(summary))
        groups += [values for blocks in inside.values() for at, values in blocks.items() if at >= 0]
        groups += outside.values()
    return any(len({round(value, DECIMALS) for value in values}) > 1 for values in groups)


def _mean(values: Iterable[float]) -> float:
    """Return the mean; of equal values their own, to the bit."""
    listed = list(values)
    return listed[0] if len(set(listed)) == 1 else statistics.fmean(listed)


def _gathered(
    products: Mapping[str, float], placed: Mapping[str, Placed], count: int
) -> Coefficients:
    """Return the gradient by ``count`` coefficients from that by every tensor's λ."""
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
