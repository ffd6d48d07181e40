"""The keys of a search, and what each may be: a range, or values to choose from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mergekit_lines.errors import LinesError, nearest
from mergekit_lines.recipe.settings import full_key, tuned_entries
from mergekit_lines.search.axes import Axis, end_of_values, parse_axis
from mergekit_lines.search.measuring.means import Recipe, words_by_depth

BLOCKS, WEIGHTS = "blocks", "weights"  # keys of several numbers
VALUES, MOST_VALUES = 4, 64  # of blocks: by default, and at most
DIGITS = 6  # of a proposed number: more change no merge, and nobody reads them
END = 0.02  # of a range: what lies so near its end lies at the end
KINDS = ("log", "int")
WISH = (
    "KEY=LOW:HIGH, KEY=LOW:HIGH:log, KEY=LOW:HIGH:int or KEY=VALUE,VALUE, e.g. beta=0.1:1.5 or "
    "wrap=ties,dare_ties"
)


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, by the name that a study has for them."""

    name: str
    low: float
    high: float
    kind: str = ""  # one of KINDS, or nothing

    def value(self, proposed: float) -> float:
        """Return what is set for a number that was proposed: few digits, within the range."""
        if self.kind == "int":
            return round(proposed)
        return min(max(float(f"{proposed:.{DIGITS}g}"), self.low), self.high)

    def end(self, value: Any) -> str:
        """Return which end of the range a value lies at: ``low``, ``high``, or neither."""
        low, high, at = self.low, self.high, float(value)
        if self.kind == "log":
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low)
        return "low" if share <= END else "high" if share >= 1 - END else ""

    def as_json(self) -> dict[str, Any]:
        """Return what tells it from another range."""
        return {"name": self.name, "low": self.low, "high": self.high, "kind": self.kind}


@dataclass(frozen=True)
class Choice:
    """Values to choose from, by the name that a study has for the choice."""

    name: str
    values: tuple[Any, ...]

    def value(self, proposed: Any) -> Any:
        """Return the value that was proposed."""
        return proposed

    def end(self, value: Any) -> str:
        """Return which end of numbers in order a value is: ``low``, ``high``, or neither."""
        return end_of_values(self.values, value)

    def as_json(self) -> dict[str, Any]:
        """Return what tells it from another choice."""
        return {"name": self.name, "values": list(self.values)}


Dimension: TypeAlias = Range | Choice


@dataclass(frozen=True)
class Key:
    """One ``--set``: a key of the recipe, and the dimensions that its value comes from."""

    key: str
    dimensions: tuple[Dimension, ...]

    def settings(self, values: Sequence[Any], recipe: Recipe) -> dict[str, Any]:
        """Return the key's settings of a recipe for values of its dimensions."""
        if self.key == WEIGHTS:
            return {WEIGHTS: list(values)}
        if self.key != BLOCKS:
            return {self.key: values[0]}
        # Spread over the depth and linear between, as the recipe's own word has them.
        shape = ", ".join(map(str, values))
        others = {f"parameters.{word}": None for word in sorted(words_by_depth(recipe))}
        return {**others, "parameters.schedule": shape}


