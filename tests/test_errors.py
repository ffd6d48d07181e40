"""What users are told: sentences in which nothing of a stranger's is obeyed by a terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from mergekit_lines.console import new_table, print_line, print_table
from mergekit_lines.errors import LinesError, Problem, reason, tell, together, visible, visible_json

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
    several = LinesError([text, f"{text}."]).message.splitlines()
    assert several[1:] == [f"  1. {shown}", f"  2. {shown}."]
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


def test_a_problem_is_said_with_key_tensors_and_what_to_do() -> None:
    """The sentence comes about in one place; a whole sentence is a problem without a key."""
    problem = Problem("model a", "lacks tensors", ("y", "x"), ". Take another.", ": (1,) and (2,)")
    sentence = "model a: lacks tensors (x, y: (1,) and (2,)). Take another."
    assert LinesError(problem).message == f"[lines] {sentence}"
    assert LinesError(["Whole.", "Whole."]).message == "[lines] Whole."
    assert LinesError("Whole.").problems == (Problem("", "Whole."),)
    assert str(problem.under("merge")) == f"merge: {sentence}"
    assert str(Problem("", "Whole.", ("x",)).under("model a")) == "model a: Whole. (tensors: x)"


def test_problems_that_differ_in_tensors_alone_are_one() -> None:
    """Braces and words of a name are no places in a sentence that something is put into."""
    names = ["{0}", "TENSORS", "%s", "a"]
    problems = [Problem("k", "text", (name,), ".", f": {name}") for name in names]
    (problem,) = together(problems)
    assert str(problem) == "k: text (%s, TENSORS, a and 1 more: {0})."
    assert len(together([*problems, Problem("l", "text", ("a",), ".")])) == 2


def test_a_long_message_keeps_its_cause() -> None:
    """Of what a library says the middle is left out, in which it prints a configuration."""
    text = f"Error getting num_layers for {'x' * 1_000}: no attribute num_hidden_layers"
    shown = reason(RuntimeError(text))
    assert shown.startswith("RuntimeError: Error getting num_layers for xxx")
    assert shown.endswith("xxx: no attribute num_hidden_layers") and len(shown) < 300
    assert reason(RuntimeError("x" * 240)) == f"RuntimeError: {'x' * 240}"
