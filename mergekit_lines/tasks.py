"""The graph tasks of a merge with coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from safetensors import SafetensorError

from mergekit_lines.errors import LinesError


class LinesTask(ExecuteMergeMethodTask):
    """mergekit's task, whose failures name the tensor."""

    def with_values(self, values: Mapping[str, Any]) -> LinesTask:
        """Return the same task with more values for the method (its coefficient, …)."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        fields["parameters"] = {**dict(self.parameters.items()), **values}
        return type(self)(**fields)

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: Any
    ) -> torch.Tensor | None:
        """Merge one tensor.

        Raises:
            LinesError: the wrapped method or a check of mergekit refused this tensor.
        """
        try:
            result: torch.Tensor | None = super().execute(tensors)
        except (ValueError, RuntimeError, IndexError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LinesError(f"tensor {self.output_weight.name}: {reason}") from error
        return result


class NormTask(LinesTask):
    """The same tensor's terms in Eq. 2 instead of the tensor; they go to a collector."""

    def execute(self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: Any) -> None:
        """Add this tensor's norm terms to the collector among its values."""
        super().execute(tensors)
