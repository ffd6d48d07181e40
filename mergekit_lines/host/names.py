"""Names that are asked for before mergekit is imported."""

from __future__ import annotations

LINES = ("lines", "lines_postprocess")
# Merges of this package that a recipe names alone, or as the `wrap` of `lines`.
OWN = ("consensus_ta", "consensus_ties", "cart", "tsv_m", "iso_c", "iso_cts")
METHODS = (*LINES, *OWN)

REMEDY = (
    "call `mergekit_lines.register()` before `from mergekit.merge import run_merge` "
    "(stock commands: see that TORCH_DEVICE_BACKEND_AUTOLOAD and MERGEKIT_LINES_AUTOLOAD "
    "are not 0)"
)
