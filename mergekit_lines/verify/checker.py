"""One tensor merged a second time, and held against the stored one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Executor
from mergekit.io.tasks import GatherTensors
from safetensors import safe_open

from mergekit_lines.checkpoint.headers import read_headers
from mergekit_lines.engine.tasks import EngineGather, LinesTask
from mergekit_lines.engine.workers import Workers
from mergekit_lines.errors import LinesError, some
from mergekit_lines.methods.registry import registered
from mergekit_lines.methods.trim import cuts_whole_model
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.verify import spectral
from mergekit_lines.verify.comparison import (
    Comparison,
    Restated,
    compare,
    compare_equal,
    compare_whole,
    pieces,
    uses_draws,
)
from mergekit_lines.verify.cuts import Cuts
from mergekit_lines.verify.exact import Exact, ExactInputs
from mergekit_lines.verify.parameters import RESTATED, parameters_of
from mergekit_lines.verify.sample import SHARE
from mergekit_lines.verify.verdict import Checked, Verdict


class Stored:
    """The tensors of the merged model."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._folder, self._stack = out, stack
        self.files = {
            name: header.file for name, header in (read_headers(out).tensors or {}).items()
        }
        self._open: dict[str, Any] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped from its shard."""
        file = self.files[name]
        if file not in self._open:
            shard = safe_open(self._folder / file, framework="pt")
            self._open[file] = self._stack.enter_context(shard)
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor


class Checker:
    """Recomputes one tensor after the other, and remembers how."""

    def __init__(
        self,
        inputs: ExactInputs,
        seed: int,
        verdict: Verdict,
        workers: Workers,
        cuts: Cuts | None = None,
        names: Mapping[ModelReference, str] | None = None,
    ) -> None:
        self._inputs, self._seed, self._verdict, self._workers = inputs, seed, verdict, workers
        self._cuts, self._names = cuts, names or {}
        self.tied: Set[str] = frozenset()  # tensors that the cuts do not count
        self._own: set[str] = set()
        self._drawn = self._aligned = False

    def notes(self) -> Iterator[str]:
        """Yield what was not recomputed by formulas of our own."""
        if self._drawn:
            yield "random draws are taken from the same generator; all else is recomputed"
        if self._inputs.adapted:
            yield (
                "adapters are added in float64; which tensors they change is taken from the "
                "merge's reader"
            )
        if self._aligned:
            yield "vocabularies are aligned by mergekit itself, as for the merge"
        if self._own:
            yield (
                f"{some(self._own)}: recomputed by the method's own code in float64, seeded as in "
                f"the merge; entries that it selects otherwise in fp32 are threshold flips, and "
                f"one in {SHARE:,} may differ"
            )
        if self._verdict.skipped:
            yield "tensors with NaN or infinity in an input were left out"

    def check(self, item: PlannedTensor, coefficient: float, stored: torch.Tensor) -> None:
        """Recompute a tensor, and add what came of it to the verdict."""
        task, name = item.task, item.weight.name
        inputs = {model: one.cast(task.input_dtype()) for model, one in self._read(task).items()}
        if not all(bool(torch.isfinite(one.tensor).all()) for one in inputs.values()):
            self._verdict.skipped.append(name)
            return
        comparison, allowed = self._compare(task, coefficient, inputs, stored), 0
        if registered(task.method_name).wrapped.spec.name not in RESTATED:
            allowed = stored.numel() // SHARE
        dtype = str(stored.dtype).removeprefix("torch.")
        self._verdict.checked.append(Checked(name, dtype, coefficient, comparison, allowed))

    def _read(self, task: LinesTask) -> dict[ModelReference, Exact]:
        gather: Any = task.gather_tensors
        if isinstance(gather, GatherTensors):
            return self._gathered(gather)
        # The same for aligned vocabularies: mergekit's own task, on tensors that we read.
        self._aligned = True
        own = EngineGather(weight_info=gather.gather_tensors.weight_info, engine=self)
        aligned = gather.model_copy(update={"gather_tensors": own})
        ((_, tensors),) = Executor([aligned]).run(quiet=True)
        return {model: Exact(tensor) for model, tensor in tensors.items()}

    def gather(self, task: GatherTensors) -> dict[ModelReference, torch.Tensor]:
        """Return a tensor of every model, as the merge's engine does for the alignment."""
        return {
            model: one.tensor if one.error is None or one.doubled else one.tensor.float()
            for model, one in self._gathered(task).items()
        }

    def _gathered(self, task: GatherTensors) -> dict[ModelReference, Exact]:
        tensors = {m: self._inputs.read(m, weight) for m, weight in task.weight_info.items()}
        return {model: one for model, one in tensors.items() if one is not None}

    def _compare(
        self,
        task: LinesTask,
        coefficient: float,
        inputs: Mapping[ModelReference, Exact],
        stored: torch.Tensor,
    ) -> Comparison:
        base = inputs.get(task.base_model)
        first = (base or next(iter(inputs.values()))).tensor
        if stored.shape != first.shape:
            shapes = f"{tuple(stored.shape)}, by its inputs {tuple(first.shape)}"
            raise _refusal(task, f"has the shape {shapes}")
        if not all(one.tensor.is_floating_point() for one in inputs.values()):
            return compare_equal(first, stored)
        dtype = dtype_from_name(task.out_dtype) or dtype_from_name(task.dtype)
        if dtype not in (None, stored.dtype):
            raise _refusal(task, f"stored in {stored.dtype}, by its recipe {dtype}")
        method = registered(task.method_name).wrapped.spec.name
        if method not in RESTATED or base is None:
            return self._whole(task, coefficient, inputs, stored)
        tuned = [m for m in task.model_order if m in inputs and m != task.base_model]
        cast = task.input_dtype()
        doubled = cast == torch.float64 if cast else any(one.doubled for one in inputs.values())
        parameters = parameters_of(task, method, tuned, coefficient)
        if self._cuts is not None and cuts_whole_model(dict(task.parameters.items())):
            magnitudes = self._cuts.magnitudes
            parameters = replace(
                parameters,
                floors=[magnitudes.get(self._names[model], 0.0) for model in tuned],
                zero_sign=self._cuts.zero_sign,
            )
        self._drawn |= uses_draws(method, dict(enumerate(parameters.densities)))
        merged = Restated(
            task.output_weight.name,
            self._seed,
            parameters,
            base,
            [inputs[model] for model in tuned],
            torch.float64 if doubled else torch.float32,
        )
        if self._cuts is not None and task.output_weight.name not in self.tied:
            names = [self._names[model] for model in tuned]
            for piece in pieces(merged):
                self._cuts.add(names, parameters, piece, merged.arithmetic)
        return compare(merged, stored, self._workers)

    def _whole(
        self,
        task: LinesTask,
        coefficient: float,
        inputs: Mapping[ModelReference, Exact],
        stored: torch.Tensor,
    ) -> Comparison:
        """Hold a tensor of a method that takes it whole against its formula, or against itself."""
        scaled = {"coefficient": coefficient, "seed": self._seed, "dtype": None}
        own = task.model_copy(update=scaled)

        def by_method(dtype: torch.dtype) -> torch.Tensor:
            name = str(dtype).removeprefix("torch.")
            result = own.model_copy(update={"out_dtype": name}).execute(
                {model: one.tensor.to(dtype) for model, one in inputs.items()}
            )
            if result is None:
                raise _refusal(task, f"{task.method_name} gives none, and one is stored")
            return result

        restated = self._by_formula(task, coefficient, inputs, torch.float64)

        def again() -> torch.Tensor:
            # Never by the code of the merge where there is a formula: it may be at fault.
            other = self._by_formula(task, coefficient, inputs, torch.float32)
            return by_method(torch.float32) if other is None else other

        if restated is None:
            self._own.add(registered(task.method_name).wrapped.spec.name)
            restated = by_method(torch.float64)
        return compare_whole(restated, again, list(inputs.values()), stored, coefficient)

    def _by_formula(
        self,
        task: LinesTask,
        coefficient: float,
        inputs: Mapping[ModelReference, Exact],
        dtype: torch.dtype,
    ) -> torch.Tensor | None:
        """Return θ_0 + λ·(M − θ_0) in float64 where M is restated for whole tensors.

        Args:
            task: the tensor's.
            coefficient: λ.
            inputs: of base and models.
            dtype: in which task vectors are formed, as the merge's own arithmetic does.
        """
        method = registered(task.method_name)
        name, weight = method.wrapped.spec.name, task.output_weight
        tuned = [m for m in task.model_order if m in inputs and m != task.base_model]
        if name not in spectral.METHODS or task.base_model not in inputs or not tuned:
            return None
        base = inputs[task.base_model].tensor.to(dtype)
        values = {key: task.parameters[word] for key, word in method.names.items()}
        vector = spectral.spectral_vector(
            name,
            weight.name,
            [(inputs[model].tensor.to(dtype) - base).double() for model in tuned],
            values,
            vocabulary=weight.vocabulary_axis is not None,
        )
        return None if vector is None else base.double() + coefficient * vector


def _refusal(task: LinesTask, text: str) -> LinesError:
    return LinesError(f"tensor {task.output_weight.name}: {text}. Merge again.")
