"""LiNeS for mergekit: scale a merge's task vector block by block, by depth.

The package adds the merge methods ``lines`` and ``lines_postprocess`` to the
stock ``mergekit-yaml`` and ``mergekit-multi``. Importing it imports neither torch
nor mergekit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_lines._version import __version__
    from mergekit_lines.api import merge
    from mergekit_lines.errors import LinesError
    from mergekit_lines.lines.depth import BlockDepth, block_depths
    from mergekit_lines.lines.schedule import Schedule
    from mergekit_lines.live.model import LiveModel
    from mergekit_lines.merges.edits import edit_state_dict, scale_task_vector
    from mergekit_lines.plugin import register
    from mergekit_lines.search.greedy import greedy
    from mergekit_lines.search.learn import learn
    from mergekit_lines.search.soup import soup
    from mergekit_lines.search.sweep import sweep


__all__ = [
    "BlockDepth",
    "LinesError",
    "LiveModel",
    "Schedule",
    "__version__",
    "block_depths",
    "edit_state_dict",
    "greedy",
    "learn",
    "merge",
    "register",
    "scale_task_vector",
    "soup",
    "sweep",
]

_HOMES = {
    "BlockDepth": "lines.depth",
    "LinesError": "errors",
    "LiveModel": "live.model",
    "Schedule": "lines.schedule",
    "__version__": "_version",
    "block_depths": "lines.depth",
    "edit_state_dict": "merges.edits",
    "greedy": "search.greedy",
    "learn": "search.learn",
    "merge": "api",
    "register": "plugin",
    "scale_task_vector": "merges.edits",
    "soup": "search.soup",
    "sweep": "search.sweep",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
