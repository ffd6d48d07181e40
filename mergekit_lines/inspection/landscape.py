"""A deep look as a picture: what the models changed, over the depth of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.figures.drawing import COLOURS, INK, MARKERS, new_figure, plain_axes, save
from mergekit_lines.inspection.deep import Depth, Look
from mergekit_lines.inspection.findings import Inspection

Drawing = Callable[[Any, Look], None]
Value = Callable[[Depth], float | None]
LABELLED = 6  # models that the legend names; of more only the range is drawn
FAR = 20  # between the least and the most change
GAP = 1  # blocks of room between two containers


def draw_looks(inspections: Sequence[Inspection], where: str, path: Path) -> None:
    """Draw the looks of a recipe file's documents into one PNG file, beneath each other.

    Args:
        inspections: of all documents; those without a look are left out.
        where: opens an error.
        path: of the file.

    Raises:
        LinesError: matplotlib is not there, nothing was looked at, or the file cannot be made.
    """
    save(_figure(inspections, where), path)


def looks_as_png(inspections: Sequence[Inspection], where: str) -> bytes:
    """Return the same picture's bytes."""
    drawn = BytesIO()
    _figure(inspections, where).savefig(drawn, format="png")
    return drawn.getvalue()


def _figure(inspections: Sequence[Inspection], where: str) -> Any:
    looks = [(one.name, one.deep) for one in inspections if one.deep and one.deep.depths]
    panels = [(name, look, draw) for name, look in looks for draw in _panels(look)]
    if not panels:
        raise LinesError(f"{where}: there is nothing to draw: see the warnings and notes above.")
    figure = new_figure(where, 8.0, 0.4 + 2.3 * len(panels), dpi=150)
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a name with $ in it is no formula
        grid = figure.subplots(len(panels), squeeze=False)[:, 0]
        before: Look | None = None
        for axes, (name, look, draw) in zip(grid, panels, strict=True):
            draw(axes, look)
            _name_blocks(axes, look)
            if look is not before and name:
                axes.set_title(name, fontsize=11)
            before = look
    return figure


def _panels(look: Look) -> list[Drawing]:
    panels: list[Drawing] = [_changes]
    if len(look.models) > 1:
        panels.append(_agreement)
    panels.append(_ranks)
    if any(depth.coefficient is not None for depth in look.depths):
        panels.append(_coefficients)
    return panels


def _places(look: Look) -> list[tuple[Depth, float]]:
    """Return where each depth stands along x: what is outside first, then the containers."""
    rest = [depth for depth in look.depths if not depth.index]
    places = [(depth, 0.0) for depth in rest]
    start = 1.0 + GAP if rest else 1.0
    for _, depths in groupby((d for d in look.depths if d.index), key=lambda d: d.container):
        listed = list(depths)
        places += [(depth, start + number) for number, depth in enumerate(listed)]
        start += len(listed) + GAP
    return places


def _changes(axes: Any, look: Look) -> None:
    """‖τ‖/‖θ_0‖ of every model; on a logarithmic scale where they are far apart."""

    def of(number: int) -> Value:
        # Nothing has no place on a logarithmic axis.
        return lambda depth: 100 * depth.shares[number] or None

    _by_model(axes, look, of)
    shares = [share for depth in look.depths for share in depth.shares if share]
    if shares and max(shares) > FAR * min(shares):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.10g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
    else:
        _from_zero(axes)
    axes.set_ylabel("change\n(% of the base)")


def _ranks(axes: Any, look: Look) -> None:
    """Effective rank of every model's change."""

    def of(number: int) -> Value:
        def percent(depth: Depth) -> float | None:
            rank = depth.ranks[number]
            return None if rank is None else 100 * rank

        return percent

    _by_model(axes, look, of, named=False)
    _from_zero(axes)
    axes.set_ylabel("effective rank\n(% of the rows)")


def _from_zero(axes: Any) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high + 0.06 * (high - min(0.0, low)))


def _by_model(axes: Any, look: Look, of: Callable[[int], Value], *, named: bool = True) -> None:
    values = [of(number) for number in range(len(look.models))]
    if len(values) > LABELLED:
        for pick, marker, label in ((max, "^", "most"), (min, "v", "least")):
            shown = f"{label} of the models" if named else None
            _line(axes, look, partial(_extreme, values, pick), COLOURS[0], marker, shown)
    else:
        for number, (value, label) in enumerate(zip(values, look.labels, strict=True)):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            _line(axes, look, value, colour, marker, label if named else None)
    if named:
        axes.legend(frameon=False, fontsize=9, ncols=2)


def _extreme(values: Sequence[Value], pick: Callable[..., float], depth: Depth) -> float | None:
    told = [value for each in values if (value := each(depth)) is not None]
    return pick(told) if told else None


def _agreement(axes: Any, look: Look) -> None:
    """Mean cosine of the models' changes, and the share of entries that differ in sign."""

    def cosine(depth: Depth) -> float | None:
        told = [value for value in depth.cosines if value is not None]
        return sum(told) / len(told) if told else None

    pairs = "cosine of two models' changes" + (", mean" if len(look.models) > 2 else "")
    _line(axes, look, cosine, COLOURS[2], "o", pairs)
    _line(axes, look, lambda d: d.conflict, COLOURS[1], "s", "share of entries that differ in sign")
    low = min((c for depth in look.depths for c in depth.cosines if c is not None), default=0.0)
    axes.set_ylim(min(0.0, low) - 0.05, 1.05)
    axes.set_ylabel("agreement")
    axes.legend(frameon=False, fontsize=9, ncols=2)


def _coefficients(axes: Any, look: Look) -> None:
    _line(axes, look, lambda depth: depth.coefficient, INK, "o", None)
    _from_zero(axes)
    axes.set_ylabel("coefficient λ")


def _line(axes: Any, look: Look, value: Value, colour: str, marker: str, label: str | None) -> None:
    """Draw one value over depth, each container's line by itself."""
    shown = f" {label}" if label and label.startswith("_") else label
    for container, places in groupby(_places(look), key=lambda place: place[0].container):
        points = [(x, y) for depth, x in places if (y := value(depth)) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.3 if container else 0,
                label=shown,
            )
            shown = None  # once is enough for the legend


def _name_blocks(axes: Any, look: Look) -> None:
    """Write the blocks' numbers below, and the containers' names."""
    places = _places(look)
    ticks, texts = [], []
    for container, group in groupby(places, key=lambda place: place[0].container):
        listed = list(group)
        if not container:
            ticks.append(listed[0][1])
            texts.append("outside")
            continue
        count = len(listed)
        step = max(1, -(-count // 12))
        chosen = [*listed[: count - step // 2 - 1 : step], listed[-1]] if count > 1 else listed
        middle = (listed[0][1] + listed[-1][1]) / 2
        if listed[0][1] > places[0][1]:
            axes.axvline(listed[0][1] - 1, color="#999999", linewidth=0.8, linestyle=":")
        ticks += [x for _, x in chosen]
        texts += [str(depth.index) for depth, _ in chosen]
        axes.annotate(
            container,
            (middle, 0),
            (0, -18),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
        )
    axes.set_xticks(ticks, texts, fontsize=9)
    axes.set_xlim(places[0][1] - 0.6, places[-1][1] + 0.6)
    plain_axes(axes, "y")
