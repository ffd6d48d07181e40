"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.case import Models


@pytest.fixture(scope="module")
def sound(llama_base: Path, llama_a: Path, llama_b: Path, adapter: Path) -> Models:
    """The session's checkpoints."""
    return Models(llama_base, llama_a, llama_b, adapter)
