"""How one piece votes on the sign of sums of 0, by compiled code."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.library import CODES, Library, pattern, scratch
from mergekit_lines.kernels.floors import below
from mergekit_lines.kernels.merge import Merge


def votes(
    library: Library, merge: Merge, base: torch.Tensor, models: Sequence[torch.Tensor]
) -> int:
    """Return what :meth:`Merge.votes` does.

    Args:
        library: the compiled kernels.
        merge: what is to be done.
        base: θ_0's piece, 1-D, contiguous, as it is stored: bf16, fp16 or fp32.
        models: the models' pieces, likewise.
    """
    room = scratch("count", 3 * at.BLOCK).data_ptr()
    integers = [base.numel(), len(models), room, base.data_ptr(), CODES[base.dtype], 0]
    for tensor, sparsity in zip(models, merge.sparsities, strict=True):
        floor = sparsity.floor if sparsity.kind == "floor" else 0.0
        limit = pattern(below(floor, torch.float32))
        integers += [tensor.data_ptr(), CODES[tensor.dtype], limit]
    result, _ = library.call("signs", integers, merge.weights)
    return int(result)
