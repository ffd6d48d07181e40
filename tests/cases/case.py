"""What a case is: one fault, how it is built, and the words of its refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAN, INF = math.nan, math.inf
DROP = object()
UP = "model.layers.2.mlp.up_proj.weight"
HEAD = "lm_head.weight"
MATRICES = ("q_proj.weight", "up_proj.weight", "down_proj.weight")
ALL_LAYERS = (0, 4)


@dataclass(frozen=True)
class Models:
    """Sound tiny checkpoints that cases refer to or copy, never change."""

    base: Path
    a: Path
    b: Path
    adapter: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.base, self.a, self.b, self.adapter)


Recipe = dict[str, Any]
Build = Callable[[Path, Models], Recipe]


@dataclass(frozen=True)
class Case:
    """One fault, and what its refusal must say.

    ``fault`` is where it lies: in the ``recipe``, the ``models`` (both seen without reading
    a weight), the ``weights``, the ``flags`` or ``out``.
    """

    id: str
    sentence: str
    build: Build
    expected: tuple[str, ...]
    flags: tuple[str, ...] = ()
    fault: str = "recipe"
    out: str = "out"
    during: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext()
    problems: int | None = 1  # None: the message may count them as it likes
