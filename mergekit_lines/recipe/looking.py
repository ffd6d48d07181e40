"""A first look at the recipe of a stock command, before mergekit's own parsers read it.

They follow aliases of aliases without end, as pydantic writes out every value that it refuses,
and end in a traceback where a text is nested deeper than Python's stack.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from mergekit_lines.checkpoint.bounded import RECIPE_BYTES, parse_documents, read_text, scalars
from mergekit_lines.errors import LinesError, TextError, reason
from mergekit_lines.host.names import METHODS


def look_at(path: Path) -> None:
    """Check the text of a recipe file; one of no method of ours is left to mergekit.

    So is what is no regular file: a pipe can be read once.

    Raises:
        LinesError: it is larger, deeper or more entangled than any recipe is, or no YAML.
    """
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(RECIPE_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return
    pairs = pairwise(scalars(start))
    if not any(key == "merge_method" and value in METHODS for key, value in pairs):
        return
    try:
        parse_documents(read_text(path, RECIPE_BYTES))
    except (OSError, TextError) as error:
        raise LinesError(f"{path}: {reason(error)}. Write it plainly.") from None
