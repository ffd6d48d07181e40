"""``lines[...]``: any mergekit method with its task vector scaled by depth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.merge_methods.passthrough import passthrough_merge_method

from mergekit_lines.errors import LinesError
from mergekit_lines.host.process import one_thread
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.pieces import Kernel
from mergekit_lines.kernels.scale import norm_terms, scale_task_vector, work_dtype
from mergekit_lines.kernels.sparsity import Sparsity
from mergekit_lines.methods import trim, weights
from mergekit_lines.methods.finite import refuse_input, refuse_result
from mergekit_lines.methods.own import OwnMerge
from mergekit_lines.methods.trim import SETTLED
from mergekit_lines.methods.words import FOR_WRAP, strict

REFERENCE = "https://arxiv.org/abs/2410.17146"
# Among the parameters of one tensor; no recipe can write it, for no word has this form.
SCALING = "<scaling>"


@dataclass(frozen=True)
class Scaling:
    """What is done with the task vector M(θ…) − θ_0 of one tensor.

    Attributes:
        coefficient: λ, dimensionless.
        seed: of the recipe, for draws.
        base_listed: whether the recipe lists the base among the models.
        vector: a sink that takes the task vector, in the dtype of the arithmetic; or None.
        collector: takes the terms of Eq. 2, and nothing is scaled; or None.
    """

    coefficient: float
    seed: int = 0
    base_listed: bool = False
    vector: Any = None
    collector: Any = None


class OurMethod(MergeMethod):
    """A method of this package, which no recipe can wrap."""


class LinesMethod(OurMethod):
    """θ_0 + λ·(M(θ…) − θ_0) for one wrapped method M.

    λ comes with each tensor, in the :class:`Scaling` under ``SCALING`` among its parameters.

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
        by_depth = pass_parameters and "schedule" in taken
        # Alone, mergekit's methods have mergekit's words: one recipe means one merge everywhere.
        self._more = FOR_WRAP.get(wrapped.spec.name, ()) if by_depth else ()
        self.spec = MergeMethodSpec(
            name=name,
            parameters=(
                *words,
                *self._more,
                *(
                    weights.outside_word(parameter)
                    for parameter in wrapped.spec.parameters
                    if by_depth and weights.is_weight_of_model(parameter)
                ),
                *(
                    strict(
                        parameter,
                        self.names[parameter.name],
                        by_depth=by_depth and weights.is_weight_of_model(parameter),
                        defaults=by_depth,
                    )
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
        for stored, values, input_dtype in zip(groups, parameters, input_dtypes, strict=True):
            if stored.base is None:
                raise LinesError(f"tensor {stored.metadata.name}: the base has no such tensor.")
            scaling: Scaling = values[SCALING]
            # The recipe's dtype comes first, as in mergekit; then the arithmetic's.
            group = align_dtype(stored, input_dtype)
            if not values["allow_nonfinite"]:
                _check_finite(stored, group)
            base = next(entry.tensor for entry in group.entries if entry.is_base)
            dtype = out_dtype or base.dtype
            if not group.non_base or not base.numel():
                result = base
            elif scaling.collector is None:
                result = self._merge(group, values, dtype)
            else:
                # A calibration wants the norm terms; what it returns is thrown away.
                terms = self._norms(group, values, scaling.collector.power)
                scaling.collector.terms[group.metadata.name] = terms
                result = base
            results.append(result.to(dtype))
        return tuple(results)

    def kernel(self, values: dict[str, Any], models: Sequence[Any]) -> Kernel | None:
        """Return our own kernel for the wrapped method, or None where there is none.

        Args:
            values: the method's parameters; those that each model has are keyed by model.
            models: the ids of the fine-tuned models, in their order.
        """
        if self.wrapped is passthrough_merge_method:  # lines_postprocess: M is the model itself
            return Merge((Sparsity("none"),), (1.0,)) if len(models) == 1 else None
        wrapped = self.wrapped
        own = {name: values[word] for name, word in self.names.items()}
        own |= {
            key: values[key]
            for key in (SETTLED, *(word.name for word in self._more))
            if key in values
        }
        if isinstance(wrapped, OwnMerge):
            return wrapped.kernel(own, models)
        if type(wrapped) is not GeneralizedTaskArithmeticMerge:
            return None
        if trim.cuts_whole_model(own) and own["rescale"]:
            raise LinesError(trim.NO_RESCALE)
        kind = wrapped.sparsification_method
        return Merge(
            sparsities=trim.sparsities(own, models)
            if trim.cuts_whole_model(own)
            else tuple(
                Sparsity(
                    kind=kind.value if kind else "none",
                    density=own["density"][model],
                    gamma=own["gamma"][model] if "gamma" in own else 0.0,
                    epsilon=own["epsilon"][model] if "epsilon" in own else 0.0,
                    rescale=own["rescale"],
                    by_share=own.get("rescale_by") == "p",
                )
                for model in models
            ),
            weights=tuple(own["weight"][model] for model in models),
            consensus=wrapped.consensus_method.value if wrapped.consensus_method else None,
            normalize=own["normalize"],
            scale=own["lambda"],
            zero_sign=trim.zero_sign(own),
        )

    def _merge(
        self, group: TensorGroup, values: dict[str, Any], out_dtype: torch.dtype
    ) -> torch.Tensor:
        group, base = self._prepared(group)
        merged = self._wrapped_merge(group, values)
        scaling: Scaling = values[SCALING]
        if scaling.vector is not None:
            scaling.vector.write(0, (merged - base).flatten())
        result = scale_task_vector(base, merged, scaling.coefficient).to(out_dtype)
        if not values["allow_nonfinite"] and not torch.isfinite(result).all():
            refuse_result(group.metadata.name, self.wrapped.spec.name, merged, out_dtype)
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
        """Return M of a prepared group, from the wrapped method itself.

        Raises:
            LinesError: the recipe wants of it what only our kernel can.
        """
        unlike = any(not torch.equal(one.tensor, group.base.tensor) for one in group.non_base)
        for more in self._more:
            if values[more.name] != more.default and unlike:
                raise LinesError(
                    f"tensor {group.metadata.name}: found {more.name}: {values[more.name]}, wanted "
                    f"{more.default} where a model lacks the tensor or it is no floating-point "
                    f"one: mergekit's own method merges it. Leave {more.name} out."
                )
        entries, scaling = group.entries, values[SCALING]
        if self.ignores_base and not (scaling.base_listed and self.names):
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
        with one_thread(), seeded(scaling.seed, group.metadata.name or "", device):
            (merged,) = self.wrapped._execute_resolved((seen,), [bound])
        return merged


def _check_finite(stored: TensorGroup, group: TensorGroup) -> None:
    """Refuse NaN and infinity in the inputs, by tensor and model."""
    for before, entry in zip(stored.entries, group.entries, strict=True):
        if torch.isfinite(entry.tensor).all():
            continue
        place = f"tensor {group.metadata.name} of model {entry.id}"
        refuse_input(place, before.tensor, entry.tensor.dtype)


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
def seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """Fork torch's generators, seeded by (seed, tensor name): draws depend on no order."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        yield
