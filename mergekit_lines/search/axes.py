"""The axes of a sweep: a key of the recipe and the values that it takes."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from mergekit_lines.errors import LinesError
from mergekit_lines.recipe.settings import full_key

MOST = 10_000  # points; more is a slip of the pen


@dataclass(frozen=True)
class Axis:
    """One key of the recipe, in full, and its values in order."""

    key: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The key as a person would say it: ``beta`` for ``parameters.beta``."""
        return self.key.removeprefix("parameters.")


def parse_axis(text: str) -> Axis:
    """Return the axis of ``KEY=START:STOP:STEP`` or ``KEY=VALUE,VALUE,…``.

    Values that hold commas, as coefficients by depth do, stand between semicolons:
    ``schedule=0.1,0.5;0.3,0.3``; one alone ends with one.

    START and STOP both belong to the range, as far as STEP leads to STOP; the steps are
    decimal, so that 0.1:1:0.1 has ten values and 0.3 is 0.3.

    Raises:
        LinesError: it is neither, or there is no value.
    """
    key, equals, listing = text.partition("=")
    if not equals or not key.strip() or not listing.strip():
        raise LinesError(
            f"--set {text}: wanted KEY=START:STOP:STEP or KEY=VALUE,VALUE, e.g. "
            f"parameters.beta=0.1:1.0:0.1."
        )
    values = _range(text, listing) if ":" in listing else _listed(text, listing)
    if len(set(map(repr, values))) < len(values):
        raise LinesError(f"--set {text}: a value stands there twice, wanted each once.")
    return Axis(full_key(key.strip()), tuple(values))


def _range(text: str, listing: str) -> list[int | float]:
    try:
        start, stop, step = numbers = [Decimal(part.strip()) for part in listing.split(":")]
        leads = all(math.isfinite(float(number)) for number in numbers)
        steps = (stop - start) / step
    except (ArithmeticError, ValueError):
        leads = False
    if not leads or steps < 0:
        raise LinesError(
            f"--set {text}: found {listing!r}, wanted START:STOP:STEP, three numbers with a STEP "
            f"that leads from START to STOP."
        )
    if steps >= MOST:
        # Of a step that is hardly any, a count with all its digits would take long.
        many = f"{int(steps) + 1:,}" if steps < 10**15 else f"{steps:.1e}"
        raise LinesError(f"--set {text}: that is {many} values, wanted {MOST:,} at most.")
    if steps < 1 and start != stop:
        raise LinesError(
            f"--set {text}: the STEP {step} leads past {stop} at once, so that {start} is the only "
            f"value. Give a smaller one; a value alone is {text.partition('=')[0]}={start}."
        )
    count = int(steps) + 1
    numbers = [start + step * number for number in range(count)]
    whole = all(number == number.to_integral_value() for number in (start, step))
    return [int(number) if whole else float(number) for number in numbers]


def _listed(text: str, listing: str) -> list[Any]:
    values = []
    parts = listing.removesuffix(";").split(";") if ";" in listing else listing.split(",")
    for part in parts:
        try:
            value = yaml.safe_load(part)
        except (yaml.YAMLError, ValueError):  # a day that no month has; digits without an end
            value = None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML reads 1e-3 as text
                value = float(value.strip())
        if not isinstance(value, (int, float, str)) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise LinesError(
                f"--set {text}: found {part!r} among the values, wanted finite numbers or words."
            )
        values.append(value)
    return values


def grid(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return every point of one or two axes as settings, the first axis slowest.

    Raises:
        LinesError: there are no axes or more than two, or they have one key.
    """
    if not 1 <= len(axes) <= 2:
        raise LinesError(f"--set: found {len(axes)} axes, wanted one or two.")
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise LinesError(f"--set: found {keys[0]} twice, wanted two different keys.")
    points = math.prod(len(axis.values) for axis in axes)
    if points > MOST:
        raise LinesError(f"--set: that is {points:,} points, wanted {MOST:,} at most.")
    combined = itertools.product(*(axis.values for axis in axes))
    return [dict(zip(keys, values, strict=True)) for values in combined]


def end_of_values(values: Sequence[Any], value: Any) -> str:
    """Return which end of values in order one of them is: ``low``, ``high``, or neither.

    Words have no order, and two values are two ends.
    """
    numbers = [each for each in values if isinstance(each, (int, float)) and each is not True]
    if len(numbers) < len(values) or len(values) < 3 or value not in (min(values), max(values)):
        return ""
    return "low" if value == min(values) else "high"
