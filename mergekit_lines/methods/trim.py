"""``trim: model``: TIES' own cut, by a magnitude that is found over the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lines.kernels.sparsity import Sparsity
from mergekit_lines.methods.words import TRIM, of_parameter

# Among the parameters of one tensor; no recipe can write it, for no word has this form.
SETTLED = "<settled>"
ONE_TENSOR = of_parameter(
    "trim",
    "found 'model', wanted `tensor` here: one tensor is merged at a time, and a cut over the whole "
    "model takes all of them before. Merge the recipe with mergekit-yaml.",
)
NO_RESCALE = of_parameter(
    "rescale",
    "found true with trim: model, wanted false: the paper's merge matches no norms. Leave it out, "
    "or take trim: tensor.",
)


@dataclass(frozen=True)
class Settled:
    """What has to be known of all tensors before one of them can be merged.

    Attributes:
        floors: by model, the least magnitude that stays.
        zero_sign: the sign that is elected where a sum is 0; 0 stands for −, as in TIES' code.
    """

    floors: tuple[tuple[str, float], ...]
    zero_sign: int = 1


def cuts_whole_model(values: Mapping[str, Any]) -> bool:
    """Tell whether one tensor's values ask for a cut over the whole model."""
    return values.get(TRIM.name) == "model"


def sparsities(values: Mapping[str, Any], models: Sequence[Any]) -> tuple[Sparsity, ...]:
    """Return how TIES cuts every model; the floors are not known before they are found.

    Args:
        values: the parameters of one tensor; those that each model has are keyed by model.
        models: ids of the fine-tuned models.
    """
    densities = [values["density"][model] for model in models]
    if not cuts_whole_model(values):
        return tuple(Sparsity("magnitude", density=density) for density in densities)
    settled: Settled | None = values.get(SETTLED)
    floors = dict(settled.floors) if settled else {}
    return tuple(
        Sparsity("none")
        if density >= 1
        else Sparsity("floor", density, floor=floors.get(str(model), float("nan")))
        for model, density in zip(models, densities, strict=True)
    )


def zero_sign(values: Mapping[str, Any]) -> int:
    """Return the sign that a sum of 0 elects: mergekit's + unless the whole model was asked."""
    settled: Settled | None = values.get(SETTLED)
    return settled.zero_sign if settled and cuts_whole_model(values) else 1
