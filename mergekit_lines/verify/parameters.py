"""What a recipe gives the methods whose formulas are written out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit.common import ModelReference

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.methods.registry import registered

# Sparsification and whether a sign is elected, by mergekit's name of the method.
RESTATED: dict[str, tuple[str, bool]] = {
    "passthrough": ("", False),  # lines_postprocess: the merge is the model itself
    "task_arithmetic": ("", False),
    "ties": ("magnitude", True),
    "dare_linear": ("random", False),
    "dare_ties": ("random", True),
    "breadcrumbs": ("outliers", False),
    "breadcrumbs_ties": ("outliers", True),
    "della_linear": ("rows", False),
    "della": ("rows", True),
    "consensus_ta": ("", False),
    "consensus_ties": ("magnitude", True),
}


@dataclass(frozen=True)
class Parameters:
    """What the recipe gives a method for one tensor, the lists by model.

    Attributes:
        method: a key of :data:`RESTATED`.
        weights: w.
        densities: share of entries to keep.
        gammas: breadcrumbs: share of the largest to drop.
        epsilons: DELLA: half the range of the probabilities.
        rescale: match each task vector's L1 norm from before.
        by_share: multiply by 1/density in its place.
        floors: TIES over the whole model: the least magnitude that stays; else empty.
        zero_sign: the sign that a sum of 0 elects; 0 stands for −.
        normalize: divide by the sum of the weights.
        scale: mergekit's ``lambda``.
        tall_lambdas: consensus merging: each model's threshold of its mask; empty for all else.
        min_agree: consensus merging: how many masks have to be set.
        coefficient: λ of LiNeS.
    """

    method: str
    weights: Sequence[float]
    densities: Sequence[float]
    gammas: Sequence[float]
    epsilons: Sequence[float]
    rescale: bool
    normalize: bool
    scale: float
    coefficient: float
    tall_lambdas: Sequence[float] = ()
    min_agree: int = 0
    by_share: bool = False
    floors: Sequence[float] = ()
    zero_sign: int = 1


def parameters_of(
    task: LinesTask, method: str, models: Sequence[ModelReference], coefficient: float
) -> Parameters:
    """Return what the recipe gives a method that is restated here."""
    if method == "passthrough":
        return Parameters(method, [1.0], [1.0], [0.0], [0.0], False, False, 1.0, coefficient)
    words = registered(task.method_name).names  # some are ours too, and have another name
    shared = dict(task.parameters.items())
    own = task.input_values(models)

    def each(name: str) -> list[float]:
        values = own.get(words.get(name, ""), {})
        return [float(values.get(model, 0.0)) for model in models]

    return Parameters(
        method=method,
        weights=each("weight"),
        densities=each("density"),
        gammas=each("gamma"),
        epsilons=each("epsilon"),
        rescale=shared.get(words.get("rescale", ""), False),
        normalize=shared.get(words.get("normalize", ""), False),
        scale=shared[words["lambda"]],
        coefficient=coefficient,
        tall_lambdas=each("tall_lambda") if "tall_lambda" in words else (),
        min_agree=shared.get(words.get("min_agree", ""), 0),
        by_share=shared.get("rescale_by") == "p",
    )
