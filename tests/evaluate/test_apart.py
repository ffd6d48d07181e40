"""Leaks between validation and test, planted one by one, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Settings, check_apart, parse_evaluators

PYTHON = """
def blind(model, tokenizer): return 1
def seeing(model, tokenizer, split): return 1
def reward(prompts, completions): return [0] * len(prompts)
"""


def check(validation: str, test: str) -> None:
    check_apart(
        parse_evaluators([validation], "validation", Settings()),
        parse_evaluators([test], "test", Settings()),
    )


@pytest.fixture
def files(here: Any) -> None:
    here("mine.py", PYTHON)
    here("a.txt", "w1 w2\n\nw3 w4\n\nw5")
    here("b.txt", "w6 w7\n\nw8")
    here("copy.txt", "w1 w2\n\nw3 w4\n\nw5")
    here("leak.txt", "w9\n\n w3 w4 \n\nw1 w2\n")
    here("leak.jsonl", '{"prompt": "w8"}\n')
    Path("folder").mkdir()
    Path("link.txt").symlink_to("a.txt")


@pytest.mark.parametrize(
    ("validation", "test", "text"),
    [
        ("perplexity:a.txt", "perplexity:a.txt", "both read the file a.txt."),
        ("perplexity:a.txt?limit=1", "x=perplexity:folder/../a.txt", "both read the file a.txt."),
        ("perplexity:a.txt", "perplexity:link.txt", "both read the file a.txt."),
        (
            "perplexity:a.txt",
            "perplexity:copy.txt",
            "the files a.txt and copy.txt have the same content.",
        ),
        ("perplexity:a.txt", "perplexity:leak.txt", "2 examples are in both, of 3 and 3."),
        ("rewards:mine:reward?prompts=a.txt", "perplexity:a.txt", "both read the file a.txt."),
        (
            "perplexity:b.txt",
            "rewards:mine:reward?prompts=leak.jsonl",
            "1 example is in both, of 2 and 1.",
        ),
        (
            "python:mine:blind",
            "x=python:mine:blind?direction=lower",
            "one function measures both, and cannot know on which data.",
        ),
    ],
)
def test_a_leak_is_refused(files: None, validation: str, test: str, text: str) -> None:
    """The error names both specs, what they share, and the remedy."""
    with pytest.raises(LinesError) as caught:
        check(validation, test)
    message = caught.value.message
    assert message.startswith(f"[lines] {validation} (validation) and {test} (test): {text}")
    assert "What is chosen on validation data has to be reported on other data." in message


@pytest.mark.parametrize(
    ("validation", "test"),
    [
        ("perplexity:a.txt", "perplexity:b.txt"),
        ("perplexity:a.txt?limit=1", "perplexity:leak.txt?limit=2"),  # w1 w2 against w9, w3 w4
        ("python:mine:seeing", "python:mine:seeing"),
        ("python:mine:blind", "python:mine:seeing"),
        (
            "rewards:mine:reward?prompts=a.txt&limit=1",
            "rewards:mine:reward?prompts=b.txt",
        ),
    ],
)
def test_what_is_apart_passes(files: None, validation: str, test: str) -> None:
    """One function may score two sets of prompts, or know the split."""
    check(validation, test)


def test_every_leak_is_told_at_once(files: None) -> None:
    """Two pairs, two problems."""
    validation = parse_evaluators(
        ["perplexity:a.txt", "python:mine:blind"], "validation", Settings()
    )
    test = parse_evaluators(["x=python:mine:blind", "perplexity:copy.txt"], "test", Settings())
    with pytest.raises(LinesError) as caught:
        check_apart(validation, test)
    assert len(caught.value.problems) == 2
