"""Coefficients that follow no formula of the depth: values that are written out, block by block."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_lines.lines.depth import BlockDepth


def at_depth(values: Sequence[float], index: int, count: int) -> float:
    """Return the value of one block, from values that are spread evenly over the depth.

    With v_1 … v_n and x = (ℓ−1)/(L−1) it is linear between the two values beside x·(n−1). As
    many values as blocks are the blocks' own, to the bit; one block has the first.

    Args:
        values: n of them, two at least.
        index: of the block, 0-based.
        count: L, the number of blocks.
    """
    (left, share), *right = shares(len(values), index, count)
    if not right:
        return values[left]
    ((other, rest),) = right
    return values[left] * share + values[other] * rest


def shares(number: int, index: int, count: int) -> list[tuple[int, float]]:
    """Return the values that make one block's, by their places, and the share of each.

    Args:
        number: of the values, two at least.
        index: of the block, 0-based.
        count: L, the number of blocks.
    """
    if count == 1:
        return [(0, 1.0)]
    # In whole numbers, so that a value that falls on a block is taken as it is.
    left, rest = divmod(index * (number - 1), count - 1)
    if not rest:
        return [(left, 1.0)]
    share = rest / (count - 1)
    return [(left, 1 - share), (left + 1, share)]


def weight_at(
    weight: float | tuple[float, ...], outside: float | None, depth: BlockDepth | None
) -> float:
    """Return a model's weight in one tensor.

    Args:
        weight: of all blocks; or values that are spread over them as in :func:`at_depth`.
        outside: of tensors outside the blocks; None for the first block's.
        depth: of the tensor, None outside the blocks.
    """
    if depth is None and outside is not None:
        return outside
    if not isinstance(weight, tuple):
        return weight
    return weight[0] if depth is None else at_depth(weight, depth.index, depth.count)
