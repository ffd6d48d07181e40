"""M − θ_0 of task arithmetic and its relatives, scaled, added and rounded: one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.words import (
    MAGNITUDE,
    SIGN,
    ZERO,
    compiled,
    draw,
    fill,
    floats_at,
    fused,
    longs_at,
    narrow,
    number,
    pattern,
    smaller,
    subtract,
    widen,
    words_at,
)

_MOST = np.int32(0x7FFFFFFF)
_NOTHING = np.float32(-0.0)  # what a sum begins with: added to it, 0 and −0 stay what they are


@compiled
def merge(integers: int, floats: int) -> int:
    """Merge one piece; return a negative number where an input or the result is not finite.

    Args:
        integers: address of what :mod:`~mergekit_lines.kernels.compiled.layout` says.
        floats: address of the fp32 numbers it says.
    """
    ints, numbers = longs_at(integers), floats_at(floats)
    count, models, scratch = ints[at.COUNT], ints[at.MODELS], ints[at.SCRATCH]
    election, size = ints[at.ELECTION], 4 * at.BLOCK
    base, total = floats_at(scratch), floats_at(scratch + size)
    kept, deltas = scratch + 2 * size, scratch + at.BUFFERS * size
    beyond = np.int32(0)
    for number_of_block in range((count + at.BLOCK - 1) // at.BLOCK):
        start = number_of_block * at.BLOCK
        block = smaller(at.BLOCK, count - start)
        beyond |= widen(ints[at.BASE_CODE], ints[at.BASE], start, base, block)
        fill(total, np.float32(0) if election == at.BY_COUNT else _NOTHING, block)
        for model in range(models):
            own = at.HEAD + model * at.MODEL
            delta = deltas + model * size
            beyond |= subtract(
                ints[own + at.CODE], ints[own + at.ADDRESS], start, base, floats_at(delta), block
            )
            # What stays goes elsewhere: stored in place it would be a masked store, which is slow.
            stays = delta if ints[own + at.KIND] == at.WHOLE else kept
            if ints[own + at.KIND] == at.NOTHING:
                fill(floats_at(kept), np.float32(0), block)
            elif ints[own + at.KIND] == at.CUT:
                _cut(ints, own, words_at(delta), words_at(kept), block)
            elif ints[own + at.KIND] == at.DRAWN:
                first = ints[at.START] + start
                _drop(ints, own, first, words_at(delta), words_at(kept), block)
            factor = numbers[at.FACTOR + at.PAIRED * model]
            _add(election, factor, floats_at(stays), floats_at(delta), scratch + size, block)
        if election != at.LINEAR:
            _elect(ints, numbers, block)
        if ints[at.MIN_AGREE]:
            _agree(ints, numbers, start, block)
        if ints[at.VECTOR]:
            vector = floats_at(ints[at.VECTOR])
            for i in range(block):
                vector[start + i] = total[i]
        coefficient = numbers[at.COEFFICIENT]
        beyond |= narrow(ints[at.OUT_CODE], ints[at.OUT], start, base, total, coefficient, block)
    return beyond


@compiled
def _add(election: int, factor: Any, stays: Any, delta: Any, sum_address: int, count: int) -> None:
    """Weigh what stays; add it, or its signs where they are counted, to the sum."""
    total, votes = floats_at(sum_address), words_at(sum_address)
    if election == at.LINEAR:
        for i in range(count):
            total[i] = fused(stays[i], factor, total[i])
    elif election == at.BY_SUM:
        for i in range(count):
            value = stays[i] * factor
            delta[i] = value
            total[i] = total[i] + value
    else:
        for i in range(count):
            value = stays[i] * factor
            delta[i] = value
            votes[i] = np.int32(votes[i] + np.int32(value > 0) - np.int32(value < 0))


@compiled
def _cut(ints: Any, own: int, words: Any, kept: Any, count: int) -> None:
    """Set what is at or below a magnitude to 0, and what is above another one.

    Of those equal to the next pattern above, the first ones count as larger.
    """
    low, high = np.int32(ints[own + at.LIMIT]), np.int32(ints[own + at.UPPER])
    equals, outliers = ints[own + at.EQUALS], ints[own + at.UPPER_EQUALS]
    if equals == 0 and outliers == 0:
        if high == _MOST:
            for i in range(count):
                stays = np.int32(np.int32(words[i] & MAGNITUDE) > low)
                kept[i] = np.int32(words[i] & np.int32(-stays))
        else:
            for i in range(count):
                size = np.int32(words[i] & MAGNITUDE)
                inside = np.int32((size > low) & (size <= high))
                kept[i] = np.int32(words[i] & np.int32(-inside))
        return
    for i in range(count):
        size = np.int32(words[i] & MAGNITUDE)
        stays = size > low
        if size == low and equals > 0:
            equals -= 1
            stays = True
        if size > high:
            stays = False
        if size == high and outliers > 0:
            outliers -= 1
            stays = False
        kept[i] = words[i] if stays else ZERO
    ints[own + at.EQUALS], ints[own + at.UPPER_EQUALS] = equals, outliers


@compiled
def _drop(ints: Any, own: int, start: int, words: Any, kept: Any, count: int) -> None:
    """Set entries to 0 by their draws, the hash of kernels/draws.py."""
    first, second = np.uint32(ints[own + at.FIRST] + start), np.uint32(ints[own + at.SECOND])
    third, bound = np.uint32(ints[own + at.THIRD]), np.int32(ints[own + at.BOUND])
    for i in range(count):
        stays = np.int32(draw(first, second, third, i) < bound)
        kept[i] = np.int32(words[i] & np.int32(-stays))


@compiled
def _elect(ints: Any, numbers: Any, count: int) -> None:
    """Sum up what has the elected sign, where the votes were; see kernels/consensus.py."""
    size = 4 * at.BLOCK
    scratch = ints[at.SCRATCH]
    total, elected = floats_at(scratch + size), words_at(scratch + size)
    divisor, mixed = floats_at(scratch + 2 * size), floats_at(scratch + 3 * size)
    deltas = scratch + at.BUFFERS * size
    if ints[at.ZERO_NEGATIVE]:
        for i in range(count):
            elected[i] = np.int32(np.int32(elected[i] - np.int32(elected[i] == ZERO)) & SIGN)
    else:
        for i in range(count):
            elected[i] = np.int32(elected[i] & SIGN)
    fill(divisor, _NOTHING, count)
    fill(mixed, _NOTHING, count)
    for model in range(ints[at.MODELS]):
        words = words_at(deltas + model * size)
        weight = numbers[at.WEIGHT + at.PAIRED * model]
        for i in range(count):
            value = number(np.int32(words[i] ^ elected[i]))
            stays = np.int32(1 - np.int32(value < 0))  # NaN does, as in a clamp
            agreeing = number(np.int32(pattern(value) & np.int32(-stays)))
            divisor[i] = divisor[i] + np.float32(value > 0) * weight
            mixed[i] = mixed[i] + agreeing
    scale = numbers[at.SCALE]
    if ints[at.NORMALIZE]:
        for i in range(count):
            value = mixed[i] / (divisor[i] + np.float32(divisor[i] == 0))
            total[i] = number(np.int32(pattern(value) ^ elected[i])) * scale
    else:
        for i in range(count):
            total[i] = number(np.int32(pattern(mixed[i]) ^ elected[i])) * scale


@compiled
def _agree(ints: Any, numbers: Any, start: int, count: int) -> None:
    """Keep of the sum what enough of the models want; see kernels/agreement.py."""
    size = 4 * at.BLOCK
    scratch = ints[at.SCRATCH]
    base, total = floats_at(scratch), floats_at(scratch + size)
    sums, votes = words_at(scratch + size), words_at(scratch + 2 * size)
    for i in range(count):
        votes[i] = ZERO
    for model in range(ints[at.MODELS]):
        own = at.HEAD + model * at.MODEL
        delta = floats_at(scratch + (at.BUFFERS + model) * size)
        if ints[at.ELECTION] != at.LINEAR:  # what was elected lies where the whole vectors did
            subtract(ints[own + at.CODE], ints[own + at.ADDRESS], start, base, delta, count)
        weight = numbers[at.WEIGHT + at.PAIRED * model]
        tall_lambda = numbers[at.TALL_LAMBDA + at.PAIRED * model]
        for i in range(count):
            share = delta[i] * weight
            rest = total[i] - share
            most = number(np.int32(pattern(rest) & MAGNITUDE)) * tall_lambda
            vote = number(np.int32(pattern(share) & MAGNITUDE)) > most
            votes[i] = np.int32(votes[i] + np.int32(vote))
    least, scale = np.int32(ints[at.MIN_AGREE]), numbers[at.AGREED_SCALE]
    for i in range(count):
        stays = np.int32(votes[i] >= least)
        total[i] = number(np.int32(sums[i] & np.int32(-stays))) * scale
