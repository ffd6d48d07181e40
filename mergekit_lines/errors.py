"""The one exception users see, and the nearest-name hint it often carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import click


class LinesError(click.ClickException):
    """A problem with a recipe, a model or an option, said in full sentences.

    As a :class:`click.ClickException` it ends the stock mergekit commands with one
    message and exit status 1; raised from Python it carries the same text.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(_text(self.problems))


def _text(problems: tuple[str, ...]) -> str:
    if len(problems) == 1:
        return f"[lines] {problems[0]}"
    lines = [f"[lines] {len(problems)} problems; nothing was written."]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
    return "\n".join(lines)


class ResumableError(LinesError):
    """A failure that another run may get over: what is whole of the output stays."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to ``name``, or ``""``."""
    matches = difflib.get_close_matches(str(name), sorted(names), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def some(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names of a long list, saying how many more there are."""
    listed = sorted(names)
    text = ", ".join(listed[:limit])
    return text if len(listed) <= limit else f"{text} and {len(listed) - limit} more"


def reason(error: BaseException) -> str:
    """Return what a library's exception says, in one line of bounded length."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = " ".join(lines)
    return f"{type(cause).__name__}: {text[:197] + '...' if len(text) > 200 else text}"


class FullDiskError(ResumableError):
    """The disk has no room for the rest of a merge; what is whole already stays."""
