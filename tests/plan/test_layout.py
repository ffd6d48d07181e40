"""Every architecture of the table is merged, edited and held live as the formulas say."""

import shutil
from collections.abc import Iterator

import pytest

from tests import columns
from tests.architectures import ROWS
from tests.columns import COLUMNS, Trial
from tests.readmes import RECIPES

MARKED = [(row, column) for row in ROWS for column in COLUMNS if columns.declared(row, column)]


@pytest.fixture(scope="module")
def trial(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trial]:
    """One architecture's models, made once for all its tests."""
    folder = tmp_path_factory.mktemp("architecture")
    yield Trial(request.param, folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("trial", "column"),
    MARKED,
    ids=[f"{row.name}, {column}" for row, column in MARKED],
    indirect=["trial"],
    scope="module",
)
def test_an_architecture(trial: Trial, column: str) -> None:
    """What the table marks of it holds, under the base's names and in float64."""
    try:
        columns.check(trial, column)
    except columns.ReleaseError as error:
        pytest.skip(str(error))


def test_the_table_is_in_the_readme() -> None:
    """recipes/README.md shows the table with every row and mark that are tested here."""
    assert columns.table() in RECIPES


def test_the_table_is_long() -> None:
    """At least 64 architectures are in it, each once."""
    assert len({row.name for row in ROWS}) == len(ROWS) >= 64
