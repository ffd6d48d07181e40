"""What users are told: the one exception they see, its problems, and text that is safe to show."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import click

HALF = 120  # letters of a long message that are shown of each end


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; :class:`LinesError` makes a sentence of it.

    Attributes:
        key: what it is about, said first: a key of the recipe, an option, a file, a model.
        text: what was found, and where no ``rest`` follows, what is wanted and what to do.
        tensors: the names of those it is about, listed behind ``text``.
        rest: what stands behind the names.
        example: what one of the tensors shows; problems that differ in it alone are one.
        about: the recipe's parameter that it is about, and another that may have been meant.
        of_mergekit: whether mergekit said it, which often only follows from another problem.
    """

    key: str
    text: str
    tensors: tuple[str, ...] = ()
    rest: str = ""
    example: str = field(default="", compare=False)
    about: tuple[str, ...] = field(default=(), compare=False)
    of_mergekit: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, problem: str | Problem) -> Problem:
        """Return a problem; a whole sentence is one without a key."""
        return problem if isinstance(problem, Problem) else cls("", problem)

    def under(self, place: str) -> Problem:
        """Return the problem as one of a part of ``place``."""
        return replace(self, key=f"{place}: {self.key}" if self.key else place)

    def __str__(self) -> str:
        """Return the sentence."""
        start = f"{self.key}: " if self.key else ""
        if not self.tensors:
            return f"{start}{self.text}{self.rest}"
        label = "" if self.rest else "tensors: "  # behind a whole sentence
        return f"{start}{self.text} ({label}{some(self.tensors, 3)}{self.example}){self.rest}"


def together(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems that differ in their tensors alone as one, with the tensors of all."""
    alike: dict[Problem, list[Problem]] = {}
    for problem in problems:
        alike.setdefault(replace(problem, tensors=()), []).append(problem)
    return [
        replace(group[0], tensors=tuple(name for one in group for name in one.tensors))
        for group in alike.values()
    ]


class LinesError(click.ClickException):
    """A problem with a recipe, a model or an option, said in full sentences.

    As a :class:`click.ClickException` it ends the stock mergekit commands with one
    message and exit status 1; raised from Python it carries the same text.
    """

    def __init__(self, problems: str | Problem | Sequence[str | Problem]) -> None:
        listed = [problems] if isinstance(problems, (str, Problem)) else problems
        self.problems = tuple(dict.fromkeys(map(Problem.of, listed)))
        super().__init__(_text([visible(str(problem)) for problem in self.problems]))


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
    import json  # not for ``--help``, as logging below

    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text
    )


def tell(text: str) -> None:
    """Tell the user one line on stderr."""
    click.echo(f"[lines] {visible(text)}", err=True)


def teller(*, quiet: bool) -> Callable[[str], None]:
    """Return what tells the user a line: :func:`tell`, or the log alone."""
    return _log if quiet else tell


def _log(text: str) -> None:
    import logging

    logging.getLogger(__name__).info(visible(text))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the one of ``names`` nearest to ``name``, or ``""``."""
    match = nearest_name(name, names)
    return f" Did you mean {match!r}?" if match else ""


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is nearest to ``name``, if one is near."""
    return next(iter(difflib.get_close_matches(str(name), sorted(names), n=1, cutoff=0.6)), None)


def some(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names of a long list, saying how many more there are."""
    listed = sorted(names)
    text = ", ".join(listed[:limit])
    return text if len(listed) <= limit else f"{text} and {len(listed) - limit} more"


def reason(error: BaseException) -> str:
    """Return what a library's exception says, in one line of bounded length.

    Of a long one the middle is left out: a configuration is printed there, and behind it stands
    what is wrong with it.
    """
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = " ".join(lines)
    text = f"{text[:HALF]} … {text[-HALF:]}" if len(text) > 2 * HALF else text
    return text if isinstance(cause, TextError) else f"{type(cause).__name__}: {text}"


@contextmanager
def plain_failures(remedy: str, *, full: str = "", other: str = "") -> Iterator[None]:
    """Turn failures of disk and files into one sentence.

    Args:
        remedy: ends the sentence about a file or folder.
        full: the sentence about a full disk, where there is more to say.
        other: ends the sentence about any other exception; these go on where it is empty.

    Raises:
        LinesError: what failed, where, and what to do.
    """
    try:
        yield
    except click.ClickException:
        raise
    except MemoryError as error:
        raise ResumableError(
            "the memory is full. End other programs, raise the limit (`ulimit -v`), or give fewer "
            "--num-threads, and run the same command again."
        ) from error
    except OSError as error:
        if full and error.errno == errno.ENOSPC:
            raise LinesError(full) from error
        kind = FullDiskError if error.errno == errno.ENOSPC else LinesError
        where = f" ({error.filename})" if error.filename else ""
        raise kind(f"{error.strerror or reason(error)}{where}. {remedy}") from error
    except Exception as error:
        if not other:
            raise
        import logging

        logging.getLogger(__name__).debug("the merge failed", exc_info=error)
        raise LinesError(f"the merge failed ({reason(error)}). {other}") from error
