"""LiNeS for mergekit: scale a merge's task vector block by block, by depth.

The package adds the merge methods ``lines`` and ``lines_postprocess`` to the
stock ``mergekit-yaml`` and ``mergekit-multi``. Importing it imports neither torch
nor mergekit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_lines.plugin import register as register

__version__ = "0.1.0"
__all__ = ["__version__", "register"]


def __getattr__(name: str) -> object:
    if name == "register":
        from mergekit_lines.plugin import register

        return register
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
