"""Inputs and results that are not finite."""

from __future__ import annotations

import torch

from mergekit_lines.errors import LinesError


def refuse_input(place: str, stored: torch.Tensor, cast: torch.dtype) -> None:
    """Refuse an input that is not finite, or was not any more in the recipe's dtype.

    Raises:
        LinesError: always.
    """
    if torch.isfinite(stored).all():
        raise LinesError(
            f"{place}: found values beyond the recipe's dtype {cast}. Set dtype: float32, or "
            f"leave it out."
        )
    raise LinesError(
        f"{place}: found NaN or infinity, wanted finite weights. Repair or replace the model, or "
        f"set parameters.allow_nonfinite: true to carry them into the merge."
    )


def refuse_result(
    name: str | None, wrap: str, merged: torch.Tensor, out_dtype: torch.dtype
) -> None:
    """Refuse a result that is not finite, saying where that comes from.

    Raises:
        LinesError: always.
    """
    if not torch.isfinite(merged).all():
        raise LinesError(
            f"tensor {name}: the wrapped method {wrap} gave NaN or infinity for finite inputs "
            f"(weights that sum to zero, for example). Change its parameters, or set "
            f"parameters.allow_nonfinite: true to keep them."
        )
    raise LinesError(
        f"tensor {name}: the result does not fit the output dtype {out_dtype}. "
        f"Set out_dtype: float32 or bfloat16."
    )
