"""What makes merges fail, told from the weights: by a deep look, before the merge."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from mergekit_lines.errors import some
from mergekit_lines.inspection.deep import Depth, Look

# Fine-tuning moves weights by 0.1 % to 10 % of their length; unrelated models lie about √2 apart.
UNRELATED = 0.5
EXPLODED = 10.0  # times what the model's other blocks changed by
NOTICEABLE = 0.05  # of the base: a block that moved less is no trouble, whatever the others did
ONE_TENSOR = 0.5  # of ‖τ‖²
FEW = 4  # depths; of fewer one tensor may well be most, and stands out by nine tenths only
SAME = 0.9999  # cosine of two models' task vectors


def troubles(look: Look) -> Iterator[str]:
    """Yield a sentence for each: which model, where, what was found, what to do."""
    if look.nonfinite:
        yield (
            f"{len(look.nonfinite)} tensors hold NaN or infinity ({some(look.nonfinite, 3)}): the "
            f"merge refuses them, or has them in OUT where allow_nonfinite is true. Save or train "
            f"that model again"
        )
    if look.left_out:
        yield (
            f"{len(look.left_out)} tensors were not looked at, for not all models have them in "
            f"one shape of floating-point numbers ({some(look.left_out, 3)})"
        )
    for model in look.unseen:
        yield f"{model}: was not looked at, for it stands in other slices than {look.models[0]}"
    if not look.depths:
        return
    for number, model in enumerate(look.models):
        yield from _of_model(look, number, model)
    yield from _twins(look)


def _of_model(look: Look, number: int, model: str) -> Iterator[str]:
    share = look.total.shares[number]
    if not look.total.changes[number]:
        yield (
            f"{model}: is identical to the base: there is nothing to merge. Check that its path "
            f"is the fine-tuned model's"
        )
        return
    if share > UNRELATED:
        yield (
            f"{model}: differs from the base by {share:.2g} times the base's own length, where "
            f"fine-tuning moves it by a hundredth or so: it hardly descends from this base. Check "
            f"base_model"
        )
        return
    blocks = [depth for depth in look.depths if depth.index]
    yield from _exploded(blocks, number, model)
    still = [depth.name for depth in blocks if not depth.changes[number]]
    if still and len(still) < len(blocks):
        yield (
            f"{model}: {len(still)} of {len(blocks)} blocks are the base's own ({some(still, 3)}). "
            f"If they were not frozen in training, the checkpoint is not whole"
        )
    elif still:
        yield (
            f"{model}: differs from the base outside the blocks alone, where no schedule reaches. "
            f"Check that it was saved whole"
        )
    name, part = look.largest[number]
    if part > ONE_TENSOR and len(blocks) >= 2 and not _is_small(look, number):
        yield (
            f"{model}: {part:.0%} of its squared difference from the base is one tensor, {name}. "
            f"Norms over the model (alpha: auto) tell of little else; see that it belongs to it"
        )


def _is_small(look: Look, number: int) -> bool:
    """Tell whether there are too few blocks for one tensor to stand out."""
    return len(look.depths) < FEW and look.largest[number][1] < 0.9


def _exploded(blocks: Sequence[Depth], number: int, model: str) -> Iterator[str]:
    for depth in blocks:
        others = [one.shares[number] for one in blocks if one is not depth and one.changes[number]]
        if len(others) < 2:
            return
        usual, share = statistics.median(others), depth.shares[number]
        if share > max(EXPLODED * usual, NOTICEABLE):
            yield (
                f"{model}: {depth.name} differs from the base by {share:.2g} of its length, the "
                f"other blocks by {usual:.2g}: the training may have diverged there. Use an "
                f"earlier checkpoint, or lower the coefficient of that block"
            )


def _twins(look: Look) -> Iterator[str]:
    pairs = (
        (first, second)
        for first in range(len(look.models))
        for second in range(first + 1, len(look.models))
    )
    for (first, second), cosine in zip(pairs, look.total.cosines, strict=True):
        if cosine is not None and cosine > SAME:
            yield (
                f"{look.models[first]} and {look.models[second]}: their changes point the same way "
                f"(cosine {cosine:.5f}), as of one model listed twice. Check the paths"
            )
