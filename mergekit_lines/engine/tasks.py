"""The graph tasks of a merge with coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ImmutableMap, ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.io.tasks import GatherTensors
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.tokenizer import PermutedVocabulary
from safetensors import SafetensorError

from mergekit_lines.errors import LinesError, ResumableError, reason
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.methods import registry
from mergekit_lines.methods.wrapped import SCALING, Scaling


class LinesTask(ExecuteMergeMethodTask):
    """mergekit's task, whose failures name the tensor.

    Attributes:
        coefficient: λ, dimensionless; a plan is made before it is known.
        seed: of the draws, for the whole recipe.
        base_listed: whether the recipe lists the base among the models.
    """

    coefficient: float = 1.0
    seed: int = 0
    base_listed: bool = True

    @property
    def aligned(self) -> bool:
        """Whether mergekit aligns the models' vocabularies before."""
        return not isinstance(self.gather_tensors, GatherTensors)

    @property
    def inputs(self) -> Mapping[ModelReference, WeightInfo]:
        """What mergekit's layout says of the tensor that each model gives."""
        gather: Any = self.gather_tensors
        reading: GatherTensors = gather.gather_tensors if self.aligned else gather
        return reading.weight_info

    def plain(self) -> LinesTask:
        """Return the task that merges the same tensor without the engine."""
        return LinesTask(**{name: getattr(self, name) for name in LinesTask.model_fields})

    def input_dtype(self) -> torch.dtype | None:
        """Return the dtype to which inputs are rounded first, where the recipe gives one."""
        dtype: torch.dtype | None = dtype_from_name(self.dtype)
        return dtype

    def input_values(self, models: Sequence[ModelReference]) -> dict[str, dict[Any, Any]]:
        """Return the parameters that each model has its own value of, by name, then model."""
        result: dict[str, dict[Any, Any]] = {}
        by_model = dict(self.input_parameters.items())
        for model in models:
            for name, value in by_model[model].items():
                result.setdefault(name, {})[model] = value
        return result

    def kernel(self, inputs: Mapping[ModelReference, torch.dtype]) -> Kernel | None:
        """Return the kernel that merges the tensor in pieces, or None where it has to be whole.

        Args:
            inputs: the dtypes of the models that have the tensor.
        """
        present = [model for model in self.model_order if model in inputs]
        tuned = [model for model in present if model != self.base_model]
        if self.base_model not in inputs or not tuned:
            return None
        if not all(dtype.is_floating_point for dtype in inputs.values()):
            return None
        method = registry.registered(self.method_name)
        if len(present) < len(self.model_order):
            try:
                method.validate_inputs(present, self.base_model)
            except ValueError:  # mergekit's rules for optional tensors apply, or its refusal
                return None
        values = {**dict(self.parameters.items()), **self.input_values(tuned)}
        return method.kernel(values, tuned)

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: Any
    ) -> torch.Tensor | None:
        """Merge one tensor by the wrapped method itself; see :meth:`merge_whole`."""
        return self.merge_whole(tensors)

    def merge_whole(
        self,
        tensors: dict[ModelReference, torch.Tensor],
        vector: Any = None,
        collector: Any = None,
    ) -> torch.Tensor | None:
        """Merge one tensor by the wrapped method itself.

        Args:
            tensors: the inputs, whole.
            vector: a sink that takes M(θ…) − θ_0, where it is wanted too.
            collector: takes the terms of Eq. 2 instead; what is returned is then of no use.

        Raises:
            LinesError: the wrapped method or a check of mergekit refused this tensor.
        """
        # A method is reached through mergekit's execute alone, which hands on parameters.
        handed_on = {
            **dict(self.parameters.items()),
            SCALING: Scaling(self.coefficient, self.seed, self.base_listed, vector, collector),
        }
        task = self.model_copy(update={"parameters": ImmutableMap(handed_on)})
        with self.failures(tensors):
            result: torch.Tensor | None = ExecuteMergeMethodTask.execute(task, tensors)
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
            dtypes = {str(t.dtype) for t in inputs.values() if not t.dtype.is_floating_point}
            if dtypes:
                raise LinesError(
                    f"tensor {name}: found {', '.join(sorted(dtypes))} that differs between the "
                    f"models, wanted the same integers in all or floating-point weights."
                ) from error
            raise LinesError(
                f"tensor {name}: {self.method_name} failed with {self._values()}: "
                f"{reason(error)}. Check these values and the models' tensors of that name."
            ) from error

    def _values(self) -> str:
        """Tell the numbers that the wrapped method was given."""
        settings = {**dict(self.parameters.items())}
        for values in self.input_parameters.values():
            settings |= dict(values.items())
        words = {word.name for word in registry.registered(self.method_name).spec.parameters}
        numbers = {k: v for k, v in settings.items() if isinstance(v, (int, float)) and k in words}
        return ", ".join(f"{key} {value:g}" for key, value in sorted(numbers.items()))


