"""What Eq. 2 sums up of a plain sum of task vectors, entry by entry: one pass over a piece."""

from __future__ import annotations

import numpy as np

from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.words import (
    compiled,
    doubles_at,
    fill,
    floats_at,
    longs_at,
    smaller,
    widen,
)


@compiled
def powers(integers: int, _floats: int) -> int:
    """Store |x|^power in float64 of the plain sum x of one piece's task vectors.

    Args:
        integers: address of what :mod:`~mergekit_lines.kernels.compiled.layout` says.
        _floats: of no use here.
    """
    ints = longs_at(integers)
    base, tuned = floats_at(ints[at.SCRATCH]), floats_at(ints[at.SCRATCH] + 4 * at.BLOCK)
    for number_of_block in range((ints[at.COUNT] + at.BLOCK - 1) // at.BLOCK):
        start = number_of_block * at.BLOCK
        block = smaller(at.BLOCK, ints[at.COUNT] - start)
        sums = doubles_at(ints[at.POWERS] + 8 * start)
        if ints[at.BASE]:
            widen(ints[at.BASE_CODE], ints[at.BASE], start, base, block)
        else:
            fill(base, np.float32(0), block)
        for i in range(block):
            sums[i] = 0.0
        for model in range(ints[at.MODELS]):
            own = at.EXPONENT + 1 + 2 * model
            widen(ints[own + at.CODE], ints[own + at.ADDRESS], start, tuned, block)
            for i in range(block):
                sums[i] += np.float64(tuned[i]) - np.float64(base[i])
        if ints[at.EXPONENT] == 1:
            for i in range(block):
                sums[i] = np.abs(sums[i])
        else:
            for i in range(block):
                sums[i] = sums[i] * sums[i]
    return 0
