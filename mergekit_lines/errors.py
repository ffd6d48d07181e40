"""What users are told: the one exception they see, its problems, and text that is safe to show."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


class LinesError(click.ClickException):
    """A problem with a recipe, a model or an option, said in full sentences.

    As a :class:`click.ClickException` it ends the stock mergekit commands with one
    message and exit status 1; raised from Python it carries the same text.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(_text([visible(problem) for problem in self.problems]))


def _text(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"[lines] {problems[0]}"
    lines = [f"[lines] {len(problems)} problems; nothing was written."]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
    return "\n".join(lines)


class ResumableError(LinesError):
    """A failure that another run may get over: what is whole of the output stays."""


class FullDiskError(ResumableError):
    """The disk has no room for the rest of a merge; what is whole already stays."""


class TextError(ValueError):
    """Why a text of others was not read, as words within a sentence."""


def visible(text: str, keep: str = "") -> str:
    """Return a text with what a terminal would obey, or hide, written out as an escape.

    Names, keys and messages come from strangers' files: an escape sequence in them may clear
    the screen, a newline begins a line of its own, a bidirectional mark turns words round.

    Args:
        text: what is to be shown.
        keep: characters that stay, e.g. the newlines of a whole document.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def visible_json(content: Any) -> str:
    """Return a JSON text for the eye and for programs: what is not visible is a JSON escape."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text
    )


def tell(text: str) -> None:
    """Tell the user one line on stderr."""
    click.echo(f"[lines] {visible(text)}", err=True)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the one of ``names`` nearest to ``name``, or ``""``."""
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
    text = f"{text[:197]}..." if len(text) > 200 else text
    return text if isinstance(cause, TextError) else f"{type(cause).__name__}: {text}"
