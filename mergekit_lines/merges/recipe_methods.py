"""The names that a recipe uses; see :mod:`mergekit_lines.methods.registry` for what runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    BatchOptions,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    TensorGroup,
)

from mergekit_lines.methods.consensus import CONSENSUS
from mergekit_lines.methods.spectral import SPECTRAL
from mergekit_lines.methods.weights import WEIGHT_OUTSIDE
from mergekit_lines.methods.words import FOR_WRAP, LINES_WORDS, POSTPROCESS_WORDS
from mergekit_lines.methods.wrapped import REFERENCE, OurMethod


class RecipeMethod(OurMethod):
    """The name a recipe uses.

    In ``mergekit-yaml`` and ``-multi`` the planner replaces it before any tensor is merged.
    ``merge_state_dicts`` and ``merge_tensors`` call it with all tensors at once, and
    ``mergekit-pytorch`` with one at a time.

    Args:
        name: ``lines`` or ``lines_postprocess``.
        pretty_name: the name for people.
        words: our own recipe words.
        wraps: whether the wrapped methods' parameters are accepted too.
    """

    def __init__(
        self, name: str, pretty_name: str, words: Sequence[ParameterSpec], *, wraps: bool
    ) -> None:
        self._wraps = wraps
        self._words = tuple(words)
        self._spec = MergeMethodSpec(
            name=name,
            parameters=self._words,
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=pretty_name,
            reference_url=REFERENCE,
        )

    @property
    def spec(self) -> MergeMethodSpec:
        """Our words and, where there is a wrap, every parameter of every method it may name.

        ``mergekit-pytorch`` resolves no others. A wrapped method's parameter is resolved per
        model with None for "not given": defaults and scopes hang on the wrap, which is known
        only when the tensor is merged.
        """
        names = sorted(self._wrapped_names())
        if len(self._spec.parameters) != len(self._words) + len(names):
            wrapped = (ParameterSpec(key, Any, ParameterScope.INPUT, default=None) for key in names)
            self._spec = replace(self._spec, parameters=(*self._words, *wrapped))
        return self._spec

    def _wrapped_names(self) -> set[str]:
        # Not imported: this is asked for while mergekit's registry is being imported.
        registry: Any = sys.modules.get("mergekit.merge_methods.registry")
        if not self._wraps or not hasattr(registry, "registered_methods"):
            return set()
        ours = {word.name for word in self._words}
        more = {WEIGHT_OUTSIDE, *(word.name for words in FOR_WRAP.values() for word in words)}
        return more | {
            f"wrap_{parameter.name}" if parameter.name in ours else parameter.name
            for method in registry.registered_methods()
            if not isinstance(method, OurMethod)
            and method.spec.name != "passthrough"
            and method.spec.contract.base != BasePolicy.FORBIDDEN
            for parameter in method.spec.parameters
        }

    def __call__(
        self,
        groups: Sequence[TensorGroup],
        /,
        *,
        parameters: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
        batch_options: BatchOptions | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Merge all tensors of one model held in memory, as a recipe would.

        Args:
            groups: the inputs of every output tensor, named, the base marked.
            parameters: the recipe's words and the wrapped method's own parameters; per-input
                ones as mergekit takes them, e.g. ``weight`` by model.
            dtype: inputs are cast to it first, as by a recipe's ``dtype``.
            out_dtype: dtype of the results.
            batch_options: not used, tensors are merged one by one.

        Raises:
            LinesError: a word, a name or a tensor is at fault.
            ValueError: mergekit's own checks of a group failed.
        """
        from mergekit_lines.merges.state_dicts import merge_groups

        groups = tuple(groups)
        for group in groups:
            base = group.base.id if group.base else None
            ids = [entry.id for entry in group.entries]
            self.validate_inputs(ids, base, group_name=group.metadata.name)
            group.validate_tensors()
        return merge_groups(
            self.spec.name, groups, parameters or {}, dtype=dtype, out_dtype=out_dtype
        )

    def _execute(
        self,
        groups: Sequence[TensorGroup],
        parameters: list[dict[str, Any]],
        options: BatchOptions,
        *,
        input_dtypes: Sequence[torch.dtype | None],
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Merge tensors of ``mergekit-pytorch``, whose checkpoints tell the other names."""
        from mergekit_lines.merges.pytorch import merge_raw

        return tuple(
            merge_raw(self.spec.name, group, values, dtype, out_dtype)
            for group, values, dtype in zip(groups, parameters, input_dtypes, strict=True)
        )


RECIPE_METHODS = (
    RecipeMethod("lines", "LiNeS", LINES_WORDS, wraps=True),
    RecipeMethod("lines_postprocess", "LiNeS post-processing", POSTPROCESS_WORDS, wraps=False),
    *CONSENSUS,
    *SPECTRAL,
)
