"""mergekit's flags in a report, which anyone may write, and which are shown to be copied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from mergekit_lines.recipe.checks import DTYPES

# All that a merge's bytes hang on, each with what its value looks like. None of them runs code,
# reads a file or writes one.
_VALUES = {
    "--random-seed": re.compile(r"-?[0-9]{1,20}"),
    "--out-shard-size": re.compile(r"[0-9]{1,18}"),
    "--lora-merge-dtype": re.compile("|".join(DTYPES)),
    "--device": re.compile(r"cuda|mps|xpu|npu|hpu|mtia|xla"),
}


def safe_flags(flags: Any) -> tuple[str, ...]:
    """Return those flags of a report that a merge writes there, with their values."""
    return tuple(word for pair in _pairs(flags) for word in pair)


def are_safe(flags: Any) -> bool:
    """Tell whether a report's flags are none but those that a merge writes there."""
    return flags is None or flags == list(safe_flags(flags))


def _pairs(flags: Any) -> Iterator[tuple[str, str]]:
    words = flags if isinstance(flags, list) else []
    for name, value in pairwise(words):
        pattern = _VALUES.get(name) if isinstance(name, str) else None
        if pattern and isinstance(value, str) and pattern.fullmatch(value):
            yield name, value
