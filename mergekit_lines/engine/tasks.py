"""The graph tasks of a merge with coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.io.tasks import GatherTensors
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.tokenizer import PermutedVocabulary
from safetensors import SafetensorError

from mergekit_lines.errors import LinesError, ResumableError, reason
from mergekit_lines.methods import registry as methods


class LinesTask(ExecuteMergeMethodTask):
    """mergekit's task, whose failures name the tensor."""

    def with_values(
        self, values: Mapping[str, Any], kind: type[LinesTask] | None = None
    ) -> LinesTask:
        """Return the same task, or one of another kind, with more values for the method."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        fields["parameters"] = {**dict(self.parameters.items()), **values}
        return (kind or type(self))(**fields)

    def input_dtype(self) -> torch.dtype | None:
        """Return the dtype to which inputs are rounded first, where the recipe gives one."""
        dtype: torch.dtype | None = dtype_from_name(self.dtype)
        return dtype

    def input_values(self, models: Sequence[ModelReference]) -> dict[str, dict[Any, Any]]:
        """Return the parameters that each model has its own value of, by name, then model."""
        result: dict[str, dict[Any, Any]] = {}
        given = dict(self.input_parameters.items())
        for model in models:
            for name, value in given[model].items():
                result.setdefault(name, {})[model] = value
        return result

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: Any
    ) -> torch.Tensor | None:
        """Merge one tensor.

        Raises:
            LinesError: the wrapped method or a check of mergekit refused this tensor.
        """
        with self.failures(tensors):
            result: torch.Tensor | None = super().execute(tensors)
        return result

    @contextmanager
    def failures(self, inputs: Mapping[ModelReference, Any]) -> Iterator[None]:
        """Name the tensor in what the wrapped method and mergekit's checks raise."""
        try:
            yield
        except (ValueError, RuntimeError, IndexError, SafetensorError) as error:
            name = self.output_weight.name
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise ResumableError(
                    f"tensor {name}: the memory is full ({reason(error)}). End other programs, or "
                    f"give fewer --num-threads, and run the same command again."
                ) from error
            found = {str(t.dtype) for t in inputs.values() if not t.dtype.is_floating_point}
            if found:
                raise LinesError(
                    f"tensor {name}: found {', '.join(sorted(found))} that differs between the "
                    f"models, wanted the same integers in all or floating-point weights."
                ) from error
            raise LinesError(
                f"tensor {name}: {self.method_name} failed with {self._values()}: "
                f"{reason(error)}. Check these values and the models' tensors of that name."
            ) from error

    def _values(self) -> str:
        """Tell the numbers that the wrapped method was given."""
        given = {**dict(self.parameters.items())}
        for values in self.input_parameters.values():
            given |= dict(values.items())
        known = {word.name for word in methods.registered(self.method_name).spec.parameters}
        numbers = {k: v for k, v in given.items() if isinstance(v, (int, float)) and k in known}
        return ", ".join(f"{key} {value:g}" for key, value in sorted(numbers.items()))


class EngineTask(LinesTask):
    """One tensor's merge as the engine does it, which is among its parameters.

    It has arguments only where mergekit prepares the inputs: aligned vocabularies.
    """

    def arguments(self) -> dict[str, Task[Any]]:
        """Return the tasks that prepare the inputs."""
        plain = isinstance(self.gather_tensors, GatherTensors)
        return {} if plain else {"tensors": self.gather_tensors}

    def group_label(self) -> str:
        """Keep mergekit's executor to the order of the plan, which the engine reads ahead."""
        return f"{self.parameters['number']:08d}"


class WriteTask(EngineTask):
    """The engine's merge of one tensor into its place in a shard."""

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor] | None = None, **_kwargs: Any
    ) -> None:
        """Merge and store the tensor."""
        plain = self.with_values({}, LinesTask)
        self.parameters["engine"].merge(plain, tensors)


class NormTask(EngineTask):
    """The same tensor's terms in Eq. 2 instead of the tensor; they go to a collector."""

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor] | None = None, **_kwargs: Any
    ) -> None:
        """Add this tensor's norm terms to the collector among its values."""
        plain = self.with_values({}, LinesTask)
        self.parameters["engine"].norms(plain, self.parameters["collector"], tensors)


class EngineGather(GatherTensors):
    """The inputs of one tensor, read whole by the engine."""

    engine: Any = None
    label: str = ""

    def arguments(self) -> dict[str, Task[Any]]:
        """Return nothing: the engine reads."""
        return {}

    def group_label(self) -> str:
        """Keep the order of the plan: inputs are read just before they are merged."""
        return self.label

    def execute(self, **_kwargs: Any) -> dict[ModelReference, torch.Tensor]:
        """Read the tensor of every model."""
        found: dict[ModelReference, torch.Tensor] = self.engine.gather(self)
        return found


class NumberedVocabulary(PermutedVocabulary):
    """mergekit's alignment of vocabularies, in the order of the plan."""

    label: str = ""

    def execute(self, **inputs: Any) -> dict[ModelReference, torch.Tensor]:
        """Align the vocabularies.

        Raises:
            LinesError: mergekit finds no embedding for a token of the recipe.
        """
        try:
            aligned: dict[ModelReference, torch.Tensor] = super().execute(**inputs)
        except (LookupError, NotImplementedError, ValueError, AssertionError) as error:
            told = ", ".join(sorted(self.tokens or {})) or "none"
            raise LinesError(
                f"tokenizer: mergekit cannot align the vocabularies ({reason(error)}). Check "
                f"tokenizer.tokens (found: {told}): each needs a source that has the token; with "
                f"`source: base` only tokens of the base can be named, with `source: union` any."
            ) from error
        return aligned

    def group_label(self) -> str:
        """Keep the order of the plan."""
        return self.label


def engine_task(task: LinesTask, kind: type[EngineTask], values: Mapping[str, Any]) -> LinesTask:
    """Return a task of the engine for the same tensor.

    Args:
        task: the tensor's task.
        kind: what the engine shall do.
        values: for the method; the ``engine`` and the ``number`` in the plan among them.
    """
    result = task.with_values(values, kind)
    gather: Any = result.gather_tensors
    if isinstance(gather, GatherTensors):
        return result
    inner = gather.gather_tensors
    label = result.group_label()
    reading = EngineGather(weight_info=inner.weight_info, engine=values["engine"], label=label)
    fields = {name: getattr(gather, name) for name in type(gather).model_fields}
    aligning = NumberedVocabulary(**{**fields, "gather_tensors": reading, "label": label})
    return result.model_copy(update={"gather_tensors": aligning})
