"""The graph tasks of a merge with coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from safetensors import SafetensorError

from mergekit_lines.errors import LinesError, reason


class LinesTask(ExecuteMergeMethodTask):
    """mergekit's task, whose failures name the tensor."""

    def with_values(
        self, values: Mapping[str, Any], kind: type[LinesTask] | None = None
    ) -> LinesTask:
        """Return the same task, or one of another kind, with more values for the method."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        fields["parameters"] = {**dict(self.parameters.items()), **values}
        return (kind or type(self))(**fields)

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
            name = self.output_weight.name
            found = {str(t.dtype) for t in tensors.values() if not t.is_floating_point()}
            if found:
                raise LinesError(
                    f"tensor {name}: found {', '.join(sorted(found))} that differs between the "
                    f"models, wanted the same integers in all or floating-point weights."
                ) from error
            raise LinesError(
                f"tensor {name}: {self.method_name} failed with {self._values()}: "
                f"{reason(error)}. Check these values and the models' tensors of that name."
            ) from error
        return result

    def _values(self) -> str:
        """Tell the numbers that the wrapped method was given."""
        given = {**dict(self.parameters.items())}
        for values in self.input_parameters.values():
            given |= dict(values.items())
        numbers = {k: v for k, v in given.items() if isinstance(v, (int, float)) and k != "seed"}
        return ", ".join(f"{key} {value:g}" for key, value in sorted(numbers.items()))


class NormTask(LinesTask):
    """The same tensor's terms in Eq. 2 instead of the tensor; they go to a collector."""

    def execute(self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: Any) -> None:
        """Add this tensor's norm terms to the collector among its values."""
        super().execute(tensors)
