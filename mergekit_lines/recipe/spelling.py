"""Models that are not where a recipe says: what mergekit makes of its spelling."""

from __future__ import annotations

import os
from pathlib import Path

from mergekit.common import ModelReference


def spelling_problem(model: ModelReference) -> str | None:
    """Return what is wrong with the way in which a recipe spells a model's path, or None.

    Paths are no text of a shell, and `+` and `@` have a meaning in them: an adapter follows, or
    a revision.
    """
    for part in (model.model, model.lora):
        if part is None or Path(part.path).exists():
            continue
        if part.path.startswith("~") or "$" in part.path:
            meant = os.path.expandvars(Path(part.path).expanduser())
            return (
                f"model {part.path}: there is no such folder: `~` and `$NAME` are a shell's, and "
                f"stay as they are in a recipe. Write {meant}."
            )
        revision = part.revision or ""
        if revision and Path(f"{part.path}@{revision}").is_dir():
            return (
                f"model {part.path}@{revision}: mergekit reads what follows `@` as a revision on "
                f"the Hub, and not as the folder of this name. Rename the folder, or link to it."
            )
    if model.lora and not Path(model.lora.path).exists() and Path(str(model)).is_dir():
        return (
            f"model {model}: mergekit reads what follows `+` as an adapter, and not as the folder "
            f"of this name. Rename the folder, or link to it."
        )
    return None
