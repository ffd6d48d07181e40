"""Patterns of an adapter's config, matched in bounded time.

PEFT matches them as regular expressions, and Python's matcher tries every way of dividing a name
among nested repeats: one line of a stranger's config can keep it busy for years. Here all ways are
followed at once, as the set of places in the name that they have reached.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MOST = 1_000  # letters of a pattern, or of a name
NAMES = 5_000  # patterns of a config that are names, PEFT's own kind
EXPRESSIONS = 100  # others of a config
NESTED = 20  # groups in one another
REPEATED = 2  # repeats in one another
_NAME = re.compile(r"[\w.-]+")
_CLASSES = "dDwWsS"
_COUNTS = re.compile(r"\{(\d{1,3})?(,?)(\d{1,3})?\}")

Places = frozenset[int]
# From the places in a name that are reached to those behind what is matched.
Step = Callable[[str, Places], Places]


class PatternError(ValueError):
    """A pattern that is no regular expression, or of a kind that no layer's name asks for."""


def check_count(patterns: Iterable[str]) -> None:
    """Check that a config has no more patterns than can be tried on every module.

    Raises:
        PatternError: there are more.
    """
    kinds = [_NAME.fullmatch(pattern) is not None for pattern in patterns]
    if sum(kinds) > NAMES or len(kinds) - sum(kinds) > EXPRESSIONS:
        raise PatternError(
            f"there are {len(kinds):,}, wanted at most {NAMES:,} names and {EXPRESSIONS} other ones"
        )


def matches(pattern: str, module: str) -> bool:
    """Tell whether a pattern matches a module's whole name, or its end behind a dot, as in PEFT.

    Raises:
        PatternError: the pattern cannot be matched in bounded time.
    """
    if len(module) > MOST:
        raise PatternError(f"the module {module[:40]!r} has a name of more than {MOST} letters")
    if _NAME.fullmatch(pattern):
        start = len(module) - len(pattern)
        whole = start == 0 or (start > 0 and module[start - 1] == ".")
        pairs = zip(pattern, module[start:], strict=False)
        return whole and all(one in (".", letter) for one, letter in pairs)
    starts = {0} | {place + 1 for place, letter in enumerate(module) if letter == "."}
    return len(module) in _parsed(pattern)(module, frozenset(starts))


def check_pattern(pattern: str) -> None:
    """Check a pattern that PEFT itself will match: no repeats in one another, and few in a row.

    Raises:
        PatternError: Python's matcher might not come to an end.
    """
    parser = _Parser(pattern)
    parser.whole()
    if parser.deepest > 1 or parser.repeats > 5:
        raise PatternError("its repeats may be divided among a name in too many ways")


@functools.lru_cache(maxsize=4096)
def _parsed(pattern: str) -> Step:
    return _Parser(pattern).whole()


@dataclass
class _Parser:
    """One pattern, read from left to right.

    Attributes:
        text: the pattern.
        place: where it is read.
        depth: of the groups there.
        repeats: so far.
        deepest: how many of them stand in one another, so far.
    """

    text: str
    place: int = 0
    depth: int = 0
    repeats: int = 0
    deepest: int = 0

    def whole(self) -> Step:
        if len(self.text) > MOST:
            raise PatternError(f"it has more than {MOST} letters")
        try:
            re.compile(self.text)
        except (re.error, RecursionError, OverflowError) as error:
            raise PatternError(f"it is no regular expression: {error}") from None
        step = self._either()
        if self.place < len(self.text):
            raise self._unknown()
        return step

    def _next(self) -> str:
        return self.text[self.place : self.place + 1]

    def _unknown(self) -> PatternError:
        rest = self.text[self.place : self.place + 10]
        return PatternError(f"it holds {rest!r}, wanted letters, dots, classes, groups, repeats")

    def _either(self) -> Step:
        ways = [self._row()]
        while self._next() == "|":
            self.place += 1
            ways.append(self._row())
        return (
            ways[0]
            if len(ways) == 1
            else lambda name, places: _union(way(name, places) for way in ways)
        )

    def _row(self) -> Step:
        steps = []
        while self._next() not in ("", "|", ")"):
            outer, self.deepest = self.deepest, 0
            steps.append(self._repeated(self._one()))
            self.deepest = max(outer, self.deepest)

        def row(name: str, places: Places) -> Places:
            for step in steps:
                places = step(name, places) if places else places
            return places

        return row

    def _one(self) -> Step:
        letter = self._next()
        self.place += 1
        if letter == "(":
            return self._group()
        if letter == "[":
            return self._class()
        if letter == "\\":
            return self._escape()
        if letter == "^":
            return lambda _, places: places & {0}
        if letter == "$":
            return lambda name, places: places & {len(name)}
        if letter in "*+?{":
            self.place -= 1
            raise self._unknown()
        return _letters(lambda one: letter in (".", one))

    def _group(self) -> Step:
        if self.text.startswith("?:", self.place):
            self.place += 2
        elif self._next() == "?":
            raise self._unknown()
        self.depth += 1
        if self.depth > NESTED:
            raise PatternError(f"it nests more than {NESTED} groups")
        step = self._either()
        self.depth -= 1
        self.place += 1  # the bracket, which re has seen
        return step

    def _class(self) -> Step:
        # A bracket that stands first is one of the letters.
        end = re.compile(r"\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL).match(self.text, self.place)
        if end is None:
            raise self._unknown()
        only = re.compile(f"[{end[0]}")
        self.place = end.end()
        return _letters(lambda one: only.fullmatch(one) is not None)

    def _escape(self) -> Step:
        letter = self._next()
        self.place += 1
        if letter in _CLASSES:
            only = re.compile(f"\\{letter}")
            return _letters(lambda one: only.fullmatch(one) is not None)
        if letter == "b":
            return lambda name, places: frozenset(
                place for place in places if _word(name, place - 1) != _word(name, place)
            )
        if letter.isalnum():
            self.place -= 2
            raise self._unknown()
        return _letters(lambda one: one == letter)

    def _repeated(self, step: Step) -> Step:
        letter, counts = self._next(), _COUNTS.match(self.text, self.place)
        if letter and letter in "*+?":
            least, most = int(letter == "+"), 1 if letter == "?" else None
            self.place += 1
        elif counts and counts[0] not in ("{}", "{,}"):
            least = int(counts[1] or 0)
            most = int(counts[3]) if counts[3] else (None if counts[2] else least)
            self.place = counts.end()
        else:
            return step
        if self._next() == "?":  # as few as possible: the same names match
            self.place += 1
        if self._next() == "+":
            raise self._unknown()
        if least != most or least > 1:
            self.repeats += 1
            self.deepest += 1
            if self.deepest > REPEATED:
                raise PatternError(f"it nests more than {REPEATED} repeats")

        def repeated(name: str, places: Places) -> Places:
            for _ in range(least):
                before, places = places, step(name, places)
                if places == before:
                    break
            reached, fresh, count = places, places, least
            while fresh and (most is None or count < most):
                fresh = step(name, fresh) - reached
                reached, count = reached | fresh, count + 1
            return reached

        return repeated


def _letters(fits: Callable[[str], bool]) -> Step:
    return lambda name, places: frozenset(
        place + 1 for place in places if place < len(name) and fits(name[place])
    )


def _union(sets: Iterable[Places]) -> Places:
    return frozenset().union(*sets)


def _word(name: str, place: int) -> bool:
    return 0 <= place < len(name) and (name[place].isalnum() or name[place] == "_")
