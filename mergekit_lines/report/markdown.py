"""Names and texts of others as Markdown shows them: as they are, and never as markup."""

from __future__ import annotations

import re

from mergekit_lines.errors import visible

# What begins markup or HTML wherever it stands, the cell of a table included.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")
# What begins it at the start of a line.
_START = re.compile(r"^(?=[#+=-])|^(\d+)(?=[.)])")


def prose(text: str) -> str:
    """Return a text for a sentence, a heading or a cell."""
    shown = _MARKUP.sub(r"\\\g<0>", visible(text.strip()))
    return _START.sub(lambda start: f"{start[1]}\\" if start[1] else "\\", shown)


def code(text: str, *, cell: bool = False) -> str:
    """Return a text in a code span.

    Args:
        text: on one line.
        cell: whether it stands in a table, whose cells end at a bar in a code span too.
    """
    shown = visible(text) or " "
    shown = shown.replace("|", "\\|") if cell else shown
    ticks = "`" * (_longest_run(shown) + 1)
    space = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def fenced(text: str, language: str) -> str:
    """Return lines in a block of code; its fence is longer than any run of ticks in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
