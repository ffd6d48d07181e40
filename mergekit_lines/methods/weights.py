"""Weights of models that differ by depth: one for every task vector and block.

In a recipe of ``lines`` a model's ``weight`` may be values from the first block to the last, in
one text as those of ``schedule`` are. When a tensor's depth is known its weight is a number, and
the wrapped method, whatever it does with weights, never sees another.

Source: arXiv 2310.02575 has a coefficient for every task vector and layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.rules import weight_at
from mergekit_lines.methods.words import number, word

WEIGHT, WEIGHT_OUTSIDE = "weight", "weight_outside"
_OUTSIDE = word(
    WEIGHT_OUTSIDE,
    lambda v: number(WEIGHT_OUTSIDE, v),
    None,
    "weight in tensors outside the blocks; the first block's without it",
)


def is_weight_of_model(parameter: ParameterSpec) -> bool:
    """Tell whether a method's parameter is the weight of each model."""
    return parameter.name == WEIGHT and parameter.scope != ParameterScope.SHARED


def adds_up(method: Any) -> bool:
    """Tell whether a method adds task vectors up by their weights, unless it is to normalize."""
    return (
        isinstance(method, GeneralizedTaskArithmeticMerge)
        and method.consensus_method is None
        and not method.default_normalize
    )


def outside_word(weight: ParameterSpec) -> ParameterSpec:
    """Return the word for the weight in tensors outside the blocks, for the same models."""
    return replace(_OUTSIDE, scope=weight.scope)


def with_weight_at(values: Mapping[str, Any], depth: BlockDepth | None) -> dict[str, Any]:
    """Return one model's parameters, of which the weight is a number, for a tensor in its place."""
    if WEIGHT_OUTSIDE not in values:
        return dict(values)
    return {
        **values,
        WEIGHT: weight_at(values[WEIGHT], values[WEIGHT_OUTSIDE], depth),
        WEIGHT_OUTSIDE: None,
    }
