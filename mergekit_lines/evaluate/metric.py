"""One measured number, with the scores of its examples where there are any."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mergekit_lines.errors import LinesError

# What an expression of objective.py calls by these names cannot be a metric.
FUNCTIONS = ("abs", "exp", "log", "max", "mean", "min", "sqrt")
RESERVED = frozenset((*FUNCTIONS, "base", "retention", "tuned"))

# The texts of one model by what they hang on: evaluators that generate alike share them.
Completions: TypeAlias = MutableMapping[Hashable, list[str]]


@dataclass(frozen=True)
class Metric:
    """A finite number, whether more of it is better, and the scores of its examples.

    ``examples`` are in the order of the data. Their mean is the value, but for ``perplexity``:
    there they are mean negative log-likelihoods in nats, and the value is the exponential of
    their token-weighted mean. ``origin`` says what it was measured on: a file's name, a task, or
    ``module:function``.
    """

    value: float
    higher_is_better: bool
    examples: tuple[float, ...] | None = None
    exponential: bool = False  # whether the value is the exponential of the examples' mean
    origin: str = ""

    @property
    def error(self) -> float | None:
        """Return the standard error of the value, to first order; None where none is known."""
        if self.stderr is None or not self.exponential:
            return self.stderr
        return self.value * self.stderr

    @property
    def stderr(self) -> float | None:
        """Return the standard error of the examples' mean: sample deviation over √n.

        None without examples, and with one. It has the examples' unit.
        """
        if self.examples is None or len(self.examples) < 2:
            return None
        count = len(self.examples)
        try:
            mean = math.fsum(self.examples) / count
        except OverflowError:  # the sum is no float64, and nobody knows how far they are from it
            return None
        # Squares of scores of 1e200 would be none either.
        deviation = math.hypot(*(score - mean for score in self.examples))
        return deviation / math.sqrt((count - 1) * count)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that ``json`` writes and reads without loss."""
        examples = None if self.examples is None else list(self.examples)
        return {
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "examples": examples,
            **({"exponential": True} if self.exponential else {}),
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Metric:
        """Return the metric that :meth:`to_json` made the dictionary of."""
        examples = data["examples"]
        return cls(
            value=float(data["value"]),
            higher_is_better=bool(data["higher_is_better"]),
            examples=None if examples is None else tuple(float(score) for score in examples),
            exponential=bool(data.get("exponential", False)),
            origin=str(data["origin"]),
        )


def metric(
    spec: str,
    name: str,
    value: float | None = None,
    *,
    origin: str = "",
    higher_is_better: bool = True,
    examples: Sequence[float] | None = None,
    exponential: bool = False,
) -> Metric:
    """Return a checked metric of the evaluator ``spec``; without a value, the examples' mean.

    Raises:
        LinesError: the value or an example's score is not finite.
    """
    for number, score in enumerate(examples or (), 1):
        if not math.isfinite(score):
            raise LinesError(
                f"{spec}: the metric {name} has the score {score} for example {number} of "
                f"{len(examples or ())}, wanted a finite number. Look at the weights "
                f"of this point first, then at the evaluator."
            )
    if value is None:
        value = math.fsum(examples or ()) / len(examples or ())
    if not math.isfinite(value):
        raise LinesError(
            f"{spec}: the metric {name} is {value}, wanted a finite number. Look at the weights "
            f"of this point first, then at the evaluator."
        )
    scores = None if examples is None else tuple(examples)
    return Metric(value, higher_is_better, scores, exponential, origin)
