"""Input tensors as a merge means them, in float64, with bounds of what its arithmetic loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from safetensors import safe_open

from mergekit_lines.checkpoint.adapters.changes import Change, Saved, Shift, Tokens, Update
from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.sources import Source, whole

# A norm of a row in fp32: roundings of one product and of partial sums, and of the division.
_DORA_ROUNDINGS = 64


@dataclass(frozen=True)
class Exact:
    """One input tensor.

    Attributes:
        tensor: as it is stored, or float64 where an adapter was added.
        error: bounds per entry of what the merge's arithmetic loses on the way to it, float64;
            None where it loses nothing.
        stored: the dtype it is stored in, below an adapter too.
    """

    tensor: torch.Tensor
    error: torch.Tensor | None = None
    stored: torch.dtype | None = None

    @property
    def doubled(self) -> bool:
        """Whether the merge computes with it in float64."""
        return (self.stored or self.tensor.dtype) == torch.float64

    def cast(self, dtype: torch.dtype | None) -> Exact:
        """Return the tensor rounded to the recipe's ``dtype``, which comes first in a merge."""
        if dtype is None or not self.tensor.is_floating_point():
            return self
        if self.error is None:
            return self if self.tensor.dtype == dtype else Exact(self.tensor.to(dtype))
        # Where the two ends of the bound are rounded apart, so may have been the merge's value.
        low, high = (self.tensor - self.error).to(dtype), (self.tensor + self.error).to(dtype)
        error = high.double().sub_(low.double())
        if dtype in (torch.float32, torch.float64):
            error = torch.maximum(error, self.error)
        return Exact(self.tensor.to(dtype).double(), error)

    def piece(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the entries [start, stop) and their errors, 1-D, float64."""
        values = self.tensor.reshape(-1)[start:stop].double()
        if self.error is None:
            return values, torch.zeros_like(values)
        return values, self.error.reshape(-1)[start:stop]


class ExactInputs:
    """Reads the models' tensors with safetensors itself, and adds adapters in float64.

    Which tensors an adapter changes, and with which factors, is taken from the reader of the
    merge; the arithmetic is not.

    Args:
        models: the recipe's models, opened.
        stack: closes the files.
    """

    def __init__(self, models: OpenedModels, stack: ExitStack) -> None:
        self._models, self._stack = models, stack
        self._files: dict[Path, Any] = {}
        self.adapted: set[ModelReference] = set()  # whose adapters were added so far

    def read(self, model: ModelReference, weight: WeightInfo) -> Exact | None:
        """Return a tensor of a model, or None where it is optional and not there."""
        opened = self._models.models[model]
        name = opened.resolve(weight)
        if name is None:  # mergekit converts it from others
            source = self._models.source(model, weight)
            return None if source is None else Exact(whole(source))
        if opened.tensors is None:
            return Exact(opened.loader.get_tensor(name))
        tensor = self._file(opened.folder / opened.tensors[name].file).get_tensor(name)
        changes = opened.adapter.changes.get(name, []) if opened.adapter else []
        if not changes:
            return Exact(tensor)
        self.adapted.add(model)
        return adapt(tensor, changes)

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._files[path]


def adapt(tensor: torch.Tensor, changes: Sequence[Change]) -> Exact:
    """Return a tensor with the changes of an adapter, as PEFT defines them.

    LoRA (arXiv 2106.09685) is W + s·B·A; DoRA (arXiv 2402.09353) scales each output's part of
    that to the length of its magnitude.
    """
    unit = 2.0**-51 if tensor.dtype == torch.float64 else 2.0**-24
    value, error = tensor.double(), torch.zeros(tensor.shape, dtype=torch.float64)
    for change in changes:
        if isinstance(change, Saved):
            value, error = _exact(change.tensor), torch.zeros_like(value)
        elif isinstance(change, Tokens):
            value = value.clone()
            value[list(change.indices)] = _exact(change.rows)
            error[list(change.indices)] = 0
        elif isinstance(change, Shift):
            moved = _exact(change.bias) * change.scale
            value = value + moved
            error = error + unit * (value.abs() + 2 * moved.abs())
        elif isinstance(change, Update):
            value, error = _updated(value, error, change, unit)
        else:
            raise TypeError(f"no formula for {type(change).__name__}")
    return Exact(value, error, tensor.dtype)


def _updated(
    value: torch.Tensor, error: torch.Tensor, update: Update, unit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rank = update.a.shape[0]
    a = _exact(update.a).reshape(rank, -1)
    b = _exact(update.b).reshape(-1, rank)
    change, size = b @ a * update.scale, b.abs() @ a.abs() * abs(update.scale)
    if update.transposed:
        change, size = change.T, size.T
    shape = value.shape
    value = value.reshape(change.shape) + change
    # A dot product of `rank` terms, its scale and the sum, in fp32.
    error = error.reshape(change.shape) + unit * (value.abs() + (rank + 3) * size)
    if update.magnitude is not None:
        along = 0 if update.transposed else 1
        lengths = value.square().sum(dim=along, keepdim=True).sqrt()
        factor = _exact(update.magnitude).reshape(lengths.shape) / lengths
        value = value * factor
        error = error * factor.abs() + _DORA_ROUNDINGS * unit * value.abs()
    return value.reshape(shape), error.reshape(shape)


def _exact(source: Source) -> torch.Tensor:
    values = torch.empty(math.prod(source.shape), dtype=torch.float64)
    source.read_into(0, values.numel(), values)
    return values.view(source.shape)
