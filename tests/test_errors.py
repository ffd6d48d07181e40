"""What users are told: sentences in which nothing of a stranger's is obeyed by a terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from mergekit_lines.console import new_table, print_line, print_table
from mergekit_lines.errors import LinesError, tell, visible, visible_json

# As a terminal obeys them, and as they are to be shown; by hand from Unicode's tables.
SHOWN = {
    "\x1b[2J": r"\x1b[2J",
    "a\nb": r"a\nb",
    "\r": r"\r",
    "\t": r"\t",
    "\x07\x08\x7f": r"\x07\x08\x7f",
    "\x9b31m": r"\x9b31m",
    "\u2028\u2029": r"\u2028\u2029",
    "\u202ecod\u202c": r"\u202ecod\u202c",
    "\u2066\u2069\u200f": r"\u2066\u2069\u200f",
    "\u200b\ufeff\u00ad": r"\u200b\ufeff\xad",
    "\udcff": r"\udcff",
    "\U000e0041": r"\U000e0041",
    "C:\\model": "C:\\model",
    "Größe α 模型 😀": "Größe α 模型 😀",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items())
def test_what_a_terminal_would_obey_is_written_out(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In errors, told lines, printed lines and tables, by one rule; letters of any script stay."""
    assert visible(text) == shown
    assert LinesError(text).message == f"[lines] {shown}"
    assert LinesError([text, text]).message.splitlines()[1:] == [f"  1. {shown}", f"  2. {shown}"]
    tell(text)
    assert capsys.readouterr().err == f"[lines] {shown}\n"
    console = Console(file=io.StringIO(), width=200, color_system=None, highlight=False)
    print_line(console, text)
    table = new_table(text, text)
    table.add_row(text, text)
    print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert printed.count(shown) == 5
    assert all(one.isprintable() or one == "\n" for one in printed)


def test_whole_documents_keep_their_lines() -> None:
    """What is to stay is named by whoever shows it."""
    assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@pytest.mark.parametrize("text", SHOWN)
def test_json_for_the_eye_is_json(text: str) -> None:
    """What is not visible is a JSON escape, so that a program reads what it read before."""
    content = {text: [text, 1.5, None]}
    written = visible_json(content)
    assert json.loads(written) == content
    assert all(one.isprintable() or one == "\n" for one in written)
    assert visible_json({"ü": "α"}) == '{\n  "ü": "α"\n}'
