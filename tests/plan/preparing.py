"""A plan of a small recipe, made in this process from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.host.state import fresh_caches
from mergekit_lines.plan.planned import MergeRun
from mergekit_lines.plan.prepare import Prepared, prepare


def configuration(base: Path, *tuned: Path, **more: Any) -> MergeConfiguration:
    """Return a sound recipe of ``lines``; ``more`` are keys of it."""
    return MergeConfiguration.model_validate(
        {
            "merge_method": "lines",
            "base_model": str(base),
            "models": [{"model": str(path)} for path in tuned],
            "parameters": {"alpha": 0.3, "beta": 0.5},
            **more,
        }
    )


@contextmanager
def prepared(config: MergeConfiguration, options: MergeOptions | None = None) -> Iterator[Prepared]:
    """Prepare a recipe; mergekit's caches last as long as the context."""
    options = options or MergeOptions()
    with fresh_caches():
        yield prepare(config, options, MergeRun.of(config, options))
