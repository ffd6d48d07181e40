"""Patterns of adapters: the same names match as by PEFT's own expression, in bounded time."""

from __future__ import annotations

import itertools
import re

import pytest

from mergekit_lines.checkpoint.adapters.patterns import (
    PatternError,
    check_count,
    check_pattern,
    matches,
)

NAMES = [
    *("q_proj", "model.layers.1.self_attn.q_proj", "model.layers.11.self_attn.q_proj"),
    *("model.layers.2.mlp.up_proj", "a", "aa", "aab", "layersx1.q", "x.^", "a.b.c", "lm_head"),
]
PATTERNS = [
    *("q_proj", "self_attn.q_proj", r"layers\.1\..*", r"model\.layers\.(1|2)\..*_proj", "^q_proj"),
    *(r".*layers\.\d+\.(self_attn|mlp)\.(?:q|up)_proj", "[a-c]+", "[^a]*", "a*", "a?a?a?", "a{2}b"),
    *(
        "(a|a)*b",
        "(a*)*",
        "((a|b)+.?)*c",
        "a{1,}",
        "a{,2}b?",
        r"\bq_proj",
        r"[\w.]+q",
        "",
        "a|",
        ".*?b",
    ),
    *(
        "q_proj$",
        r"(^|x\.)\^",
        "[]a]",
        "[^]]+",
        r"layers.[0-9]{1,2}.\w+\.q_proj",
        "a{3,5}",
        "(){9}a",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_names_match(pattern: str) -> None:
    """Python's own matcher, with the expression that PEFT makes of a pattern, says the same."""
    for name in NAMES:
        expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert matches(pattern, name) is expected, name


def test_all_short_patterns_of_few_letters() -> None:
    """Every text of up to five of these letters that is a pattern, on every short name."""
    names = ["".join(one) for length in range(4) for one in itertools.product("a.b", repeat=length)]
    for length in range(1, 6):
        for letters in itertools.product("a.*?|()", repeat=length):
            pattern = "".join(letters)
            try:
                compiled = re.compile(rf"(.*\.)?({pattern})$")
                re.compile(pattern)
            except re.error:
                continue
            if "?" in pattern and "(?" in pattern:
                continue
            for name in names[:: length if length > 3 else 1]:
                assert matches(pattern, name) is (compiled.match(name) is not None), (pattern, name)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|a)*" * 9 + "X",
        ".*.*.*.*.*.*.*.*.*X",
        "(a?){99}" + "a" * 99,
        "(.*a){99}",
    ],
)
def test_patterns_that_backtrack_without_end(pattern: str) -> None:
    """Many thousand million ways for Python's matcher are one pass over the name here.

    The test would not end otherwise.
    """
    name = "a" * 60 + "b"
    assert not matches(pattern, name)
    assert matches("(a+)+b", name)
    with pytest.raises(PatternError, match="too many ways"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        "(?=a)a",
        "(?i)a",
        "a++",
        "(",
        "[",
        "a*" * 501,
        "((a*)*)*X",
        "(" * 30 + ")" * 30,
        "*",
    ],
)
def test_other_patterns_are_refused(pattern: str) -> None:
    """What is no expression, or of a kind that needs another matcher, is said."""
    with pytest.raises(PatternError, match=r"^it (is|holds|has|nests) "):
        matches(pattern, "a")


def test_more_patterns_than_modules_are_refused() -> None:
    """Each is tried on every module."""
    check_count([f"layers.{number}.q_proj" for number in range(5_000)] + ["a*"] * 100)
    for patterns in (["a"] * 5_001, ["a*"] * 101):
        with pytest.raises(PatternError, match="wanted at most 5,000 names and 100 other ones"):
            check_count(patterns)


def test_patterns_that_people_write_are_left_to_peft() -> None:
    """Also the long one that unsloth writes for language and attention layers."""
    check_pattern(r".*layers\.(0|1|2)\..*(q|v)_proj")
    check_pattern(
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))"
    )
