"""What one merge shares with its planner."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from mergekit_lines.lines.summary import Summary
from mergekit_lines.plan.tokenizer import OrderedTokenizer

ACTIVE: ContextVar[MergeRun | None] = ContextVar("mergekit_lines_run", default=None)


@dataclass
class MergeRun:
    """What one wrapped ``run_merge`` shares with its planner."""

    seed: int = 0
    seed_from_flag: bool = False
    base_listed: dict[str | None, bool] = field(default_factory=dict)
    summary: Summary | None = None
    on_summary: Callable[[Summary], object] | None = None
    tokenizer: OrderedTokenizer | None = None  # built once, by the check before the merge
    engine: Any = None  # what merges and stores; plans alone need none
    partial: Any = None  # where α is kept for a run that goes on after this one
