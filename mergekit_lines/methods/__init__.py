"""mergekit merge methods: thin objects around the kernels, registered by name.

``lines`` and ``lines_postprocess`` are the recipe's words. The planner resolves ``lines``
to one method per wrapped method (``lines[ties]``, …), registered on demand, because
defaults, parameter scopes, contracts and optional-tensor policies hang on the name.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    BatchOptions,
    InputContract,
    MergeMethod,
    MergeMethodSpec,
    TensorGroup,
)

from mergekit_lines.errors import LinesError, nearest
from mergekit_lines.methods.lines import REFERENCE, LinesMethod
from mergekit_lines.methods.words import LINES_WORDS, POSTPROCESS_WORDS


class RecipeMethod(MergeMethod):
    """The name a recipe uses; the planner replaces it before any tensor is merged."""

    def __init__(self, name: str, pretty_name: str, words: Sequence[Any]) -> None:
        self.spec = MergeMethodSpec(
            name=name,
            parameters=tuple(words),
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=pretty_name,
            reference_url=REFERENCE,
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
        raise LinesError(
            f"merge_method {self.spec.name} needs the whole model's tensor names to know each "
            f"block's depth, and this command shows it one tensor at a time. Run the recipe "
            f"with mergekit-yaml or mergekit-multi."
        )


RECIPE_METHODS = (
    RecipeMethod("lines", "LiNeS", LINES_WORDS),
    RecipeMethod("lines_postprocess", "LiNeS post-processing", POSTPROCESS_WORDS),
)


def _registry() -> Any:
    # Not at the top: this module is loaded from inside the import of the registry.
    return importlib.import_module("mergekit.merge_methods.registry")


def check_wrap(name: str) -> str | None:
    """Return why ``name`` cannot be wrapped, or None when it can."""
    registry = _registry()
    methods = {
        method.spec.name: method
        for method in registry.registered_methods()
        if not isinstance(method, (RecipeMethod, LinesMethod))
    }
    if name == "dare":
        return "parameters.wrap: found 'dare', wanted `dare_linear` or `dare_ties`."
    if name in {method.spec.name for method in RECIPE_METHODS}:
        return f"parameters.wrap: found {name!r}, which cannot wrap itself; name the merge inside."
    if name not in methods:
        return (
            f"parameters.wrap: found {name!r}, wanted a registered mergekit method."
            f"{nearest(name, methods)} (known: {', '.join(sorted(methods))})"
        )
    if name == "passthrough":
        return (
            "parameters.wrap: found 'passthrough', which merges nothing and has no base to measure "
            "from; for one model write merge_method: lines_postprocess."
        )
    if methods[name].spec.contract.base == BasePolicy.FORBIDDEN:
        return (
            f"parameters.wrap: found {name!r}, which accepts no base, and LiNeS scales the change "
            f"from a base."
        )
    return None


def method_for(wrap: str) -> LinesMethod:
    """Return the method ``lines[wrap]``, registering it when it is first asked for.

    Raises:
        LinesError: ``wrap`` is not registered, or cannot have a base.
    """
    problem = check_wrap(wrap)
    if problem:
        raise LinesError(problem)
    return _registered(f"lines[{wrap}]", _registry().get(wrap))


def postprocess_method() -> LinesMethod:
    """Return the method that edits one model: M is that model itself."""
    registry = _registry()
    return _registered("lines_postprocess[model]", registry.passthrough_merge_method)


def _registered(name: str, wrapped: MergeMethod) -> LinesMethod:
    registry = _registry()
    known = {method.spec.name: method for method in registry.registered_methods()}
    if name not in known:
        postprocess = name.startswith("lines_postprocess")
        words = POSTPROCESS_WORDS if postprocess else LINES_WORDS
        method = LinesMethod(name, wrapped, words, pass_parameters=not postprocess)
        registry.register(method)
        return method
    found = known[name]
    if not isinstance(found, LinesMethod):
        raise LinesError(f"the merge method name {name!r} is taken by another package.")
    return found
