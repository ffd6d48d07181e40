"""Names that are asked for before mergekit is imported."""

from __future__ import annotations

METHODS = ("lines", "lines_postprocess")

REMEDY = (
    "call `mergekit_lines.register()` before `from mergekit.merge import run_merge` "
    "(stock commands: see that TORCH_DEVICE_BACKEND_AUTOLOAD and MERGEKIT_LINES_AUTOLOAD "
    "are not 0)"
)
