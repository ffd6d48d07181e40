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


@compiled
def count(integers: int, _floats: int) -> int:
    """Count and gather one piece's magnitudes for every search, and sample them.

    Args:
        integers: address of what :mod:`~mergekit_lines.kernels.compiled.layout` says.
        _floats: of no use here.
    """
    ints = longs_at(integers)
    scratch, size = ints[at.SCRATCH], 4 * at.BLOCK
    base, delta, words = (
        floats_at(scratch),
        floats_at(scratch + size),
        words_at(scratch + size),
    )
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
                    _search(ints, place, words, block)
    return 0


@compiled
def _search(ints: Any, place: int, words: Any, count: int) -> None:
    """Count a block's magnitudes above one range, and gather those in it."""
    low, high = np.int32(ints[place + at.LOW]), np.int32(ints[place + at.HIGH])
    gathered, before = words_at(ints[place + at.GATHERED]), ints[place + at.INSIDE]
    larger, inside = ZERO, before
    for i in range(count):
        larger = np.int32(larger + np.int32(words[i] > high))
    for i in range(count):
        # Without a branch, which would be guessed wrong: what is not in the range is overwritten.
        gathered[inside] = words[i]
        inside += np.int64((words[i] >= low) & (words[i] <= high))
    ints[place + at.ABOVE] += larger
    if ints[place + at.PIVOT]:
        inside = _set_apart(ints, place + at.PIVOT, gathered, before, inside)
    ints[place + at.INSIDE] = inside


@compiled
def _set_apart(ints: Any, place: int, gathered: Any, before: int, inside: int) -> int:
    """Count what equals a pivot instead of gathering it; return where what is gathered ends."""
    end = before
    for i in range(before, inside):
        word, equal = gathered[i], np.int64(0)
        for pivot in range(ints[place]):
            same = np.int64(ints[place + 1 + pivot] == word)
            ints[place + 1 + at.PIVOTS + pivot] += same
            equal += same
        gathered[end] = word
        end += 1 - equal
    return end


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
    for number_of_block in range((ints[at.COUNT] + at.BLOCK - 1) // at.BLOCK):
        start = number_of_block * at.BLOCK
        block = smaller(at.BLOCK, ints[at.COUNT] - start)
        widen(ints[at.BASE_CODE], ints[at.BASE], start, base, block)
        for model in range(ints[at.MODELS]):
            own = at.HEAD + model * at.MODEL
            subtract(ints[own + at.CODE], ints[own + at.ADDRESS], start, base, delta, block)
            for i in range(block):
                words[i] = np.int32(words[i] & MAGNITUDE)
            _runs(delta, ints[own + at.LIMIT] + start // at.RUN * 4, block)
            first = np.uint32(ints[own + at.FIRST] + ints[at.START] + start)
            second, third = np.uint32(ints[own + at.SECOND]), np.uint32(ints[own + at.THIRD])
            bound = np.int32(ints[own + at.BOUND])
            for i in range(block):
                stays = np.int32(draw(first, second, third, i) < bound)
                kept_words[i] = np.int32(words[i] & np.int32(-stays))
            _runs(kept, ints[own + at.EQUALS] + start // at.RUN * 4, block)
    return 0


@compiled
def _runs(magnitudes: Any, address: int, count: int) -> None:
    """Sum up runs in the order in which torch does on eight lanes; copy what fills none."""
    out, whole = floats_at(address), count // at.RUN
    for run in range(whole):
        out[run] = _run(magnitudes, run * at.RUN)
    for i in range(whole * at.RUN, count):
        out[whole + i - whole * at.RUN] = magnitudes[i]


@compiled
def _run(magnitudes: Any, start: int) -> Any:
    total = np.float32(0)
    for lane in range(8):
        sums = np.float32(0)
        for part in range(4):
            own = np.float32(0)
            for step in range(8):
                own += magnitudes[start + step * 32 + part * 8 + lane]
            sums = own if part == 0 else sums + own
        total += sums
    return total


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
