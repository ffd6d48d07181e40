"""How many magnitudes lie above a range, and which in it: one pass over a piece."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.words import (
    INFINITY,
    MAGNITUDE,
    ZERO,
    bytes_at,
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


@compiled
def count(integers: int, _floats: int) -> int:
    """Count and gather one piece's magnitudes for every search, and sample them.

    Args:
        integers: address of what :mod:`~mergekit_lines.kernels.compiled.layout` says.
        _floats: of no use here.
    """
    ints = longs_at(integers)
    scratch, size = ints[at.SCRATCH], 4 * at.BLOCK
    base, delta, words = floats_at(scratch), floats_at(scratch + size), words_at(scratch + size)
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
                    _search(ints, place, words, scratch + 2 * size, block)
    return 0


@compiled
def _search(ints: Any, place: int, words: Any, marks_at: int, count: int) -> None:
    """Count a block's magnitudes above one range, and gather those in it that equal no pivot."""
    low, high = np.int32(ints[place + at.LOW]), np.int32(ints[place + at.HIGH])
    marks, larger = words_at(marks_at), ZERO
    for i in range(count):
        larger = np.int32(larger + np.int32(words[i] > high))
        marks[i] = np.int32((words[i] >= low) & (words[i] <= high))
    ints[place + at.ABOVE] += larger
    pivots, size = place + at.PIVOT + 1, 4 * at.BLOCK
    for pivot in range(ints[place + at.PIVOT]):
        value, equal = np.int32(ints[pivots + pivot]), ZERO
        # From one room to another: stored in place it would be a masked store, which is slow.
        marks, left = (
            words_at(marks_at + pivot % 2 * size),
            words_at(marks_at + (1 - pivot % 2) * size),
        )
        for i in range(count):
            same = np.int32(words[i] == value)
            equal = np.int32(equal + same)
            left[i] = np.int32(marks[i] & np.int32(same - np.int32(1)))
        ints[pivots + at.PIVOTS + pivot] += equal
    marks_at += ints[place + at.PIVOT] % 2 * size
    ints[place + at.INSIDE] = _gather(ints, place, words, marks_at, count)


@compiled
def _gather(ints: Any, place: int, words: Any, marks_at: int, count: int) -> int:
    """Store a block's marked magnitudes behind those before; return where they end.

    Most runs of eight have no mark and are passed over. In the others there is no branch, which
    would be guessed wrong: what has no mark is overwritten.
    """
    flags_at = ints[at.SCRATCH] + 4 * (4 * at.BLOCK)
    marks, flags, runs = words_at(marks_at), bytes_at(flags_at), longs_at(flags_at)
    inside = ints[place + at.INSIDE]
    gathered, number_of_runs = words_at(ints[place + at.GATHERED]), (count + 7) // 8
    runs[number_of_runs - 1] = 0
    for i in range(count):
        flags[i] = np.uint8(marks[i])
    for run in range(number_of_runs):
        flagged = runs[run]
        if flagged:
            for i in range(8):
                gathered[inside] = words[8 * run + i]
                inside += (flagged >> (8 * i)) & 1
    return inside


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
