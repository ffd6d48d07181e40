"""Figures of sweeps and soups, after the paper's figures 1, 4, 5, 14 and 15.

Beside LiNeS stand the merges that tell size from depth: unscaled, and uniformly scaled by LiNeS's
mean coefficient. Each is drawn on a page of its own: ``with page(path) as figure: …``.
"""

from __future__ import annotations

from mergekit_lines.figures.depths import depth_lines
from mergekit_lines.figures.fronts import Fronts, soup_front
from mergekit_lines.figures.heat import sweep_heat
from mergekit_lines.figures.parts import page
from mergekit_lines.figures.searches import search_panels
from mergekit_lines.figures.sweeps import Lines, sweep_panels

__all__ = [
    "Fronts",
    "Lines",
    "depth_lines",
    "page",
    "search_panels",
    "soup_front",
    "sweep_heat",
    "sweep_panels",
]
