"""The tiers of ``schedule: larv``, found a second time from singular values in float64.

Which rows and columns of a matrix are looked at is the merge's choice, as draws are; what is
computed of them is not the merge's code.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mergekit_lines.engine.ranks import as_matrix, sampled
from mergekit_lines.errors import LinesError
from mergekit_lines.files import REPORT
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.verify.exact import ExactInputs

# Adapters are added in fp32 by the merge, and in float64 here.
TOLERANCE = 1e-4
ON_THE_EDGE = 1e-6  # of a score: rounding may decide between two levels


@dataclass
class _Block:
    """Ratios of ranks in one block, and the products of its updates, [N, N]."""

    contrasts: list[float] = field(default_factory=list)
    products: torch.Tensor | None = None

    def add(self, base: torch.Tensor, updates: Sequence[torch.Tensor]) -> None:
        """Take one matrix: θ_0 and the updates of N models, float64."""
        flat = torch.stack([update.flatten() for update in updates])
        products = flat @ flat.T
        self.products = products if self.products is None else self.products + products
        changed = [update for update in updates if bool(update.any())]
        self.contrasts += [_rank(base) / _rank(update) for update in changed]

    @property
    def contrast(self) -> float:
        """The mean of the ratios; 0 where nothing was changed."""
        return sum(self.contrasts) / len(self.contrasts) if self.contrasts else 0.0

    @property
    def conflict(self) -> float:
        """The mean of (1 − cos)/2 over the pairs of models that changed something."""
        if self.products is None:
            return 0.0
        norms = self.products.diagonal().sqrt()
        chosen = [number for number, norm in enumerate(norms) if norm]
        values = [
            float(1 - self.products[one, other] / (norms[one] * norms[other])) / 2
            for one, other in itertools.combinations(chosen, 2)
        ]
        return sum(values) / len(values) if values else 0.0


def _rank(matrix: torch.Tensor) -> float:
    shares = torch.linalg.svdvals(matrix).square()
    shares = shares[shares > 0] / shares.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def check_tiers(
    report: Mapping[str, Any], planned: Sequence[PlannedTensor], inputs: ExactInputs
) -> None:
    """Check the tiers of a report, if it has any.

    Raises:
        LinesError: one is not that of the inputs.
    """
    tiers = report.get("larv", {})
    blocks: dict[tuple[str, int], _Block] = defaultdict(_Block)
    for item in planned if tiers else ():
        depth = item.placed.depth
        if depth is not None and item.placed.words.shape == "larv":
            matrices = _matrices(item, inputs)
            if matrices:
                blocks[depth.container, depth.index].add(matrices[0], matrices[1:])
    for container, reported in tiers.items():
        for number, tier in enumerate(reported):
            block = blocks[container, number]
            for key in ("contrast", "conflict"):
                value = getattr(block, key)
                if abs(tier[key] - value) > TOLERANCE * max(1.0, abs(value)):
                    _refuse(f"{key} {tier[key]:g}", container, number, f"{value:g} by the inputs")
        scores = _scores(reported)
        for number, (tier, score) in enumerate(zip(reported, scores, strict=True)):
            if tier["level"] not in {_level(score - ON_THE_EDGE), _level(score + ON_THE_EDGE)}:
                _refuse(f"level {tier['level']:g}", container, number, f"{_level(score):g}")


def _matrices(item: PlannedTensor, inputs: ExactInputs) -> list[torch.Tensor]:
    """Return the sampled matrices of base and models, float64; none for what is no matrix."""
    task = item.task
    read = {model: inputs.read(model, weight) for model, weight in task.inputs.items()}
    tensors = {m: one.cast(task.input_dtype()).tensor for m, one in read.items() if one is not None}
    base = tensors.pop(task.base_model, None)
    matrix = as_matrix(tuple(base.shape)) if base is not None else None
    if base is None or matrix is None or not tensors or not base.is_floating_point():
        return []
    rows, columns = (torch.tensor(sampled(count)) for count in matrix)
    start, *tuned = (
        tensor.reshape(matrix)[rows][:, columns].double() for tensor in (base, *tensors.values())
    )
    return [start, *(each - start for each in tuned)]


def _scores(reported: Sequence[Mapping[str, float]]) -> list[float]:
    """Return z(contrast) − z(conflict) over the blocks that were changed, 0 for the others."""
    changed = torch.tensor([tier["contrast"] > 0 for tier in reported])
    scores = torch.zeros(len(reported), dtype=torch.float64)
    for key, sign in (("contrast", 1), ("conflict", -1)):
        values = torch.tensor([tier[key] for tier in reported], dtype=torch.float64)[changed]
        spread = values.std(correction=0) if len(values) else torch.tensor(0.0)
        if spread > 1e-9 * max(1.0, float(values.mean().abs()) if len(values) else 1.0):
            scores[changed] += sign * (values - values.mean()) / spread
    return [float(score) for score in scores]


def _level(score: float) -> float:
    return 0.75 if score <= -0.5 else 1.25 if score >= 0.5 else 1.0


def _refuse(told: str, container: str, number: int, wanted: str) -> None:
    raise LinesError(
        f"{REPORT}: the {told} of block {number + 1} of {container} under larv is {wanted}. The "
        f"report was edited, or an input changed: restore it, or merge again."
    )
