"""Names in a card, as CommonMark reads them: the text itself, and no markup."""

from __future__ import annotations

import re

import pytest

from mergekit_lines.report.markdown import code, fenced, prose


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_plain-name.v2 (x), α", "a_plain-name.v2 (x), α"),
        ("__init__", r"\_\_init\_\_"),
        (
            "**a** [x](y) `z` <b> a|b ~~c~~ &lt; $x$",
            r"\*\*a\*\* \[x\](y) \`z\` \<b\> a\|b \~\~c\~\~ \&lt; \$x\$",
        ),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("--- a", r"\--- a"),
        ("1. a", r"1\. a"),
        ("a\n# b\x1b[2J", r"a\\n# b\\x1b\[2J"),
        ("C:\\a", r"C:\\a"),
    ],
)
def test_prose(text: str, shown: str) -> None:
    """A backslash stands before each character that CommonMark or GitHub would take for markup."""
    assert prose(text) == shown


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("model.layers", "`model.layers`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("`a", "`` `a ``"),
        ("", "` `"),
        ("a\nb", r"`a\nb`"),
    ],
)
def test_code(text: str, span: str) -> None:
    """A span's ticks are more than any in it; where one is at its end, a space is between."""
    assert code(text) == span
    assert code("a|b", cell=True) == r"`a\|b`"


@pytest.mark.parametrize("text", ["a: 1", "```\n# free\n```", "x `````` y", "~~~\n````yaml\n"])
def test_fences(text: str) -> None:
    """No line of the text ends its block: the fence is longer than every run of ticks."""
    first, *lines, last = fenced(text, "yaml").split("\n")
    assert first == f"{last}yaml" and re.fullmatch("`{3,}", last)
    assert lines == text.rstrip().split("\n")
    assert max((len(run) for run in re.findall("`+", text)), default=0) < len(last)
