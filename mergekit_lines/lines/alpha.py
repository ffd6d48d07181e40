"""α of Eq. 2, from two norms over the whole model or from their closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from mergekit_lines.errors import LinesError, some
from mergekit_lines.lines.placed import AUTO, Placed


@dataclass(frozen=True)
class Calibration:
    """α of Eq. 2 and where it came from.

    ``tau_sum`` and ``tau_mtl`` are the two norms; None for the closed form, which reads
    no weight.
    """

    alpha: float
    models: int
    norm: str
    tau_sum: float | None = None
    tau_mtl: float | None = None


@dataclass(eq=False)
class NormCollector:
    """Σ|x|^power of τ_sum and τ_MTL, tensor by tensor."""

    power: int
    terms: dict[str, tuple[float, float]] = field(default_factory=dict)

    def total(self, which: int) -> float:
        """Return the norm; fsum makes it independent of the order of the tensors."""
        total = math.fsum(terms[which] for terms in self.terms.values())
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

    N counts the models that are not the base.

    Args:
        tensors: every output tensor.
        norm: ``l1`` or ``l2``; over the whole model.
        collect: puts the terms of every output tensor into the collector, a tied one once;
            called only where the closed form does not hold.

    Raises:
        LinesError: a norm is zero, or tensors are merged from different models.

    Source: arXiv 2410.17146, Eq. 2.
    """
    if not any(tensor.placed.words.alpha == AUTO for tensor in tensors):
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
    return Calibration(tau_sum / tau_mtl / count, count, norm, tau_sum, tau_mtl)


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
    """Return |w|·|λ| where τ_MTL is exactly w·λ·τ_sum with one constant factor, else None.

    Then Eq. 2 is 1/(N·|w|·|λ|).
    """
    factors: set[float] = set()
    for tensor in tensors:
        if tensor.factors is None:
            return None
        factors |= tensor.factors
    return abs(factors.pop()) or None if len(factors) == 1 else None
