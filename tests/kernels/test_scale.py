"""Sums of Eq. 2 in float64, made in steps: by NumPy, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mergekit_lines.kernels.scale import power_sum, sum_norm


@pytest.mark.parametrize("entries", [0, 1, 65_535, 65_536, 65_537, 200_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_do_not_hang_on_steps_and_leave_their_inputs(entries: int, dtype: torch.dtype) -> None:
    """Σ|Σ(θ_t − θ_0)|^p and Σ|x|^p of sizes around a step."""
    generator = torch.Generator().manual_seed(entries)
    base, *models = torch.randn(4, entries, dtype=dtype, generator=generator)
    kept = [tensor.clone() for tensor in (base, *models)]
    wide = [tensor.numpy().astype(np.float64) for tensor in kept]
    summed = sum(model - wide[0] for model in wide[1:])
    for power in (1, 2):
        want = math.fsum(np.abs(summed) ** power)
        assert sum_norm(base, models, power) == pytest.approx(want, rel=1e-12)
        want = math.fsum(np.abs(wide[1]) ** power)
        assert power_sum(models[0], power) == pytest.approx(want, rel=1e-12)
    assert all(torch.equal(*pair) for pair in zip(kept, (base, *models), strict=True))
