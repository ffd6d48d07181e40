"""Which tensors are checked."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergekit_lines.plan.planned import PlannedTensor

# One entry in so many may differ where nobody counted a method's own roundings.
SHARE = 10_000


@dataclass(frozen=True)
class Choice:
    """What to recompute, and from where.

    Args:
        sample: how many tensors.
        seed: of the sample.
        everything: all tensors instead.
        strict: everything, and whole files wherever the report has a digest of their content.
        moved: folders, by the recipe's names, of models that are elsewhere now.
        trust_remote_code: run code that comes with the models.
    """

    sample: int = 20
    seed: int = 0
    everything: bool = False
    strict: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False


def choose(planned: Sequence[PlannedTensor], choice: Choice) -> list[PlannedTensor]:
    """Return the tensors to recompute, in the order of the plan.

    A sample holds one matrix of the first and of the last block of every container, where an
    index that is off by one shows, and up to three tensors outside the blocks.
    """
    if choice.everything or choice.strict or choice.sample >= len(planned):
        return list(planned)
    generator = random.Random(choice.seed)  # noqa: S311 - a sample, no secret
    ends: dict[str, dict[int, list[PlannedTensor]]] = defaultdict(lambda: defaultdict(list))
    outside = []
    for item in planned:
        if item.placed.depth is None:
            outside.append(item)
        elif item.placed.depth.index in (0, item.placed.depth.count - 1):
            ends[item.placed.depth.container][item.placed.depth.index].append(item)
    first = [generator.choice(items) for blocks in ends.values() for items in blocks.values()]
    first += generator.sample(outside, min(3, len(outside)))
    rest = [item for item in planned if item not in first]
    generator.shuffle(rest)
    names = {item.weight.name for item in [*first, *rest][: choice.sample]}
    return [item for item in planned if item.weight.name in names]
