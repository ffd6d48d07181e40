"""Consensus merging as methods: of a plain sum, and of TIES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit.merge_methods.base import ParameterScope

from mergekit_lines.errors import LinesError
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.sparsity import Sparsity
from mergekit_lines.methods import trim
from mergekit_lines.methods.own import OwnMerge
from mergekit_lines.methods.words import (
    TRIM,
    number,
    of_parameter,
    share,
    whole_number,
    word,
    wrong,
)

REFERENCE = "https://arxiv.org/abs/2405.07813"


def _tall_lambda(value: Any) -> float:
    meaning = "a number above 0; the paper chooses among 0.2, 0.3, … 0.6"
    result = number("tall_lambda", value, meaning)
    if result <= 0:
        raise wrong("tall_lambda", value, meaning)
    return result


def _checked_agreement(values: Mapping[str, Any], models: Sequence[Any]) -> int:
    """Return ``min_agree``, which is at most the number of models.

    Raises:
        LinesError: it is more.
    """
    least, count = int(values["min_agree"]), len(models)
    if least > count:
        raise LinesError(
            of_parameter(
                "min_agree",
                f"found {least} (2 where the recipe does not say), wanted at most {count}: that "
                f"many models are merged, and no entry would stay. Give min_agree: 1, or more "
                f"models.",
            )
        )
    return least


def _around(merge: Merge, values: Mapping[str, Any], models: Sequence[Any]) -> Agreement:
    return Agreement(
        merge,
        tall_lambdas=tuple(values["tall_lambda"][model] for model in models),
        min_agree=_checked_agreement(values, models),
        scale=values["lambda"],
    )


def _of_sum(values: Mapping[str, Any], models: Sequence[Any]) -> Agreement:
    weights = tuple(values["weight"][model] for model in models)
    return _around(Merge((Sparsity("none"),) * len(models), weights), values, models)


def _of_ties(values: Mapping[str, Any], models: Sequence[Any]) -> Agreement:
    """Return the kernel around TIES' sum of agreeing entries, as the authors' code has it."""
    merge = Merge(
        sparsities=trim.sparsities(values, models),
        weights=tuple(values["weight"][model] for model in models),
        consensus="sum",
        zero_sign=trim.zero_sign(values),
    )
    return _around(merge, values, models)


WORDS = (
    word(
        "weight",
        lambda v: number("weight", v),
        1.0,
        "of the model's task vector",
        ParameterScope.NON_BASE,
    ),
    word("lambda", lambda v: number("lambda", v), 1.0, "of the merged task vector"),
    word(
        "tall_lambda",
        _tall_lambda,
        0.4,
        "how large a model's share is to be beside what the others add",
        ParameterScope.NON_BASE,
    ),
    word(
        "min_agree",
        lambda v: whole_number("min_agree", v, 1),
        2,
        "how many models have to want an entry",
    ),
)

DENSITY = word(
    "density",
    lambda v: share("density", v),
    0.2,
    "share of the largest entries that TIES keeps",
    ParameterScope.NON_BASE,
)

CONSENSUS = (
    OwnMerge("consensus_ta", "Consensus of task arithmetic", REFERENCE, WORDS, _of_sum),
    OwnMerge("consensus_ties", "Consensus of TIES", REFERENCE, (*WORDS, DENSITY, TRIM), _of_ties),
)
