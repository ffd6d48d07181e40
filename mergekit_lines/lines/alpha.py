"""α of Eq. 2, from two norms over the whole model or a block, or from their closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from mergekit_lines.errors import LinesError, some
from mergekit_lines.lines.placed import BLOCK, Placed
from mergekit_lines.lines.readings import Calibration


@dataclass(eq=False)
class NormCollector:
    """Σ|x|^power of τ_sum and τ_MTL, tensor by tensor."""

    power: int
    terms: dict[str, tuple[float, float]] = field(default_factory=dict)

    def join(self, other: NormCollector) -> None:
        """Take over another's terms, of other tensors."""
        self.terms |= other.terms

    def total(self, which: int, names: Iterable[str] | None = None) -> float:
        """Return the norm over all tensors, or over some; no order of them changes it."""
        chosen = self.terms if names is None else [name for name in names if name in self.terms]
        total = math.fsum(self.terms[name][which] for name in chosen)
        return total if self.power == 1 else math.sqrt(total)


@dataclass(frozen=True)
class Contribution:
    """One output tensor as Eq. 2 sees it.

    Attributes:
        placed: the tensor.
        models: those that are merged into it, without the base.
        factors: of their task vectors, where the merge is nothing but Σ factor·τ; else None.
    """

    placed: Placed
    models: frozenset[Hashable]
    factors: frozenset[float] | None


def find_alpha(
    tensors: Sequence[Contribution], norm: str, collect: Callable[[NormCollector], None]
) -> Calibration | None:
    """Return α = (1/N)·‖τ_sum‖/‖τ_MTL‖ (Eq. 2), or None where no tensor asks for it.

    N counts the models that are not the base. Where a tensor has ``alpha: block``, the same ratio
    over the tensors of each block is there too (the magnitude that a merge loses is given back
    layer by layer: the idea of arXiv 2512.19320, by the norms of Eq. 2); in the closed form all
    blocks have the one α.

    Args:
        tensors: every output tensor.
        norm: ``l1`` or ``l2``; over the whole model.
        collect: puts the terms of every output tensor into the collector, a tied one once;
            called only where the closed form does not hold.

    Raises:
        LinesError: a norm is zero, or tensors are merged from different models.

    Source: arXiv 2410.17146, Eq. 2.
    """
    if not any(tensor.placed.words.from_norms for tensor in tensors):
        return None
    count = _count_models(tensors)
    factor = _common_factor(tensors)
    if factor is not None:
        return Calibration(alpha=1 / (count * factor), models=count, norm=norm)
    collector = NormCollector(power=1 if norm == "l1" else 2)
    collect(collector)
    tau_sum, tau_mtl = collector.total(0), collector.total(1)
    for name, value, cause in (
        ("τ_sum", tau_sum, "the task vectors of the models cancel, or every model equals the base"),
        ("τ_MTL", tau_mtl, "the wrapped merge gives back the base"),
    ):
        if value == 0:
            raise LinesError(
                f"parameters.alpha: auto found a norm of zero for {name} (Eq. 2): {cause}. "
                f"Check that base_model and models are the ones you mean, or give alpha."
            )
        if not math.isfinite(value):
            raise LinesError(
                f"parameters.alpha: auto found a norm of {value} for {name}: an input holds NaN or "
                f"infinity. Give alpha as a number, or repair the model."
            )
    alpha = tau_sum / tau_mtl / count
    by_block = any(tensor.placed.words.alpha == BLOCK for tensor in tensors)
    blocks = _by_block(tensors, collector, count, alpha) if by_block else None
    return Calibration(alpha, count, norm, tau_sum, tau_mtl, blocks)


def _by_block(
    tensors: Sequence[Contribution], collector: NormCollector, count: int, alpha: float
) -> dict[str, list[float]]:
    """Return α of Eq. 2 over the tensors of each block, by container.

    A block that the merge leaves as it was, or in which the task vectors cancel, has no ratio:
    it gets the α of the whole model.
    """
    blocks: dict[str, list[list[str]]] = {}
    for tensor in tensors:
        depth = tensor.placed.depth
        if depth is not None:
            inside = blocks.setdefault(depth.container, [[] for _ in range(depth.count)])
            inside[depth.index].append(tensor.placed.name)

    def of(names: list[str]) -> float:
        tau_sum, tau_mtl = (collector.total(which, names) for which in (0, 1))
        return tau_sum / tau_mtl / count if tau_sum and tau_mtl else alpha

    return {container: [of(names) for names in inside] for container, inside in blocks.items()}


def _count_models(tensors: Sequence[Contribution]) -> int:
    first_tensors: dict[frozenset[Hashable], str] = {}
    for tensor in tensors:
        first_tensors.setdefault(tensor.models, tensor.placed.name)
    if len(first_tensors) > 1:
        raise LinesError(
            f"parameters.alpha: auto needs every tensor to be merged from the same models, and "
            f"{some(first_tensors.values(), 2)} are not. Give alpha as a number."
        )
    return len(next(iter(first_tensors)))


def _common_factor(tensors: Sequence[Contribution]) -> float | None:
    """Return |w·scale| where τ_MTL is exactly w·scale·τ_sum with one constant factor, else None.

    ``scale`` is mergekit's `lambda`. Then Eq. 2 is 1/(N·|w·scale|).
    """
    factors: set[float] = set()
    for tensor in tensors:
        if tensor.factors is None:
            return None
        factors |= tensor.factors
    return abs(factors.pop()) or None if len(factors) == 1 else None
