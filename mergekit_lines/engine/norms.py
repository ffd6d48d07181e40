"""One tensor's terms of Eq. 2, piece by piece."""

from __future__ import annotations

import math
from typing import Any

from mergekit_lines.engine.jobs import Job, States, prepared
from mergekit_lines.engine.pieces import TensorPieces, check_inputs, compiled_kernel
from mergekit_lines.kernels.compiled.merging import merged
from mergekit_lines.kernels.compiled.summing import summed_power
from mergekit_lines.kernels.scale import power_sum, sum_norm


def tensor_norms(
    job: Job, pieces: TensorPieces, power: int, states: States | None = None
) -> tuple[float, float]:
    """Return one tensor's terms of ‖τ_sum‖ and ‖τ_MTL‖ in Eq. 2, as Σ|x|^power.

    Args:
        job: the tensor.
        pieces: its inputs.
        power: 1 or 2.
        states: takes what a merge of the same tensor will have to know.

    Raises:
        LinesError: an input is not finite, or cannot be read.
    """
    state = prepared(job, pieces)
    if states is not None:
        states.keep(job, state)

    def terms(index: int) -> tuple[float, float]:
        if fast := _compiled_terms(job, pieces, state, index, power):
            return fast
        base, models = pieces.load(index)
        if not job.allow_nonfinite:
            check_inputs(job, pieces, index, base, models)
        # The merge may overwrite the models.
        total = sum_norm(base, models, power)
        tau = job.merge.task_vector(pieces, state, index, base, models)
        return total, power_sum(tau, power)

    norms = pieces.map(terms)
    return math.fsum(total for total, _ in norms), math.fsum(task for _, task in norms)


def _compiled_terms(
    job: Job, pieces: TensorPieces, state: Any, index: int, power: int
) -> tuple[float, float] | None:
    """Return one piece's terms by compiled code; None where they are torch's to find."""
    kernel = compiled_kernel(job, pieces)
    if kernel is None:
        return None
    library, merge = kernel
    base, models = pieces.stored(index)
    out = pieces.buffer("result", index, base.dtype)
    tau = pieces.buffer("task vector", index, pieces.dtype)
    # Scaled by 0, a finite task vector leaves the base as it is.
    if not merged(library, merge, state, pieces.bounds[index], index, base, models, 0.0, out, tau):
        return None
    return summed_power(library, base, models, power), summed_power(library, None, [tau], power)
