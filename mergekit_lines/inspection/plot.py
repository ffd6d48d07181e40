"""A picture of λ over depth: one line per container, what lies outside marked at the side."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.figures.drawing import COLOURS, INK, MARKERS, new_figure, plain_axes, save
from mergekit_lines.inspection.findings import Coefficient, Inspection

SPAN = 0.2  # of the y axis at least: a constant λ has no range of its own
MARKS = 4  # coefficients outside that are told one by one in the legend
TITLE = 72  # letters of a line


Blocks = Mapping[int, Sequence[Coefficient]]  # by a block's index, 1-based


@dataclass(frozen=True)
class Panel:
    """The coefficients of one document, to be drawn.

    Attributes:
        title: written above.
        containers: the blocks of each, by its name.
        outside: of the tensors outside the blocks.
    """

    title: str
    containers: Mapping[str, Blocks]
    outside: Sequence[Coefficient]

    @classmethod
    def of(cls, inspection: Inspection) -> Panel:
        """Return the panel of an inspection."""
        name = f"{inspection.name}: " if inspection.name else ""
        return cls(
            name + _title(inspection.merge_method, inspection.wraps),
            {
                container.name: {block.index: block.coefficients for block in container.blocks}
                for container in inspection.containers
            },
            [tensor.coefficient for tensor in inspection.outside if tensor.coefficient],
        )

    @classmethod
    def reported(cls, report: Mapping[str, Any]) -> Panel:
        """Return the panel of a merge's report."""
        return cls(
            _title(report["merge_method"], [wrap for wrap in report["wrap"] if wrap]),
            {
                container["name"]: {
                    index: list(map(Coefficient, value if isinstance(value, list) else [value]))
                    for index, value in enumerate(container["coefficients"], 1)
                }
                for container in report["containers"]
            },
            list(map(Coefficient, report["outside"].values())),
        )

    @property
    def inside(self) -> set[Coefficient]:
        """The distinct coefficients of all blocks."""
        blocks = [block for container in self.containers.values() for block in container.values()]
        return {value for block in blocks for value in block}


def _title(method: str, wraps: Sequence[str]) -> str:
    return method + (f" around {', '.join(wraps)}" if wraps else "")


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw the coefficients of every document into one PNG file, a panel for each.

    Raises:
        LinesError: matplotlib is not there, nothing is known to draw, or the file cannot be made.
    """
    drawable = [panel for panel in panels if panel.inside or panel.outside]
    if not drawable:
        raise LinesError(
            f"--plot {path}: there are no coefficients to draw: see the problems of the recipe."
        )
    figure = new_figure(f"--plot {path}", 7.2, 4.2 * len(drawable), dpi=150)
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a name with $ in it is no formula
        grid = figure.subplots(len(drawable), squeeze=False)[:, 0]
        for axes, panel in zip(grid, drawable, strict=True):
            _panel(axes, panel)
    save(figure, path)


def _panel(axes: Any, panel: Panel) -> None:
    """Draw one document: x is the block's index, y its λ, or λ − α where α is not known yet."""
    outside = Counter(panel.outside)
    relative = any(value.plus_alpha for value in panel.inside or outside)
    drawn: Counter[tuple[Any, ...]] = Counter()
    for number, (name, blocks) in enumerate(panel.containers.items()):
        _draw_container(axes, number, name, blocks, drawn, relative=relative)
    longest = max(map(len, panel.containers.values()), default=0)
    side = 1 - max(1.0, 0.09 * longest)  # room for the word below it
    marked = _mark_outside(axes, outside, side, relative=relative)
    left, right = side if marked else 1, longest if longest else side
    axes.set_xlim(left - 0.05 * longest - 0.4, right + 0.02 * longest + 0.4)
    step = next(s * 10**e for e in range(9) for s in (1, 2, 4, 5, 8) if longest <= 12 * s * 10**e)
    ticks = sorted({1, *range(step, longest - step // 2, step), longest}) if longest else []
    low, high = axes.get_ylim()
    if high - low < SPAN:
        axes.set_ylim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
    word = ["outside"] if marked else []
    axes.set_xticks([side] * marked + ticks, [*word, *map(str, ticks)])
    if marked and longest:
        axes.axvline((side + 1) / 2, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("residual block, first to last" if longest else "no residual blocks were found")
    axes.set_ylabel("λ − α   (α: once the weights are read)" if relative else "coefficient λ")
    axes.set_title(textwrap.fill(panel.title, TITLE), fontsize=11)
    plain_axes(axes, "y")
    if all(map(_is_monotonic, panel.containers.values())):
        axes.legend(frameon=False, fontsize=9)
        return
    # A curve of any shape leaves no corner free: the legend has a strip of its own.
    entries = len(axes.get_legend_handles_labels()[1])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (0.04 + 0.065 * entries) * (high - low))
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _is_monotonic(blocks: Blocks) -> bool:
    values = [coefficient.value for block in blocks.values() for coefficient in block]
    return values in (sorted(values), sorted(values, reverse=True))


def _draw_container(
    axes: Any,
    number: int,
    name: str,
    blocks: Blocks,
    drawn: Counter[tuple[Any, ...]],
    *,
    relative: bool,
) -> None:
    """Draw a container's line; ``drawn`` counts those that lie on each other."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    values = [(index, value) for index, block in blocks.items() for value in block]
    points = [(index, value.value) for index, value in values if value.plus_alpha == relative]
    # matplotlib leaves names that begin with an underscore out of the legend.
    name = f" {name}" if name.startswith("_") else name
    alone = len(values) == len(blocks)  # several per block have no one order
    beneath = drawn[tuple(points)]  # towers of one length: the one below shows around
    drawn[tuple(points)] += 1
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=4.5 + 2.5 * beneath,
            linewidth=1.4 + 2.5 * beneath if alone else 0,
            label=name if alone else f"{name} (several λ in a block)",
            zorder=3 - number * 0.1,
        )
    if not values:
        _only_name(axes, f"{name}: λ once the weights are read")
    if elsewhere := {value for _, value in values if value.plus_alpha != relative}:
        _only_name(axes, f"{name}: {_range(elsewhere)}{' too' if points else ''}")


def _mark_outside(axes: Any, outside: Counter[Coefficient], side: float, *, relative: bool) -> bool:
    """Mark each coefficient outside at the left, with the number of tensors that have it."""
    shown = sorted(value for value in outside if value.plus_alpha == relative)
    elsewhere = sorted(value for value in outside if value.plus_alpha != relative)
    parts = [[value] for value in shown] if len(shown) <= MARKS else [shown]
    for values in parts:
        tensors = _tensors(sum(outside[value] for value in values))
        alone = len(outside) == 1
        axes.plot(
            [side] * len(values),
            [value.value for value in values],
            "X",
            color=INK,
            markersize=8,
            zorder=4,
            label=f"outside: {tensors}" if alone else f"outside: {_range(values)} ({tensors})",
        )
    for value in elsewhere:
        _only_name(axes, f"outside: {_range([value])} ({_tensors(outside[value])})")
    return bool(shown)


def _only_name(axes: Any, text: str) -> None:
    """Tell in the legend of coefficients that have no place on this axis."""
    axes.plot([], [], " ", label=text)


def _range(values: Collection[Coefficient]) -> str:
    low, high = min(values), max(values)
    return f"λ = {low}" if low == high else f"λ = {low} to {high}"


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count > 1 else ''}"
