"""Draw the README's picture: the coefficient of every block in four settings of the paper.

python examples/picture.py [FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from mergekit_lines.lines.schedule import Schedule

BLOCKS = 12
# Label, colour, schedule. alpha and beta from sections 5.2 and 5.4 and Table 8 of the paper.
SETTINGS = [
    ("rewarded soup: alpha 1, beta 1", "tab:red", Schedule(1.0, 1.0)),
    ("TIES, 8 tasks: alpha 0.21, beta 1.4", "tab:orange", Schedule(0.21, 1.4)),
    ("one model: gamma 0.3", "tab:blue", Schedule(0.3, 0.7)),
    ("task arithmetic, 8 tasks: alpha 0.125, beta 0.3", "tab:green", Schedule(0.125, 0.3)),
]


def draw(file: Path) -> None:
    """Write the picture to ``file``."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    blocks = range(1, BLOCKS + 1)
    for label, colour, schedule in SETTINGS:
        values = [schedule.coefficient(block - 1, BLOCKS) for block in blocks]
        axes.plot(blocks, values, "o-", color=colour, label=label, markersize=4)
        axes.plot(0, schedule.alpha, "s", color=colour, markersize=6, fillstyle="none")
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.text(BLOCKS + 0.3, 1.02, "plain", va="bottom", color="grey", fontsize=9)
    axes.set_xticks([0, *blocks], ["outside", *map(str, blocks)])
    axes.set_xlim(-0.7, BLOCKS + 1.3)
    axes.set_ylim(0, 2.1)
    axes.set_xlabel("residual block (shallow to deep)")
    axes.set_ylabel("coefficient of the task vector")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "coefficients.png"
    draw(target)
    print(f"drawn: {target}")
