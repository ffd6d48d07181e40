"""``lines[...]``: any mergekit method with its task vector scaled by depth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    BatchOptions,
    InputContract,
    MergeMethod,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    PerInputValues,
    TensorGroup,
)
from mergekit.merge_methods.dtype import align_dtype

from mergekit_lines.errors import LinesError
from mergekit_lines.kernels.scale import norm_terms, scale_task_vector, work_dtype
from mergekit_lines.methods.words import strict

REFERENCE = "https://arxiv.org/abs/2410.17146"


class LinesMethod(MergeMethod):
    """θ_0 + λ·(M(θ…) − θ_0) for one wrapped method M; λ comes with each tensor's task.

    Args:
        name: the registered name, e.g. ``lines[ties]``.
        wrapped: the mergekit method M.
        words: our own recipe words, which the planner resolves per tensor.
        pass_parameters: whether the recipe may set the wrapped method's parameters.

    Computation is in fp32 (float64 inputs in float64), rounded once to the output dtype.
    A method that ignores the base (``linear``, ``karcher``) sees the listed models only.
    """

    def __init__(
        self,
        name: str,
        wrapped: MergeMethod,
        words: Sequence[ParameterSpec],
        *,
        pass_parameters: bool = True,
    ) -> None:
        self.wrapped = wrapped
        taken = {word.name for word in words}
        self.names = {
            parameter.name: f"wrap_{parameter.name}" if parameter.name in taken else parameter.name
            for parameter in (wrapped.spec.parameters if pass_parameters else ())
        }
        self.spec = MergeMethodSpec(
            name=name,
            parameters=(
                *words,
                *(
                    strict(parameter, self.names[parameter.name])
                    for parameter in wrapped.spec.parameters
                    if parameter.name in self.names
                ),
            ),
            contract=_contract(wrapped.spec.contract),
            pretty_name=f"LiNeS around {wrapped.spec.pretty_name or wrapped.spec.name}",
            reference_url=REFERENCE,
            optional_tensor_policy=wrapped.spec.optional_tensor_policy,
            uses_accelerator=True,
        )

    @property
    def ignores_base(self) -> bool:
        """Whether the wrapped method treats the base like any listed model."""
        return bool(self.wrapped.spec.contract.base == BasePolicy.IGNORED)

    def _execute(
        self,
        groups: Sequence[TensorGroup],
        parameters: list[dict[str, Any]],
        options: BatchOptions,
        *,
        input_dtypes: Sequence[torch.dtype | None],
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        results = []
        for given, values, input_dtype in zip(groups, parameters, input_dtypes, strict=True):
            if given.base is None:
                raise LinesError(f"tensor {given.metadata.name}: the base has no such tensor.")
            # The recipe's dtype comes first, as in mergekit; then the arithmetic's.
            group = align_dtype(given, input_dtype)
            if not values["allow_nonfinite"]:
                _check_finite(given, group)
            base = next(entry.tensor for entry in group.entries if entry.is_base)
            dtype = out_dtype or base.dtype
            collector = values.get("collector")
            if not group.non_base or not base.numel():
                result = base
            elif collector is None:
                result = self._merge(group, values, dtype)
            else:
                # A calibration wants the norm terms; what it returns is thrown away.
                terms = self._norms(group, values, collector.power)
                collector.terms[group.metadata.name] = terms
                result = base
            results.append(result.to(dtype))
        return tuple(results)

    def _merge(
        self, group: TensorGroup, values: dict[str, Any], out_dtype: torch.dtype
    ) -> torch.Tensor:
        group, base = self._prepared(group)
        merged = self._wrapped_merge(group, values)
        result = scale_task_vector(base, merged, values["coefficient"]).to(out_dtype)
        if not values["allow_nonfinite"] and not torch.isfinite(result).all():
            self._refuse_result(group, merged, out_dtype)
        return result

    def _norms(self, group: TensorGroup, values: dict[str, Any], power: int) -> tuple[float, float]:
        """Return this tensor's terms of ‖τ_sum‖ and ‖τ_MTL‖ (Eq. 2), as Σ|x|^power."""
        group, base = self._prepared(group)
        merged = self._wrapped_merge(group, values)
        with one_thread():
            return norm_terms(base, merged, [entry.tensor for entry in group.non_base], power)

    def _prepared(self, group: TensorGroup) -> tuple[TensorGroup, torch.Tensor]:
        """Return the group in the dtype of the arithmetic, and its base tensor."""
        group = align_dtype(group, work_dtype(group.entries[0].tensor.dtype))
        base = next(entry.tensor for entry in group.entries if entry.is_base)
        return group, base

    def _wrapped_merge(self, group: TensorGroup, values: dict[str, Any]) -> torch.Tensor:
        """Return M of a prepared group, from the wrapped method itself."""
        entries = group.entries
        if self.ignores_base and not (values["base_listed"] and self.names):
            # lines_postprocess, which passes no parameters, edits one model and never the base.
            entries = group.non_base
        seen = replace(group, entries=entries)
        kept = {entry.id for entry in entries}
        bound = {}
        for parameter in self.wrapped.spec.parameters:
            if parameter.name not in self.names:
                bound[parameter.name] = _default(parameter, seen)
                continue
            value = values[self.names[parameter.name]]
            if parameter.scope != ParameterScope.SHARED:
                value = PerInputValues([(key, v) for key, v in value.items() if key in kept])
            bound[parameter.name] = value
        self.wrapped.validate_inputs(
            [entry.id for entry in entries],
            None if self.ignores_base else _base_id(group),
            group_name=group.metadata.name,
        )
        device = entries[0].tensor.device
        with one_thread(), seeded(values.get("seed", 0), group.metadata.name or "", device):
            (merged,) = self.wrapped._execute_resolved((seen,), [bound])
        return merged

    def _refuse_result(
        self, group: TensorGroup, merged: torch.Tensor, out_dtype: torch.dtype
    ) -> None:
        name = group.metadata.name
        if not torch.isfinite(merged).all():
            raise LinesError(
                f"tensor {name}: the wrapped method {self.wrapped.spec.name} gave NaN or infinity "
                f"for finite inputs (weights that sum to zero, for example). Change its "
                f"parameters, or set parameters.allow_nonfinite: true to keep them."
            )
        raise LinesError(
            f"tensor {name}: the result does not fit the output dtype {out_dtype}. "
            f"Set out_dtype: float32 or bfloat16."
        )


