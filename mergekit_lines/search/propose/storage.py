"""Where Optuna keeps the trials of a search: a database beside the results, or one of several."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.bounded import read_bytes
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.search.store import write_output

TRIALS = "trials.db"  # in the folder of a search
OWNER = ".owner"  # likewise: by what a shared database tells this folder's trials from others'
EXTRA = "Install it with `pip install 'mergekit-lines[search]'`."


def check_installed(sampler: str) -> None:
    """Check that what proposes points is there.

    Raises:
        LinesError: it is not; with what to install.
    """
    try:
        import optuna  # noqa: F401 - a look whether it is there

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise LinesError(
            f"search: {error.name or 'optuna'} is not installed, which proposes the points. {EXTRA}"
        ) from error


def database_in(folder: Path) -> str:
    """Return the URL of the database in the folder of a search."""
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(folder.absolute() / TRIALS))
    return url.render_as_string(hide_password=False)


def owner_of(folder: Path) -> str:
    """Return what the folder of a search is called in a database, and give it that name first.

    Raises:
        LinesError: it cannot be read or written.
    """
    path = folder / OWNER
    if not path.exists():
        write_output(path, uuid.uuid4().hex)
    try:
        return read_bytes(path, 64).decode("ascii")
    except (OSError, ValueError) as error:
        raise LinesError(
            f"{path}: cannot be read ({reason(error)}). Choose another --out."
        ) from error


# What Optuna raises of rows that hold something else than it wrote there.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, AssertionError)


@contextmanager
def working_with(url: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a database refuses into one sentence, and keep Optuna's own remarks back.

    Args:
        url: of the database.
        more: errors that are the database's too, where nothing but reading it is done.

    Raises:
        LinesError: the database cannot be reached, read or written.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of experimental and of older arguments
            yield
    except LinesError:
        raise
    except (
        SQLAlchemyError,
        optuna.exceptions.OptunaError,
        RuntimeError,
        ImportError,
        *more,
    ) as error:
        raise LinesError(
            f"--storage {without_password(url)}: the trials cannot be read or written there "
            f"({_said(error)}). Mend that, and run the same command again: what was measured "
            f"before is kept, and of a {TRIALS} in --out that is damaged nothing is lost when you "
            f"delete it."
        ) from error


def _said(error: BaseException) -> str:
    """Return the database's own words: SQLAlchemy adds statements, and a link for developers."""
    original: Any = getattr(error.__cause__ or error, "orig", None)
    return reason(original or error)


def without_password(url: str) -> str:
    """Return a database's URL as it may be shown."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        # Of what is no URL nothing is shown that could hold a password.
        return url.rpartition("@")[2].partition("?")[0] if "@" in url else url.partition(":")[0]


def open_storage(url: str) -> Any:
    """Return Optuna's storage at a URL; what is not there is made.

    Raises:
        LinesError: there is none, and none can be made.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError

    with working_with(url):
        try:
            return optuna.storages.get_storage(url)
        except (ArgumentError, ValueError) as error:
            raise LinesError(
                f"--storage {without_password(url)}: found no database's URL ({_said(error)}), "
                f"wanted one such as sqlite:///trials.db or postgresql://user@host/name."
            ) from error
