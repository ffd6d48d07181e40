"""One tensor's terms of Eq. 2, piece by piece."""

from __future__ import annotations

import math

from mergekit_lines.engine.pieces import Job, TensorPieces, check_inputs, draw_keys
from mergekit_lines.kernels.scale import power_sum, sum_norm


def tensor_norms(job: Job, pieces: TensorPieces, power: int) -> tuple[float, float]:
    """Return one tensor's terms of ‖τ_sum‖ and ‖τ_MTL‖ in Eq. 2, as Σ|x|^power.

    Raises:
        LinesError: an input is not finite, or cannot be read.
    """
    state = job.merge.prepare(pieces, draw_keys(job, pieces.models))

    def terms(index: int) -> tuple[float, float]:
        base, models = pieces.load(index)
        if not job.allow_nonfinite:
            check_inputs(job, pieces, index, base, models)
        # The merge may overwrite the models.
        total = sum_norm(base, models, power)
        tau = job.merge.task_vector(pieces, state, index, base, models)
        return total, power_sum(tau, power)

    norms = pieces.map(terms)
    return math.fsum(total for total, _ in norms), math.fsum(task for _, task in norms)
