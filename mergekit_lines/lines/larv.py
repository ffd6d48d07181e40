"""LARV: three levels over the blocks, from effective ranks and from conflict between the models.

The idea is that of arXiv 2602.09413: a block whose update is simpler than its weights, and about
which the models agree, is amplified; one whose update is diffuse and disputed is held back, by
fixed levels and not by a continuous map. Contrast and effective rank are the paper's. The measure
of conflict, the standard scores, the levels and their thresholds are this package's own:

- e(ℓ): the mean of r_eff(θ_0)/r_eff(τ_t) over the block's matrices and the models t that changed
  them. r_eff is 1 at least, so that the paper's ε is not needed.
- c(ℓ): the mean of (1 − cos(τ_s, τ_t))/2 over all pairs of models that changed the block.
- score: z(e) − z(c), both standardised over the blocks of one container.
- level: 0.75 for a score of −0.5 or less, 1.25 for 0.5 or more, 1 between.

A block that no model changed has the level 1, and counts nowhere.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.readings import Tier

LOW, MIDDLE, HIGH = 0.75, 1.0, 1.25
THRESHOLD = 0.5  # standard deviations between e and c
FLAT = 1e-9  # a spread below it is rounding, and no difference between blocks


@dataclass(frozen=True)
class MatrixTerms:
    """What one matrix tells of its block.

    Attributes:
        contrasts: r_eff(θ_0)/r_eff(τ_t) of every model t that changed it.
        products: ⟨τ_s, τ_t⟩ of all models, [N][N].
    """

    contrasts: Sequence[float]
    products: Sequence[Sequence[float]]


@dataclass(eq=False)
class TermCollector:
    """What each matrix tells, by tensor name, as it is read."""

    terms: dict[str, MatrixTerms] = field(default_factory=dict)

    def add(
        self, name: str, contrasts: Sequence[float], products: Sequence[Sequence[float]]
    ) -> None:
        """Take one matrix's terms."""
        self.terms[name] = MatrixTerms(contrasts, products)

    def join(self, other: TermCollector) -> None:
        """Take over another's terms, of other tensors."""
        self.terms |= other.terms


def tiers(
    terms: Mapping[str, MatrixTerms], depths: Mapping[str, BlockDepth]
) -> dict[str, list[Tier]]:
    """Return the level of every block, by container.

    Args:
        terms: of the matrices, by tensor name.
        depths: of all tensors whose containers are asked for.
    """
    counts = {depth.container: depth.count for depth in depths.values()}
    blocks: dict[tuple[str, int], list[MatrixTerms]] = defaultdict(list)
    for name in sorted(terms):
        depth = depths[name]
        blocks[depth.container, depth.index].append(terms[name])
    return {
        container: _container([blocks[container, index] for index in range(count)])
        for container, count in sorted(counts.items())
    }


def _container(blocks: Sequence[Sequence[MatrixTerms]]) -> list[Tier]:
    contrasts = [_contrast(block) for block in blocks]
    conflicts = [_conflict(block) for block in blocks]
    changed = [number for number, contrast in enumerate(contrasts) if contrast > 0]
    scores = dict(
        zip(
            changed,
            map(
                float.__sub__,
                _standard([contrasts[number] for number in changed]),
                _standard([conflicts[number] for number in changed]),
            ),
            strict=True,
        )
    )
    return [
        Tier(contrast, conflict, _level(scores.get(number, 0.0)))
        for number, (contrast, conflict) in enumerate(zip(contrasts, conflicts, strict=True))
    ]


def _contrast(block: Sequence[MatrixTerms]) -> float:
    values = [value for matrix in block for value in matrix.contrasts]
    return math.fsum(values) / len(values) if values else 0.0


def _conflict(block: Sequence[MatrixTerms]) -> float:
    count = len(block[0].products) if block else 0

    def product(one: int, other: int) -> float:
        return math.fsum(matrix.products[one][other] for matrix in block)

    norms = [math.sqrt(product(model, model)) for model in range(count)]
    values = [
        (1 - product(one, other) / (norms[one] * norms[other])) / 2
        for one, other in itertools.combinations(range(count), 2)
        if norms[one] and norms[other]
    ]
    return math.fsum(values) / len(values) if values else 0.0


def _standard(values: Sequence[float]) -> list[float]:
    """Return (x − mean)/σ, or zeros where all are alike."""
    if not values:
        return []
    mean, spread = math.fsum(values) / len(values), statistics.pstdev(values)
    if spread <= FLAT * max(1.0, abs(mean)):
        return [0.0] * len(values)
    return [(value - mean) / spread for value in values]


def _level(score: float) -> float:
    if score <= -THRESHOLD:
        return LOW
    return HIGH if score >= THRESHOLD else MIDDLE
