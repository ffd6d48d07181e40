"""What a report says of flags is taken over where a merge could have said it, and not else."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_lines.report.flags import are_safe, safe_flags

OURS = [
    *("--random-seed", "7", "--out-shard-size", "60000"),
    *("--lora-merge-dtype", "bfloat16", "--device", "cuda"),
]


def test_flags_that_a_merge_writes() -> None:
    """All four, in their order; none at all is fine too."""
    assert safe_flags(OURS) == tuple(OURS)
    assert are_safe(OURS) and are_safe([]) and are_safe(None)


@pytest.mark.parametrize(
    "flags",
    [
        ["--trust-remote-code"],
        ["--random-seed", "--trust-remote-code"],
        ["--random-seed", "7\n"],
        ["--random-seed", "7; rm -rf /"],
        ["--random-seed", 7],
        ["--lora-merge-cache", "/etc"],
        ["--out-shard-size", "../x"],
        ["--device", "cuda:0"],
        ["--lora-merge-dtype", "float16|x"],
        ["--out-shard-size", "\u0663"],  # a digit, but none of ASCII
        [["--device", "cuda"]],
        "--trust-remote-code",
        {"--device": "cuda"},
        7,
    ],
)
def test_flags_that_none_writes(flags: Any) -> None:
    """Nothing of them is shown, and they do not pass for a merge's own."""
    assert safe_flags(flags) == ()
    assert not are_safe(flags)


def test_what_stands_beside_a_foreign_flag() -> None:
    """The flags that the bytes hang on stay, the foreign one goes, and it is noticed."""
    flags = ["--trust-remote-code", "--random-seed", "7", "--copy-tokenizer"]
    assert safe_flags(flags) == ("--random-seed", "7")
    assert not are_safe(flags)
