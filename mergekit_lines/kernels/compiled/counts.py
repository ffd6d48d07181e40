"""How many magnitudes lie above a range, and which in it: one pass over a piece."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.words import (
    INFINITY,
    MAGNITUDE,
    ZERO,
    compiled,
    draw,
    fill,
    floats_at,
    longs_at,
    number,
    smaller,
    subtract,
    widen,
    words_at,
)

_MARKS = 32  # entries that are looked through at once for some to gather


@compiled
def count(integers: int, _floats: int) -> int:
    """Count and gather one piece's magnitudes for every search, and sample them.

    Args:
        integers: address of what :mod:`~mergekit_lines.kernels.compiled.layout` says.
        _floats: of no use here.
    """
    ints = longs_at(integers)
    scratch, size = ints[at.SCRATCH], 4 * at.BLOCK
    base, marks = floats_at(scratch), words_at(scratch + 2 * size)
    delta, words = floats_at(scratch + size), words_at(scratch + size)
    models = ints[at.MODELS]
    searches = at.SEARCHES + 1 + 3 * models
    stride = ints[at.STRIDE]
    for number_of_block in range((ints[at.COUNT] + at.BLOCK - 1) // at.BLOCK):
        start = number_of_block * at.BLOCK
        block = smaller(at.BLOCK, ints[at.COUNT] - start)
        widen(ints[at.BASE_CODE], ints[at.BASE], start, base, block)
        for model in range(models):
            own = at.SEARCHES + 1 + 3 * model
            subtract(ints[own + at.CODE], ints[own + at.ADDRESS], start, base, delta, block)
            for i in range(block):
                word = np.int32(words[i] & MAGNITUDE)
                # NaN is above nothing and in no range.
                words[i] = np.int32(word | np.int32(-np.int32(word > INFINITY)))
            samples = words_at(ints[own + 2])
            sample = (start + stride - 1) // stride
            while sample * stride < start + block:
                samples[sample] = words[sample * stride - start]
                sample += 1
            for search in range(ints[at.SEARCHES]):
                place = searches + search * at.SEARCH
                if ints[place + at.OWNER] == model:
                    _search(ints, place, words, marks, block)
    return 0


@compiled
def _search(ints: Any, place: int, words: Any, marks: Any, count: int) -> None:
    """Count a block's magnitudes above one range and equal to pivots, and gather the others in it.

    What is gathered is sought in runs, most of which hold none: marks are made without a branch.
    """
    low, high = np.int32(ints[place + at.LOW]), np.int32(ints[place + at.HIGH])
    larger = ZERO
    for i in range(count):
        larger = np.int32(larger + np.int32(words[i] > high))
        marks[i] = np.int32((words[i] >= low) & (words[i] <= high))
    ints[place + at.ABOVE] += larger
    for pivot in range(ints[place + at.PIVOT]):
        own, equal = np.int32(ints[place + at.PIVOT + 1 + pivot]), ZERO
        for i in range(count):
            same = np.int32(words[i] == own)
            equal = np.int32(equal + same)
            marks[i] = np.int32(marks[i] & (same ^ 1))
        ints[place + at.PIVOT + 1 + at.PIVOTS + pivot] += equal
    for i in range(count, (count + _MARKS - 1) // _MARKS * _MARKS):
        marks[i] = ZERO
    gathered, inside = words_at(ints[place + at.GATHERED]), ints[place + at.INSIDE]
    for run in range((count + _MARKS - 1) // _MARKS):
        start, some = run * _MARKS, ZERO
        for i in range(_MARKS):
            some |= marks[start + i]
        if some:
            # Without a branch, which would be guessed wrong: what is not marked is overwritten.
            for i in range(start, smaller(start + _MARKS, count)):
                gathered[inside] = words[i]
                inside += np.int64(marks[i])
    ints[place + at.INSIDE] = inside


@compiled
def sums(integers: int, _floats: int) -> int:
    """Sum up runs of one piece's magnitudes, all of them and those that their draws keep.

    Args:
        integers: address of those of a merge; of each model LIMIT holds the address of the sums
            before its draws, EQUALS of those after. Behind the sums come the magnitudes that
            fill no run.
        _floats: of no use here.
    """
    ints = longs_at(integers)
    scratch, size = ints[at.SCRATCH], 4 * at.BLOCK
    base, delta, words = floats_at(scratch), floats_at(scratch + size), words_at(scratch + size)
    kept, kept_words = floats_at(scratch + 2 * size), words_at(scratch + 2 * size)
    lanes = floats_at(scratch + 3 * size)
    for number_of_block in range((ints[at.COUNT] + at.BLOCK - 1) // at.BLOCK):
        start = number_of_block * at.BLOCK
        block = smaller(at.BLOCK, ints[at.COUNT] - start)
        widen(ints[at.BASE_CODE], ints[at.BASE], start, base, block)
        for model in range(ints[at.MODELS]):
            own = at.HEAD + model * at.MODEL
            subtract(ints[own + at.CODE], ints[own + at.ADDRESS], start, base, delta, block)
            for i in range(block):
                words[i] = np.int32(words[i] & MAGNITUDE)
            _runs(delta, lanes, ints[own + at.LIMIT] + start // at.RUN * 4, block)
            first = np.uint32(ints[own + at.FIRST] + ints[at.START] + start)
            second, third = np.uint32(ints[own + at.SECOND]), np.uint32(ints[own + at.THIRD])
            bound = np.int32(ints[own + at.BOUND])
            for i in range(block):
                stays = np.int32(draw(first, second, third, i) < bound)
                kept_words[i] = np.int32(words[i] & np.int32(-stays))
            _runs(kept, lanes, ints[own + at.EQUALS] + start // at.RUN * 4, block)
    return 0


@compiled
def _runs(magnitudes: Any, lanes: Any, address: int, count: int) -> None:
    """Sum up runs in the order in which torch does on eight lanes; copy what fills none.

    Args:
        magnitudes: of a block.
        lanes: room for an eighth of them.
        address: of what takes the sums.
        count: of magnitudes.
    """
    out, whole = floats_at(address), count // at.RUN
    for run in range(whole):
        first = run * at.RUN
        for i in range(32):  # four parts of eight lanes
            own = magnitudes[first + i] + magnitudes[first + 32 + i]
            own = own + magnitudes[first + 64 + i] + magnitudes[first + 96 + i]
            own = own + magnitudes[first + 128 + i] + magnitudes[first + 160 + i]
            lanes[run * 32 + i] = own + magnitudes[first + 192 + i] + magnitudes[first + 224 + i]
    for run in range(whole):
        total = np.float32(0)
        for lane in range(run * 32, run * 32 + 8):
            total += lanes[lane] + lanes[lane + 8] + lanes[lane + 16] + lanes[lane + 24]
        out[run] = total
    for i in range(whole * at.RUN, count):
        out[whole + i - whole * at.RUN] = magnitudes[i]


@compiled
def signs(integers: int, floats: int) -> int:
    """Return the sum of the signs that one piece's weighted sums of what stays have.

    Args:
        integers: address of what :mod:`~mergekit_lines.kernels.compiled.layout` says.
        floats: address of the models' weights.
    """
    ints, weights = longs_at(integers), floats_at(floats)
    scratch, size = ints[at.SCRATCH], 4 * at.BLOCK
    base, total = floats_at(scratch), floats_at(scratch + size)
    delta, words = floats_at(scratch + 2 * size), words_at(scratch + 2 * size)
    votes = np.int64(0)
    for number_of_block in range((ints[at.COUNT] + at.BLOCK - 1) // at.BLOCK):
        start = number_of_block * at.BLOCK
        block = smaller(at.BLOCK, ints[at.COUNT] - start)
        widen(ints[at.BASE_CODE], ints[at.BASE], start, base, block)
        fill(total, np.float32(0), block)
        for model in range(ints[at.MODELS]):
            own, weight = at.START + 1 + at.SIGNED * model, weights[model]
            subtract(ints[own + at.CODE], ints[own + at.ADDRESS], start, base, delta, block)
            limit = np.int32(ints[own + at.ABOVE_WHICH])
            for i in range(block):
                stays = np.int32(np.int32(words[i] & MAGNITUDE) > limit)
                total[i] = total[i] + number(np.int32(words[i] & np.int32(-stays))) * weight
        own_votes = ZERO
        for i in range(block):
            own_votes = np.int32(own_votes + np.int32(total[i] > 0) - np.int32(total[i] < 0))
        votes += own_votes
    return votes
