"""Names that are asked for before mergekit is imported."""

from __future__ import annotations

LINES = ("lines", "lines_postprocess")
# Merges of this package that a recipe names alone, or as the `wrap` of `lines`.
OWN = ("consensus_ta", "consensus_ties", "cart", "tsv_m", "iso_c", "iso_cts")
METHODS = (*LINES, *OWN)
# Methods of mergekit that have a kernel of ours, by which `mergekit-lines merge` merges them.
OF_MERGEKIT = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
)
ALONE = (*OWN, *OF_MERGEKIT)  # merges of which nothing is scaled by depth
MERGED = (*LINES, *ALONE)

REMEDY = (
    "call `mergekit_lines.register()` before `from mergekit.merge import run_merge` "
    "(stock commands: see that TORCH_DEVICE_BACKEND_AUTOLOAD and MERGEKIT_LINES_AUTOLOAD "
    "are not 0)"
)
