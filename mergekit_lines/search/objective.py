"""What a sweep maximises: the paper's objectives, or an expression over metric names."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from mergekit_lines.errors import LinesError, nearest
from mergekit_lines.evaluate.metric import FUNCTIONS, Metric

MEAN = "mean"
RETENTION = "retention"
BASELINES = ("tuned", "base")
_Metrics = Mapping[str, Metric]

_ONE_ARGUMENT: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
}
_SEVERAL: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "mean": lambda values: math.fsum(values) / len(values),
    "min": min,
}
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.Pow: math.pow,
}
_FORM = (
    "Wanted mean, retention, or an expression of metric names, tuned.NAME, base.NAME, numbers, "
    f"+ - * / **, parentheses and {', '.join(FUNCTIONS)}."
)


@dataclass(frozen=True)
class Objective:
    """A number to maximise, of a point's metrics and those of the baselines.

    - ``mean``: the mean over all metrics of value / the fine-tuned model's value. The paper's
      mean of normalised accuracies, for merges of several models.
    - ``retention``: ``target_weight``·M_target + M_control (C.1), for one fine-tuned model.
      M_target is the mean over ``targets`` of value / the fine-tuned model's value, M_control
      that over ``controls`` of value / the base model's.
    - an expression: its value, as it is; a metric of which less is better has to get its minus
      there. ``tuned.NAME`` and ``base.NAME`` are the baselines' metrics.

    In the first two, a ratio is inverted for a metric of which less is better.
    """

    text: str
    targets: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    target_weight: float = 2.0

    @property
    def needs(self) -> frozenset[str]:
        """Return which baselines have to be measured: of ``tuned`` and ``base``."""
        if self.text == MEAN:
            return frozenset({"tuned"})
        if self.text == RETENTION:
            return frozenset(BASELINES)
        return frozenset(baseline for baseline, _ in self._named() if baseline)

    def names(self, metric_names: Iterable[str]) -> None:
        """Check that every metric the objective names is measured.

        Raises:
            LinesError: one is not; with the nearest name.
        """
        measured = list(metric_names)
        named = [*self.targets, *self.controls] if self.text == RETENTION else []
        if self.text not in {MEAN, RETENTION}:
            named = [name for _, name in self._named()]
        problems = []
        for name in dict.fromkeys(named):
            if name not in measured:
                words = measured if self.text == RETENTION else [*measured, MEAN, RETENTION]
                problems.append(
                    f"objective {self.text!r}: there is no metric {name!r}."
                    f"{nearest(name, words)} Measured are: {', '.join(measured) or 'none'}."
                )
        if problems:
            raise LinesError(problems)

    def score(self, metrics: _Metrics, tuned: _Metrics | None, base: _Metrics | None) -> float:
        """Return the objective of one point; higher is better.

        Args:
            metrics: the point's.
            tuned: the fine-tuned model's; of several, the best value of each metric.
            base: the base model's.

        Raises:
            LinesError: a baseline or a metric is missing, a ratio has a value that is not above
                0, or the result is not a finite number.
        """
        values = {"": metrics, "tuned": tuned or {}, "base": base or {}}
        if self.text == MEAN:
            result = self._mean_ratio(list(metrics), values, "tuned")
        elif self.text == RETENTION:
            target = self._mean_ratio(self.targets, values, "tuned")
            control = self._mean_ratio(self.controls, values, "base")
            result = self.target_weight * target + control
        else:
            result = self._evaluate(values)
        return result

    def _mean_ratio(
        self, names: Sequence[str], values: Mapping[str, _Metrics], baseline: str
    ) -> float:
        if not names:
            raise LinesError(f"objective {self.text}: there are no metrics.")
        ratios = []
        for name in names:
            point, reference = (self._metric(values, place, name) for place in ("", baseline))
            above, below = point.value, reference.value
            whose = "the fine-tuned" if baseline == "tuned" else "the base"
            wrong = f"{whose} model's {name} is {below}" if not below > 0 else None
            if not point.higher_is_better:
                above, below = below, above
                if not point.value > 0:
                    wrong = f"{name} is {point.value}"
            if wrong:
                raise LinesError(
                    f"objective {self.text}: {wrong}, and a ratio wants a value above 0. Give an "
                    f"expression as the objective, for example {_example(point, name, baseline)}."
                )
            ratios.append(above / below)
        return math.fsum(ratios) / len(ratios)

    def _metric(self, values: Mapping[str, _Metrics], place: str, name: str) -> Metric:
        if name not in values[place]:
            whose = {"": "at this point", "tuned": "of the fine-tuned model"}
            raise LinesError(
                f"objective {self.text!r}: {name} was not measured "
                f"{whose.get(place, 'of the base model')}. Measure it there with the same "
                f"evaluators."
            )
        return values[place][name]

    def _named(self) -> Iterator[tuple[str, str]]:
        """Yield the metrics of an expression, each behind ``tuned``, ``base`` or nothing."""
        yield from dict.fromkeys(_parse(self.text).names)

    def _evaluate(self, values: Mapping[str, _Metrics]) -> float:
        numbers = {
            (place, name): self._metric(values, place, name).value for place, name in self._named()
        }
        said = ", ".join(f"{f'{p}.' if p else ''}{name} = {v}" for (p, name), v in numbers.items())
        try:
            result = _parse(self.text).value(numbers)
        except (ArithmeticError, ValueError) as error:
            raise LinesError(
                f"objective {self.text!r} has no value ({error}) with {said}. Mend the expression."
            ) from error
        if not math.isfinite(result):
            raise LinesError(
                f"objective {self.text!r} is {result} with {said}, wanted a finite number. Mend "
                f"the expression."
            )
        return result


def parse_objective(
    text: str,
    *,
    targets: Sequence[str] = (),
    controls: Sequence[str] = (),
    target_weight: float = 2.0,
) -> Objective:
    """Return an objective; whether its metrics exist is not known here.

    Args:
        text: ``mean``, ``retention``, or an expression.
        targets: metrics of what the model was fine-tuned on, for ``retention``.
        controls: metrics of what it is not to forget, for ``retention``.
        target_weight: w_target of ``retention``; the paper has 2.

    Raises:
        LinesError: the text is none of these, or ``retention`` lacks its metrics.
    """
    text = text.strip()
    if text == RETENTION:
        _check_retention(targets, controls, target_weight)
    elif targets or controls or target_weight != 2.0:
        raise LinesError(
            f"objective {text!r}: targets, controls and a target weight are of the objective "
            f"{RETENTION}. Choose that, or leave them out."
        )
    if text not in {MEAN, RETENTION} and not _parse(text).names:
        raise LinesError(f"objective {text!r}: found no metric in it. {_FORM}")
    return Objective(text, tuple(targets), tuple(controls), float(target_weight))


def _check_retention(targets: Sequence[str], controls: Sequence[str], target_weight: float) -> None:
    if not targets or not controls:
        raise LinesError(
            f"objective {RETENTION}: wanted at least one target and one control metric. Name the "
            f"metrics of what the model was fine-tuned on, and of what it is not to forget."
        )
    if both := set(targets) & set(controls):
        raise LinesError(
            f"objective {RETENTION}: {', '.join(sorted(both))} is both target and control. Name "
            f"it once."
        )
    number = isinstance(target_weight, (int, float)) and not isinstance(target_weight, bool)
    if not number or not (math.isfinite(target_weight) and target_weight > 0):
        raise LinesError(
            f"objective {RETENTION}: the target weight is {target_weight!r}, wanted a number "
            f"above 0; the paper has 2."
        )


def _example(point: Metric, name: str, baseline: str) -> str:
    difference = f"{name} - {baseline}.{name}"
    return f"`{difference}`" if point.higher_is_better else f"`-({difference})`"


# --- expressions: Python's grammar, and of it only what is named here ------------------------


class _Term(NamedTuple):
    """A checked part of an expression: the metrics in it, and its value by theirs."""

    names: tuple[tuple[str, str], ...]
    value: Callable[[Mapping[tuple[str, str], float]], float]


def _parse(text: str) -> _Term:
    try:
        return _term(ast.parse(text, mode="eval").body, text)
    except SyntaxError as error:
        raise LinesError(f"objective {text!r}: {error.msg}. {_FORM}") from error
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise LinesError(
            f"objective {text[:60]!r}: it cannot be read ({type(error).__name__}). {_FORM}"
        ) from error


def _term(node: ast.expr, text: str) -> _Term:
    """Take an expression in, of floats throughout, so that powers stay small.

    Raises:
        LinesError: a part is not on the list.
    """
    match node:
        case ast.BinOp(left=one, op=operator, right=other) if type(operator) in _OPERATORS:
            left, right, combine = _term(one, text), _term(other, text), _OPERATORS[type(operator)]
            return _Term(
                left.names + right.names, lambda by: combine(left.value(by), right.value(by))
            )
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            term = _term(operand, text)
            return (
                _Term(term.names, lambda by: -term.value(by))
                if isinstance(sign, ast.USub)
                else term
            )
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            if not arguments or (name in _ONE_ARGUMENT and len(arguments) != 1):
                arity = "one argument" if name in _ONE_ARGUMENT else "at least one argument"
                raise LinesError(
                    f"objective {text!r}: {name} has {len(arguments)} arguments, wanted {arity}."
                )
            terms = [_term(argument, text) for argument in arguments]
            names = tuple(name for term in terms for name in term.names)
            return _Term(names, lambda by: _call(name, [term.value(by) for term in terms]))
        case ast.Attribute(value=ast.Name(id=baseline), attr=name) if baseline in BASELINES:
            return _Term(((baseline, name),), itemgetter((baseline, name)))
        case ast.Name(id=name) if name not in {*FUNCTIONS, *BASELINES, RETENTION}:
            return _Term((("", name),), itemgetter(("", name)))
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            constant = float(number)
            return _Term((), lambda _: constant)
    part = ast.get_source_segment(text, node) or ast.unparse(node)
    raise LinesError(f"objective {text!r}: found {part!r} in it. {_hint(node)}{_FORM}")


def _call(name: str, operands: list[float]) -> float:
    one = _ONE_ARGUMENT.get(name)
    return one(operands[0]) if one else _SEVERAL[name](operands)


def _hint(node: ast.expr) -> str:
    """Return a sentence about a likely slip, or nothing."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name not in FUNCTIONS:
            return f"There is no function {name!r}.{nearest(name, FUNCTIONS)} "
        case ast.Attribute(value=ast.Name(id=name)):
            return f"{name!r} is no baseline.{nearest(name, BASELINES)} "
        case ast.BinOp(op=ast.BitXor()):
            return "A power is written **. "
    return ""
