"""Draw the package's rooms, read off its imports: who stands on whom, and the way of a merge.

    python examples/house.py [FILE.png]

A room is a folder of the package, or one of its lone files. An arrow leads from a room to one that
it imports from; an arrow that follows from others is left out. An import that leads back up ends
the drawing. Numbers are the stations of a merge, told in mergekit_lines/README.md.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from _layers import FLOOR, HEIGHT, WIDTH, Graph, ends, floors, ordered, paths, reduced, spread
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from PIL import Image

NAME = "mergekit_lines"
# No rooms: all may import them.
EVERYWHERE = {"__init__", "_autoload", "_version", "errors", "files"}

COMMANDS, WORK, MERGE, GROUND = "#e4572e", "#7b5ea7", "#2e86ab", "#5b8c5a"
ROOMS = {  # what each room is for, and whose it is
    "cli": ("the command, one file each", COMMANDS),
    "api": ("merge(recipe, out)", COMMANDS),
    "cluster": ("work shared by Ray", WORK),
    "search": ("sweeps and soups", WORK),
    "live": ("one model, weights replaced", WORK),
    "hub": ("push and pull", WORK),
    "inspection": ("what a recipe will do", WORK),
    "verify": ("a merge again, in float64", WORK),
    "plugin": ("LiNeS into mergekit", MERGE),
    "merges": ("a merge, start to end", MERGE),
    "report": ("what is said of a merge", MERGE),
    "plan": ("one task, one λ per tensor", MERGE),
    "engine": ("a tensor, source to place", MERGE),
    "recipe": ("the YAML and its words", MERGE),
    "methods": ("mergekit's method objects", MERGE),
    "checkpoint": ("weights, disk and Hub", GROUND),
    "kernels": ("pure tensor functions", GROUND),
    "lines": ("LiNeS itself: depth to λ", GROUND),
    "host": ("mergekit and the process", GROUND),
    "evaluate": ("what is measured", GROUND),
    "figures": ("pictures from arrays", GROUND),
    "console": ("what is printed", GROUND),
}
GROUPS = {
    "what you call": COMMANDS,
    "what works around merges": WORK,
    "the merge": MERGE,
    "the ground": GROUND,
}
WAY = [  # rooms in the order in which a merge comes to them
    *("plugin", "merges", "recipe", "plan", "lines", "engine", "methods", "kernels", "checkpoint"),
    "report",
]

COLOURS = 48  # of the file

Point = tuple[float, float]


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names under the package that a module imports, at its top or inside."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith(f"{NAME}."))


def read() -> Graph:
    """Return each room of the package with the rooms that it imports from."""
    spec = importlib.util.find_spec(NAME)
    if spec is None or spec.origin is None:
        raise SystemExit(f"house: {NAME} is not installed here")
    package = Path(spec.origin).parent
    graph: Graph = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).with_suffix("").parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph.setdefault(room, set()).update(imported(tree))
    rooms = graph.keys() - EVERYWHERE
    if strangers := sorted(rooms - ROOMS.keys()):
        raise SystemExit(f"house: say in ROOMS what these are for: {', '.join(strangers)}")
    return {room: (graph[room] & rooms) - {room} for room in sorted(rooms)}


def curve(points: list[Point]) -> Curve:
    """Return an arrow's line: down out of a room, straight past others, down into a room."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    last = len(points) - 2
    for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        start, stop = y0, y1
        if number:  # past the rooms of a floor
            start -= HEIGHT / 2
            vertices.append((x0, start))
            codes.append(Curve.LINETO)
        if number < last:
            stop += HEIGHT / 2
        middle = (start + stop) / 2
        vertices += [(x0, middle), (x1, middle), (x1, stop)]
        codes += [Curve.CURVE4] * 3
    return Curve(vertices, codes)


def draw_room(axes: Axes, name: str, x: float, y: float) -> None:
    """Draw one room with its name, its purpose and its number on a merge's way."""
    purpose, colour = ROOMS[name]
    corner = x - WIDTH / 2, y - HEIGHT / 2
    style = "round,pad=0,rounding_size=0.12"
    box = FancyBboxPatch(corner, WIDTH, HEIGHT, style, fc="white", ec=colour, lw=1.6, zorder=2)
    axes.add_patch(box)
    words = {"ha": "center", "va": "center", "zorder": 3}
    axes.text(x, y + 0.12, name, fontsize=12, fontweight="bold", color=colour, **words)
    axes.text(x, y - 0.14, purpose, fontsize=8.5, color="#444444", **words)
    if name in WAY:
        place = corner[0], corner[1] + HEIGHT
        axes.plot(*place, "o", markersize=17, color=colour, zorder=4)
        words = {"ha": "center", "va": "center_baseline", "zorder": 5, "color": "white"}
        axes.text(*place, str(WAY.index(name) + 1), fontsize=9.5, fontweight="bold", **words)


def draw(file: Path, graph: Graph) -> None:
    """Write the picture to ``file``."""
    graph = reduced(graph)
    floor = floors(graph)
    arrows = paths(graph, floor)
    rows = ordered(floor, arrows)
    x = spread(rows, arrows)
    figure, axes = plt.subplots(figsize=(10, 10), layout="constrained")
    for arrow, (start, stop) in zip(arrows, ends(arrows, x), strict=True):
        points = [(x[n], (floor[n] if isinstance(n, str) else n[2]) * FLOOR) for n in arrow]
        points[0] = points[0][0] + start, points[0][1] - HEIGHT / 2
        points[-1] = points[-1][0] + stop, points[-1][1] + HEIGHT / 2
        look = {"arrowstyle": "-|>,head_length=5,head_width=2.5", "color": "#9aa5b1", "lw": 1.2}
        axes.add_patch(FancyArrowPatch(path=curve(points), shrinkA=0, shrinkB=1, zorder=1, **look))
    for room in graph:
        draw_room(axes, room, x[room], floor[room] * FLOOR)
    for number, (group, colour) in enumerate(GROUPS.items()):
        place = (0.0, 1 - 0.025 * number)
        axes.text(*place, group, color=colour, fontsize=11, va="top", transform=axes.transAxes)
    axes.set_xlim(min(x.values()) - WIDTH * 0.6, max(x.values()) + WIDTH * 0.6)
    axes.set_ylim(-HEIGHT, (len(rows) - 1) * FLOOR + HEIGHT)
    axes.axis("off")
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=130)
    plt.close(figure)
    # So few colours take a quarter of the bytes.
    image = Image.open(drawing).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(file, "PNG", optimize=True)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "house.png"
    draw(target, read())
    print(f"drawn: {target}")
