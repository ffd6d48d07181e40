"""stdout: lines and tables that are whole in a pipe and folded on a narrow terminal."""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mergekit_lines.errors import visible

WIDE = 10_000  # columns of a pipe: nothing is folded or cut there

NARROWEST = 12  # columns of the names, where a terminal is too narrow for them and the numbers

# What stands for a letter that stdout's encoding lacks, as on Windows in a pipe.
LETTERS = {"α": "alpha", "λ": "lambda", "·": "-", "─": "-"}


def _spelt(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return LETTERS.get(error.object[error.start], "?"), error.start + 1


codecs.register_error("mergekit_lines.spelt", _spelt)


def open_console() -> Console:
    """Return stdout for tables and lines; in a pipe nothing is folded or coloured."""
    piped = not sys.stdout.isatty()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="mergekit_lines.spelt")
    return Console(
        width=WIDE if piped else None,
        color_system=None if piped or os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line of text, with what a terminal would obey as escapes."""
    console.print(Text(visible(text), style=style), overflow="fold")


def print_table(console: Console, table: Table) -> None:
    """Print a table, its first column folded where the terminal is narrow."""
    # Numbers stay whole: a terminal that is narrower than they are breaks the lines itself.
    names, wide = table.columns[0], console.width
    names.max_width = NARROWEST
    options = console.options.update(max_width=WIDE)
    console.width = max(wide, Measurement.get(console, options, table).maximum)
    names.max_width = None
    with console.capture() as captured:
        console.print(table)
    console.width = wide
    for line in captured.get().splitlines():  # rich pads each line to the table's width
        console.file.write(f"{line.rstrip()}\n")


class _Table(Table):
    def add_column(self, header: Any = "", *args: Any, **kwargs: Any) -> None:
        super().add_column(visible(header), *args, **kwargs)

    def add_row(self, *cells: Any, **kwargs: Any) -> None:
        super().add_row(*(visible(cell) for cell in cells), **kwargs)


def new_table(first: str, *others: str) -> Table:
    """Return an empty table of names and numbers, which are shown as lines are."""
    table = _Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def short(number: int) -> str:
    """Return bytes in a decimal unit."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"