def _check_finite(given: TensorGroup, group: TensorGroup) -> None:
    """Refuse NaN and infinity in the inputs, by tensor and model."""
    for before, entry in zip(given.entries, group.entries, strict=True):
        if torch.isfinite(entry.tensor).all():
            continue
        place = f"tensor {group.metadata.name} of model {entry.id}"
        if torch.isfinite(before.tensor).all():
            raise LinesError(
                f"{place}: found values beyond the recipe's dtype {entry.tensor.dtype}. Set "
                f"dtype: float32, or leave it out."
            )
        raise LinesError(
            f"{place}: found NaN or infinity, wanted finite weights. Repair or replace the model, "
            f"or set parameters.allow_nonfinite: true to carry them into the merge."
        )


def _contract(wrapped: InputContract) -> InputContract:
    """Return the wrapped contract with a base required: LiNeS measures the change from it."""
    if wrapped.base == BasePolicy.IGNORED:
        return InputContract(base=BasePolicy.REQUIRED)
    return replace(wrapped, base=BasePolicy.REQUIRED)


def _default(parameter: ParameterSpec, group: TensorGroup) -> Any:
    if parameter.scope == ParameterScope.SHARED:
        return parameter.default
    return PerInputValues([(entry.id, parameter.default) for entry in group.entries])


def _base_id(group: TensorGroup) -> Any:
    return group.base.id if group.base else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU kernels on one thread: sums then have one order, so one result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """Fork torch's generators, seeded by (seed, tensor name): draws depend on no order."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        yield
