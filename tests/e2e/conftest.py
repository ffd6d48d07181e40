"""Fixtures that several files of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.torture import Torturer


@pytest.fixture(scope="session")
def torturer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torturer]:
    """One start of mergekit for all files that torture merges; each merge is a fork of its own."""
    with Torturer(tmp_path_factory.mktemp("torturer")) as started:
        yield started