@dataclass(frozen=True)
class Space:
    """All keys of a search."""

    keys: tuple[Key, ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All that is proposed, in the order of the keys."""
        return tuple(dimension for key in self.keys for dimension in key.dimensions)

    def values(self, proposed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values, by name, of what was proposed."""
        return {one.name: one.value(proposed[one.name]) for one in self.dimensions}

    def settings(self, values: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
        """Return settings of a recipe for values by name."""
        settings: dict[str, Any] = {}
        for key in self.keys:
            settings |= key.settings([values[one.name] for one in key.dimensions], recipe)
        return settings

    def corners(self) -> list[dict[str, Any]]:
        """Return points that show every end and every choice once."""
        first = {one.name: _extremes(one)[0] for one in self.dimensions}
        others = [
            {**first, one.name: value} for one in self.dimensions for value in _extremes(one)[1:]
        ]
        return [first, *others]

    def ends(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return which of a point's values lie at an end, by name: ``low`` or ``high``."""
        at = {one.name: one.end(values[one.name]) for one in self.dimensions}
        return {name: end for name, end in at.items() if end}

    def without_depth(self, recipe: Recipe, low: float, high: float) -> Space:
        """Return the space of uniform coefficients: α from low to high, the other keys as here."""
        dropped = {f"parameters.{word}" for word in words_by_depth(recipe)} | {BLOCKS}
        kept = tuple(key for key in self.keys if key.key not in dropped)
        alpha = Key("parameters.alpha", (Range("alpha", low, high),))
        return Space((alpha, *kept))


def _extremes(dimension: Dimension) -> Sequence[Any]:
    if isinstance(dimension, Choice):
        return dimension.values
    return dimension.value(dimension.low), dimension.value(dimension.high)


def parse_space(texts: Sequence[str], recipe: Recipe) -> Space:
    """Return the space of ``KEY=LOW:HIGH[:log|:int]`` or ``KEY=VALUE,VALUE``, each once or more.

    ``blocks=LOW:HIGH[:COUNT]`` is a coefficient for each block: COUNT values that are spread over
    the depth, linear between. ``weights=LOW:HIGH`` is the weight of each model but the base.
    START:STOP:STEP is a choice, as in a sweep.

    Raises:
        LinesError: a text is none of these, there is none, or two of them set the same.
    """
    if not texts:
        raise LinesError(f"--set: found none, wanted at least one of {WISH}.")
    space = Space(tuple(_parse(text, recipe) for text in texts))
    keys = [key.key for key in space.keys]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise LinesError(f"--set: found {', '.join(twice)} twice, wanted each key once.")
    words = words_by_depth(recipe)
    by_depth = [key for key in keys if key.removeprefix("parameters.") in words]
    if BLOCKS in keys and by_depth:
        raise LinesError(
            f"--set: found blocks and {', '.join(by_depth)}, wanted one of them: the coefficients "
            f"of all blocks leave nothing for it to say."
        )
    own = [key for key in keys if re.fullmatch(r"models\.\d+\.parameters\.weight", key)]
    if WEIGHTS in keys and own:
        raise LinesError(
            f"--set: found weights and {', '.join(own)}, wanted one of them: both set one value."
        )
    return space


def _parse(text: str, recipe: Recipe) -> Key:
    key, _, listing = (part.strip() for part in text.partition("="))
    if not key or not listing:
        raise LinesError(f"--set {text}: wanted {WISH}.")
    parts = [part.strip() for part in listing.split(":")]
    several = key in (BLOCKS, WEIGHTS)
    full = key if several else full_key(key)
    is_range = len(parts) == 2 or (len(parts) == 3 and (several or not _is_number(parts[2])))
    if ":" not in listing or not is_range:
        if several:
            raise LinesError(f"--set {text}: found {listing!r}, wanted a range {key}=LOW:HIGH.")
        axis = parse_axis(text)
        if len(set(axis.values)) < len(axis.values):  # Python's 1 is True, and a study's too
            raise LinesError(f"--set {text}: two of the values are equal, wanted each once.")
        return Key(axis.key, (Choice(axis.name, axis.values),))
    if key == BLOCKS:
        return Key(key, tuple(_spread(text, key, parts[:2], _count(text, parts[2:]))))
    if key == WEIGHTS:
        if len(parts) > 2:
            raise LinesError(f"--set {text}: found {listing!r}, wanted {key}=LOW:HIGH.")
        return Key(key, tuple(_spread(text, key, parts, len(tuned_entries(recipe)))))
    return Key(full, (_range(text, Axis(full, ()).name, parts),))


def _spread(text: str, key: str, parts: Sequence[str], count: int) -> list[Range]:
    if not count:
        raise LinesError(f"--set {text}: found no model besides the base, wanted one at least.")
    return [_range(text, f"{key}.{number}", parts) for number in range(1, count + 1)]


def _count(text: str, parts: Sequence[str]) -> int:
    if not parts:
        return VALUES
    if parts[0].isdecimal() and 2 <= int(parts[0]) <= MOST_VALUES:
        return int(parts[0])
    raise LinesError(
        f"--set {text}: found {parts[0]!r}, wanted the number of values from the first block to "
        f"the last, from 2 to {MOST_VALUES}."
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _range(text: str, name: str, parts: Sequence[str]) -> Range:
    kind = parts[2] if len(parts) > 2 else ""
    if kind and kind not in KINDS:
        raise LinesError(
            f"--set {text}: found {kind!r} behind the range, wanted log, int or nothing."
            f"{nearest(kind, KINDS)}"
        )
    if not all(_is_number(part) for part in parts[:2]) or not float(parts[0]) < float(parts[1]):
        raise LinesError(
            f"--set {text}: found {':'.join(parts[:2])!r}, wanted LOW:HIGH, two finite numbers, "
            f"the first below the second."
        )
    low, high = float(parts[0]), float(parts[1])
    if kind == "log" and low <= 0:
        raise LinesError(f"--set {text}: found {parts[0]}, wanted a LOW above 0 for a log range.")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise LinesError(f"--set {text}: found {parts[0]}:{parts[1]}, wanted whole numbers.")
    return Range(name, low, high, kind)
