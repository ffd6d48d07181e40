"""What compiled kernels are made of: memory at an address, bit patterns, bf16 and fp16.

numba is imported here, and so this is imported by :mod:`~mergekit_lines.kernels.compiled.build`
alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mergekit_lines.kernels.compiled.layout import BF16, FP16

ZERO = np.int32(0)
SIGN = np.int32(-(1 << 31))
MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
BEYOND = np.int32(0x00800000)  # added to a magnitude's pattern, NaN and infinity turn negative

compiled = njit(
    nogil=True,
    _nrt=False,  # no arrays are made: nothing is counted
    error_model="numpy",
    boundscheck=False,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)


def _at(kind: Any) -> Any:
    """Return the function from an address to the memory there, as entries of ``kind``."""

    @intrinsic
    def at(_context: Any, _address: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            pointer = context.get_value_type(types.CPointer(kind))
            return builder.inttoptr(values[0], pointer)

        return types.CPointer(kind)(types.int64), generate

    return at


bytes_at = _at(types.uint8)
halfwords_at = _at(types.uint16)
words_at = _at(types.int32)
floats_at = _at(types.float32)
doubles_at = _at(types.float64)
longs_at = _at(types.int64)


@intrinsic
def number(_context: Any, _pattern: Any) -> Any:
    """Return the fp32 number that an int32 is the pattern of."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def pattern(_context: Any, _number: Any) -> Any:
    """Return the bit pattern of an fp32 number as int32."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def fused(_context: Any, _left: Any, _right: Any, _summand: Any) -> Any:
    """Return left·right + summand with one rounding, as torch's ``add`` with an alpha does."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def from_half(_context: Any, _half: Any) -> Any:
    """Return the fp32 number that a uint16 is the fp16 pattern of."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def to_half(_context: Any, _number: Any) -> Any:
    """Return an fp32 number's pattern in fp16, rounded to the nearest, to even between two."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        half = builder.fptrunc(values[0], ir.HalfType())
        return builder.bitcast(half, ir.IntType(16))

    return types.uint16(types.float32), generate


@compiled
def smaller(one: int, other: int) -> int:
    """Return the smaller of two numbers; Python's own takes long to compile."""
    return min(other, one)


@compiled
def widen(code: int, address: int, start: int, numbers: Any, count: int) -> int:
    """Store entries as fp32, and return a negative number where one is not finite.

    Args:
        code: how they are stored.
        address: of the whole run.
        start: of the first entry in it.
        numbers: takes them.
        count: how many.
    """
    beyond = np.int32(0)
    if code == BF16:
        halfwords = halfwords_at(address)
        for i in range(count):
            word = np.int32(np.uint32(halfwords[start + i]) << np.uint32(16))
            beyond = np.int32(beyond | np.int32((word & MAGNITUDE) + BEYOND))
            numbers[i] = number(word)
    elif code == FP16:
        halfwords = halfwords_at(address)
        for i in range(count):
            value = from_half(halfwords[start + i])
            beyond = np.int32(beyond | np.int32((pattern(value) & MAGNITUDE) + BEYOND))
            numbers[i] = value
    else:
        floats = floats_at(address)
        for i in range(count):
            value = floats[start + i]
            beyond = np.int32(beyond | np.int32((pattern(value) & MAGNITUDE) + BEYOND))
            numbers[i] = value
    return beyond


@compiled
def subtract(code: int, address: int, start: int, base: Any, deltas: Any, count: int) -> int:
    """Store entries minus the base's, and return what :func:`widen` does."""
    beyond = np.int32(0)
    if code == BF16:
        halfwords = halfwords_at(address)
        for i in range(count):
            word = np.int32(np.uint32(halfwords[start + i]) << np.uint32(16))
            beyond = np.int32(beyond | np.int32((word & MAGNITUDE) + BEYOND))
            deltas[i] = number(word) - base[i]
    elif code == FP16:
        halfwords = halfwords_at(address)
        for i in range(count):
            value = from_half(halfwords[start + i])
            beyond = np.int32(beyond | np.int32((pattern(value) & MAGNITUDE) + BEYOND))
            deltas[i] = value - base[i]
    else:
        floats = floats_at(address)
        for i in range(count):
            value = floats[start + i]
            beyond = np.int32(beyond | np.int32((pattern(value) & MAGNITUDE) + BEYOND))
            deltas[i] = value - base[i]
    return beyond


@compiled
def narrow(
    code: int, address: int, start: int, base: Any, vector: Any, coefficient: Any, count: int
) -> int:
    """Store base + coefficient·vector, rounded once; return what :func:`widen` does, of that."""
    beyond = np.int32(0)
    if code == BF16:
        halfwords = halfwords_at(address)
        for i in range(count):
            word = pattern(vector[i] * coefficient + base[i])
            beyond = np.int32(beyond | np.int32((word & MAGNITUDE) + BEYOND))
            odd = np.int32(np.uint32(word) >> np.uint32(16)) & np.int32(1)
            rounded = np.int32(word + np.int32(0x7FFF) + odd)
            beyond = np.int32(beyond | np.int32((rounded & MAGNITUDE) + BEYOND))
            halfwords[start + i] = np.uint16(np.uint32(rounded) >> np.uint32(16))
    elif code == FP16:
        halfwords = halfwords_at(address)
        for i in range(count):
            half = to_half(vector[i] * coefficient + base[i])
            beyond = np.int32(beyond | np.int32(np.int32((half & 0x7FFF) + 0x0400) << np.int32(16)))
            halfwords[start + i] = half
    else:
        floats = floats_at(address)
        for i in range(count):
            value = vector[i] * coefficient + base[i]
            beyond = np.int32(beyond | np.int32((pattern(value) & MAGNITUDE) + BEYOND))
            floats[start + i] = value
    return beyond


@compiled
def fill(numbers: Any, value: Any, count: int) -> None:
    """Store one fp32 number ``count`` times."""
    for i in range(count):
        numbers[i] = value


@compiled
def draw(first: Any, second: Any, third: Any, place: int) -> Any:
    """Return the draw of an entry, the hash of kernels/draws.py; the words are the key's."""
    run = np.uint32((np.uint32(first + np.uint32(place))) * np.uint32(0x9E3779B1))
    run = np.uint32(run ^ (run >> np.uint32(16)))
    run = np.uint32(np.uint32(run ^ second) * np.uint32(0x85EBCA6B))
    run = np.uint32(run ^ (run >> np.uint32(15)))
    run = np.uint32(np.uint32(run ^ third) * np.uint32(0xC2B2AE35))
    run = np.uint32(run ^ (run >> np.uint32(16)))
    return np.int32(run)
