"""LiNeS itself: the scaled task vector of one tensor, added to the pre-trained one."""

from __future__ import annotations

import torch

_RUN = 256  # entries; a float64 copy of all of them would cost more than the rest of a pass
_PIECE = 1 << 18  # entries; float64 copies of a whole tensor would cost twice its fp32 size
_STEP = 1 << 16  # entries of which there are several float64 copies at once, on a CPU


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
    return add_scaled(base, merged - base, coefficient)


def add_scaled(base: torch.Tensor, task_vector: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Return θ_0 + λ·τ; τ is overwritten.

    Two roundings, never a fused one: the result of an entry must not hang on where in a
    piece it stands.

    Args:
        base: θ_0, any shape, fp32 or float64.
        task_vector: τ, same shape and dtype.
        coefficient: λ, dimensionless.
    """
    return task_vector.mul_(coefficient).add_(base)


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
    total, task = 0.0, 0.0
    tensors = [torch.split(tensor.flatten(), _PIECE) for tensor in (base, merged, *models)]
    for origin, merged_part, *tuned in zip(*tensors, strict=True):
        total += sum_norm(origin, tuned, power)
        task += power_sum(merged_part.double() - origin, power)
    return total, task


def sum_norm(base: torch.Tensor, models: list[torch.Tensor], power: int) -> float:
    """Return Σ|x|^power in float64 of τ_sum, the plain sum of the task vectors.

    Args:
        base: θ_0, 1-D, fp32 or float64; a float64 tensor of its size is made.
        models: the fine-tuned models' tensors, same shape and dtype.
        power: 1 or 2.
    """
    summed = torch.zeros_like(base, dtype=torch.float64)
    count = base.numel()
    step = _STEP if base.device.type == "cpu" else max(count, 1)
    for start in range(0, count, step):
        origin, part = base[start : start + step].double(), summed[start : start + step]
        for tensor in models:
            part += tensor[start : start + step].double() - origin
    return _sum_of_powers(summed, power)


def power_sum(tensor: torch.Tensor, power: int) -> float:
    """Return Σ|x|^power of a tensor of any shape, in float64, of which one copy is made."""
    return _sum_of_powers(tensor.to(torch.float64, copy=True), power)


def _sum_of_powers(values: torch.Tensor, power: int) -> float:
    return float((values.abs_() if power == 1 else values.square_()).sum())


def total(tensor: torch.Tensor) -> float:
    """Return the sum of a 1-D tensor: of runs in its own dtype, of those in float64.

    Runs of fp32 overflow where 256 entries do, as mergekit's sums do where all entries do.

    Args:
        tensor: 1-D, contiguous, fp32 or float64.
    """
    whole = tensor.numel() // _RUN * _RUN
    runs = tensor[:whole].view(-1, _RUN).sum(dim=1)
    return float(runs.sum(dtype=torch.float64) + tensor[whole:].sum(dtype=torch.float64))
