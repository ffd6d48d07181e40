import pytest

from mergekit_lines.kernels.compiled import loading
from mergekit_lines.kernels.compiled.library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    """The compiled kernels, compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loading.SETTING, "compiled")
        loaded = loading.library(1)
    assert loaded is not None
    return loaded
