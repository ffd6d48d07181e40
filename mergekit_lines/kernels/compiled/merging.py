"""One piece of a tensor merged by compiled code, from its parameters to its result."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.library import CODES, Library, pattern, scratch
from mergekit_lines.kernels.compiled.summing import draws
from mergekit_lines.kernels.floors import below
from mergekit_lines.kernels.merge import Merge, State
from mergekit_lines.kernels.sparsity import Sparsity

_ELECTIONS = {None: at.LINEAR, "sum": at.BY_SUM, "count": at.BY_COUNT}
_MOST = 0x7FFFFFFF


def merged(
    library: Library,
    kernel: Merge | Agreement,
    state: State,
    bounds: tuple[int, int],
    index: int,
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    coefficient: float,
    out: torch.Tensor,
    vector: torch.Tensor | None = None,
) -> bool:
    """Store θ_0 + λ·(M − θ_0) of one piece, rounded once; return whether that is the result.

    It is not where an input or the result is not finite, or a model's draws change their key
    within the piece: all these are torch's.

    Args:
        library: the compiled kernels.
        kernel: what is to be done, by no rows.
        state: what its ``prepare`` returned.
        bounds: first entry and end of the piece.
        index: number of the piece.
        base: θ_0's piece, 1-D, contiguous, as it is stored: bf16, fp16 or fp32.
        models: the models' pieces, likewise.
        coefficient: λ, dimensionless.
        out: takes the result, in its own dtype.
        vector: takes M − θ_0 in fp32, where it is wanted.
    """
    agreement = kernel if isinstance(kernel, Agreement) else None
    merge = kernel.merge if isinstance(kernel, Agreement) else kernel
    count, start = bounds[1] - bounds[0], bounds[0]
    held = scratch("merge", (len(models) + at.BUFFERS) * at.BLOCK)
    integers = [
        count,
        len(models),
        held.data_ptr(),
        base.data_ptr(),
        CODES[base.dtype],
        start % (1 << 32),
        out.data_ptr(),
        CODES[out.dtype],
        0 if vector is None else vector.data_ptr(),
        _ELECTIONS[merge.consensus],
        int(merge.normalize),
        int(merge.zero_sign <= 0),
        agreement.min_agree if agreement else 0,
    ]
    for model, tensor in enumerate(models):
        stays = _stays(merge.sparsities[model], state, model, index, bounds)
        if stays is None:
            return False
        integers += [tensor.data_ptr(), CODES[tensor.dtype], *stays, 0]
    tall_lambdas = agreement.tall_lambdas if agreement else [0.0] * len(models)
    factors = merge.factors(state, torch.float32)
    floats = [coefficient, merge.scale, agreement.scale if agreement else 1.0]
    for numbers in zip(factors, merge.weights, tall_lambdas, strict=True):
        floats += numbers
    result, _ = library.call("merge", integers, floats)
    return bool(result >= 0)


def _stays(
    sparsity: Sparsity, state: State, model: int, index: int, bounds: tuple[int, int]
) -> list[int] | None:
    """Return what says which entries of one model's piece stay; None where no call can."""
    cuts = state.cuts[model]
    if sparsity.kind == "floor":
        limit = pattern(below(sparsity.floor, torch.float32))
        return [at.CUT, limit, 0, _MOST, 0, 0, 0, 0, 0]
    if cuts is not None:
        if not cuts:
            return [at.NOTHING, *[0] * 8]
        upper = cuts[1].limit(index) if len(cuts) > 1 else (_MOST, 0)
        return [at.CUT, *cuts[0].limit(index), *upper, 0, 0, 0, 0]
    if not sparsity.drawn:
        return [at.WHOLE, *[0] * 8]
    drawn = draws(state.keys[model], sparsity, bounds)
    return None if drawn is None else [at.DRAWN, 0, 0, 0, 0, *drawn]
