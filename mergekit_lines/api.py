"""The Python API: task vectors, state dicts and recipes, with the words of a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.plugin import register
from mergekit_lines.recipe.reading import merge_options, parsed, read_recipe


def merge(recipe: str | os.PathLike[str] | Mapping[str, Any], out: Any, **options: Any) -> Path:
    """Merge a recipe of any mergekit method, as ``mergekit-yaml RECIPE OUT`` does.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping.
        out: folder to make.
        **options: fields of mergekit's ``MergeOptions``, the flags of ``mergekit-yaml``:
            ``device="cuda"``, ``out_shard_size=…``, ``random_seed=…``, ``quiet=True``, …

    Returns:
        The folder.

    Raises:
        LinesError: the recipe, a model or an option is at fault; OUT was not made.
    """
    register()
    from mergekit import merge as mergekit_merge

    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise LinesError(f"out: found {out!r}, wanted the path of a folder to make.")
    text, document = read_recipe(recipe)
    flags = merge_options(options)
    _, config = parsed(document)
    mergekit_merge.run_merge(config, os.fspath(out), options=flags, config_source=text)
    return Path(out)
