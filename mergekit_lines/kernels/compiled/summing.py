"""What is summed up of one piece for norms, by compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.library import CODES, Library, scratch
from mergekit_lines.kernels.draws import bound, words
from mergekit_lines.kernels.sparsity import Sparsity


def drawn_norms(
    library: Library,
    bounds: tuple[int, int],
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    drawn: Mapping[int, tuple[bytes, Sparsity]],
) -> list[tuple[float, float]] | None:
    """Return Σ|δ| of one piece before and after the draws, as torch's order of summing has it.

    None where a model's draws change their key within the piece, or torch sums otherwise here.

    Args:
        library: the compiled kernels.
        bounds: first entry and end of the piece.
        base: θ_0's piece, 1-D, contiguous, as it is stored: bf16, fp16 or fp32.
        models: the pieces of all models, likewise.
        drawn: by the number of a model, the key of its draws and how it is sparsified.
    """
    if not library.sums_as_torch:
        return None
    count, start = base.numel(), bounds[0] % (1 << 32)
    whole, rest = divmod(count, at.RUN)
    size = whole + rest
    held = scratch("sums", 2 * len(drawn) * size)
    sums = [held[place : place + size] for place in range(0, held.numel(), size)]
    room = scratch("merge", at.BUFFERS * at.BLOCK)
    base_numbers = [base.data_ptr(), CODES[base.dtype], start]
    integers = [count, len(drawn), room.data_ptr(), *base_numbers, *[0] * (at.HEAD - 6)]
    for place, (model, (key, sparsity)) in enumerate(drawn.items()):
        own = draws(key, sparsity, bounds)
        if own is None:
            return None
        tensor, before, after = models[model], sums[2 * place], sums[2 * place + 1]
        integers += [tensor.data_ptr(), CODES[tensor.dtype], at.DRAWN]
        integers += [before.data_ptr(), after.data_ptr(), 0, 0, *own, 0]
    library.call("sums", integers)
    totals = [_total(own, whole, rest) for own in sums]
    return list(zip(totals[::2], totals[1::2], strict=True))


def summed_power(
    library: Library, base: torch.Tensor | None, models: Sequence[torch.Tensor], power: int
) -> float:
    """Return what :func:`~mergekit_lines.kernels.scale.sum_norm` does, to the bit.

    Args:
        library: the compiled kernels.
        base: θ_0's piece, 1-D, contiguous, as it is stored: bf16, fp16 or fp32; None for zeros.
        models: the models' pieces, likewise.
        power: 1 or 2.
    """
    count = models[0].numel()
    # Twice as many fp32 entries are as many of float64.
    room = scratch("powers", 2 * count).view(torch.float64)
    integers = [count, len(models), scratch("merge", 2 * at.BLOCK).data_ptr()]
    integers += [0, 0, 0] if base is None else [base.data_ptr(), CODES[base.dtype], 0]
    integers += [room.data_ptr(), power]
    for tensor in models:
        integers += [tensor.data_ptr(), CODES[tensor.dtype]]
    library.call("powers", integers)
    return float(room.sum())


def draws(key: bytes, sparsity: Sparsity, bounds: tuple[int, int]) -> list[int] | None:
    """Return the words of one model's draws, and what a draw that keeps is below.

    None where the words change within the piece.
    """
    high, low = divmod(bounds[0], 1 << 32)
    if low + bounds[1] - bounds[0] > 1 << 32:
        return None
    return [*words(key, high), bound(sparsity.density)]


def _total(sums: torch.Tensor, whole: int, rest: int) -> float:
    """Return the sum of whole runs and of what fills none, as kernels/scale.py has it."""
    if not rest:
        return float(sums.sum(dtype=torch.float64))
    return float(sums[:whole].sum(dtype=torch.float64) + sums[whole:].sum(dtype=torch.float64))
