"""LiNeS itself: the scaled task vector of one tensor, added to the pre-trained one."""

from __future__ import annotations

import torch

_PIECE = 1 << 18  # entries; float64 copies of a whole tensor would cost twice its fp32 size


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which tensors of ``dtype`` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scale_task_vector(base: torch.Tensor, merged: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Return θ_0 + λ·(M − θ_0), Eq. 1 of arXiv 2410.17146 for one tensor.

    Args:
        base: θ_0, any shape, fp32 or float64.
        merged: M, what the wrapped merge made of the models; same shape and dtype.
        coefficient: λ, dimensionless.
    """
    return torch.add(base, merged - base, alpha=coefficient)


def norm_terms(
    base: torch.Tensor, merged: torch.Tensor, models: list[torch.Tensor], power: int
) -> tuple[float, float]:
    """Return one tensor's share of ‖τ_sum‖ and ‖τ_MTL‖ in Eq. 2, as Σ|x|^power in float64.

    τ_sum is the plain sum of the task vectors, untrimmed and unweighted; τ_MTL is the
    wrapped merge's task vector.

    Args:
        base: θ_0, any shape, fp32 or float64.
        merged: M, same shape and dtype.
        models: the fine-tuned models' tensors, same shape and dtype.
        power: 1 for the L1 norm, 2 for the L2 norm (whose root the caller takes).
    """
    start = torch.split(base.flatten(), _PIECE)
    total, task = 0.0, 0.0
    made = torch.split(merged.flatten(), _PIECE)
    tuned = [torch.split(tensor.flatten(), _PIECE) for tensor in models]
    for number, piece in enumerate(start):
        origin = piece.double()
        summed = torch.zeros_like(origin)
        for tensor in tuned:
            summed += tensor[number].double() - origin
        total += _power_sum(summed, power)
        task += _power_sum(made[number].double() - origin, power)
    return total, task


def _power_sum(tensor: torch.Tensor, power: int) -> float:
    return float((tensor.abs() if power == 1 else tensor.square()).sum())
