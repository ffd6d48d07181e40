"""α of Eq. 2, from two norms over the whole model or from their closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_lines.errors import LinesError, some

if TYPE_CHECKING:
    from mergekit_lines.plan.planned import PlannedTensor


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


@dataclass
class NormCollector:
    """Σ|x|^power of τ_sum and τ_MTL, tensor by tensor."""

    power: int
    terms: dict[str, tuple[float, float]] = field(default_factory=dict)

    # Tasks are hashed with their values; two collectors are never the same one.
    __hash__ = object.__hash__

    def total(self, which: int) -> float:
        """Return the norm; fsum makes it independent of the order of the tensors."""
        total = math.fsum(terms[which] for terms in self.terms.values())
        return total if self.power == 1 else math.sqrt(total)


def find_alpha(
    planned: Sequence[PlannedTensor], collect: Callable[[NormCollector], None]
) -> Calibration | None:
    """Return α = (1/N)·‖τ_sum‖/‖τ_MTL‖ (Eq. 2), or None where no tensor asks for it.

    N counts the models that are not the base.

    Args:
        planned: every output tensor.
        collect: puts the terms of every output tensor into the collector, a tied one once;
            called only where the closed form does not hold.

    Raises:
        LinesError: a norm is zero, or tensors are merged from different models.

    Source: arXiv 2410.17146, Eq. 2.
    """
    if not any(item.values["alpha"] == "auto" for item in planned):
        return None
    count = _count_models(planned)
    norm = planned[0].values["norm"]
    closed = _closed_form(planned)
    if closed is not None:
        return Calibration(alpha=1 / (count * closed), models=count, norm=norm)
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


def _count_models(planned: Sequence[PlannedTensor]) -> int:
    groups: dict[frozenset[Any], str] = {}
    for item in planned:
        models = frozenset(item.task.model_order) - {item.task.base_model}
        groups.setdefault(models, item.weight.name)
    if len(groups) > 1:
        raise LinesError(
            f"parameters.alpha: auto needs every tensor to be merged from the same models, and "
            f"{some(groups.values(), 2)} are not. Give alpha as a number."
        )
    return len(next(iter(groups)))


def _closed_form(planned: Sequence[PlannedTensor]) -> float | None:
    """Return |w|·|λ| where τ_MTL is exactly w·λ·τ_sum, else None.

    That is task_arithmetic with one constant non-zero weight, ``normalize: false`` and one
    constant non-zero ``lambda``: then Eq. 2 is 1/(N·|w|·|λ|).
    """
    factors = set()
    for item in planned:
        if item.wrap != "task_arithmetic" or item.values["normalize"]:
            return None
        for model in item.task.model_order:
            if model != item.task.base_model:
                weight = item.task.input_parameters[model]["weight"]
                factors.add((weight, item.values["lambda"]))
    if len(factors) != 1:
        return None
    weight, scale = factors.pop()
    return abs(weight) * abs(scale) or None