class EngineTask(LinesTask):
    """One tensor's merge as the engine does it.

    It has arguments only where mergekit prepares the inputs: aligned vocabularies.

    Attributes:
        engine: does it.
        number: of the tensor in the plan.
    """

    engine: Any
    number: int

    def arguments(self) -> dict[str, Task[Any]]:
        """Return the tasks that prepare the inputs."""
        reads_itself = isinstance(self.gather_tensors, GatherTensors)
        return {} if reads_itself else {"tensors": self.gather_tensors}

    def group_label(self) -> str:
        """Keep mergekit's executor to the order of the plan, which the engine reads ahead."""
        return f"{self.number:08d}"


class WriteTask(EngineTask):
    """The engine's merge of one tensor into its place in a shard."""

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor] | None = None, **_kwargs: Any
    ) -> None:
        """Merge and store the tensor."""
        self.engine.merge(self.plain(), tensors)


class NormTask(EngineTask):
    """The same tensor's terms in Eq. 2 instead of the tensor; they go to a collector."""

    collector: Any

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor] | None = None, **_kwargs: Any
    ) -> None:
        """Add this tensor's norm terms to the collector."""
        self.engine.norms(self.plain(), self.collector, tensors)


class CountTask(EngineTask):
    """A pass over the same tensor's inputs, whose counts go to a collector."""

    collector: Any

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor] | None = None, **_kwargs: Any
    ) -> None:
        """Count this tensor's entries."""
        self.engine.count(self.plain(), self.collector, tensors)


class SpectrumTask(EngineTask):
    """What the same tensor tells of its block's update instead of the tensor, to a collector."""

    collector: Any

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor] | None = None, **_kwargs: Any
    ) -> None:
        """Add this tensor's terms to the collector."""
        self.engine.spectrum(self.plain(), self.collector, tensors)


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
        tensors: dict[ModelReference, torch.Tensor] = self.engine.gather(self)
        return tensors


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
            tokens = ", ".join(sorted(self.tokens or {})) or "none"
            raise LinesError(
                f"tokenizer: mergekit cannot align the vocabularies ({reason(error)}). Check "
                f"tokenizer.tokens (found: {tokens}): each needs a source that has the token; with "
                f"`source: base` only tokens of the base can be named, with `source: union` any."
            ) from error
        return aligned

    def group_label(self) -> str:
        """Keep the order of the plan."""
        return self.label


def engine_task(task: LinesTask, kind: type[EngineTask], **fields: Any) -> EngineTask:
    """Return a task of the engine for the same tensor.

    Args:
        task: the tensor's task.
        kind: what the engine shall do.
        **fields: of that kind; the ``engine`` and the ``number`` in the plan among them.
    """
    shared = {name: getattr(task, name) for name in LinesTask.model_fields}
    result = kind(**{**shared, **fields})
    gather: Any = result.gather_tensors
    if isinstance(gather, GatherTensors):
        return result
    inner = gather.gather_tensors
    label = result.group_label()
    reading = EngineGather(weight_info=inner.weight_info, engine=result.engine, label=label)
    fields = {name: getattr(gather, name) for name in type(gather).model_fields}
    aligning = NumberedVocabulary(**{**fields, "gather_tensors": reading, "label": label})
    return result.model_copy(update={"gather_tensors": aligning})
