"""What the benchmark prints: medians of its rounds, and ratios of runs of the same round."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE = 132  # columns, where nobody tells how many there are
HEADS = ("wall, s", "CPU, s", "anonymous", "beyond\nimports", "mapped", "read", "written")
MODES = {
    "whole": "whole process",
    "alone": "merge alone",
    "beside": "beside a neighbour",
}


@dataclass
class Run:
    """One merge. Seconds and bytes; None is what this system or this run does not tell."""

    setting: str  # of models, their number and their dtype
    round: int
    method: str
    side: str  # mergekit or lines
    mode: str  # one of MODES
    wall: float
    cpu: float
    anonymous: int | None  # peak
    mapped: int | None  # peak
    read: int | None
    written: int | None
    durable: float | None = None  # wall with an fsync of every file of the output after it
    imports: int | None = None  # anonymous memory before the merge
    report: dict[str, Any] | None = None  # what lines_report.json says of the run

    @property
    def beyond(self) -> int | None:
        """The anonymous peak beyond what was there before the merge."""
        if self.anonymous is None or self.imports is None:
            return None
        return max(0, self.anonymous - self.imports)


def console() -> Console:
    """Return where to print; a pipe gets the tables whole."""
    return Console(width=None if sys.stdout.isatty() else PIPE, highlight=False, emoji=False)


def ratios(
    above: Sequence[Run], below: Sequence[Run], value: Callable[[Run], float | None]
) -> list[float]:
    """Return above/below for every round that has both."""
    lower = {run.round: value(run) for run in below}
    found = []
    for run in above:
        one, other = value(run), lower.get(run.round)
        if one is not None and other:
            found.append(one / other)
    return found


def seconds(values: Sequence[float]) -> str:
    """Return the median, and the least and the largest where there are several."""
    return _spread(values, lambda value: f"{value:.2f}")


def times(values: Sequence[float]) -> str:
    """Return the median of ratios, and the least and the largest where there are several."""
    return _spread(values, lambda value: f"{value:.2f}", "×")


def middle_of(values: Sequence[float]) -> str:
    """Return the median of ratios alone."""
    return f"{statistics.median(values):.2f}×" if values else "-"


def size(values: Sequence[int | None]) -> str:
    """Return the median of bytes."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = statistics.median(known)
    unit, by = ("GB", 1e9) if middle >= 1e9 else ("MB", 1e6)
    return f"{middle / by:.{2 if by == 1e9 else 1}f} {unit}"


def _spread(values: Sequence[float], shown: Callable[[float], str], unit: str = "") -> str:
    if not values:
        return "-"
    middle = shown(statistics.median(values)) + unit
    if len(values) == 1:
        return middle
    return f"{middle} ({shown(min(values))}–{shown(max(values))})"


def method_table(method: str, runs: Sequence[Run]) -> Table:
    """Return one method's table: both sides, and their ratios, in every mode that was run."""
    table = Table(title=method, title_justify="left", title_style="bold", box=box.SIMPLE)
    table.add_column("")
    for name in HEADS:
        table.add_column(name, justify="right", no_wrap=True)
    for mode, title in MODES.items():
        sides = {
            side: [run for run in runs if (run.method, run.mode, run.side) == (method, mode, side)]
            for side in ("mergekit", "lines")
        }
        if not any(sides.values()):
            continue
        table.add_row(title, style="italic")
        for side, found in sides.items():
            if found:
                table.add_row(*_row(f"  {side}", found, [run.wall for run in found]))
            durable = [run.durable for run in found if run.durable is not None]
            if side == "mergekit" and durable:
                table.add_row("  mergekit + fsync", seconds(durable))
        if all(sides.values()):
            above, below = sides["mergekit"], sides["lines"]
            table.add_row(
                "  mergekit / lines",
                times(ratios(above, below, lambda run: run.wall)),
                middle_of(ratios(above, below, lambda run: run.cpu)),
                middle_of(ratios(above, below, lambda run: run.anonymous)),
            )
            if any(run.durable is not None for run in above):
                found_ratios = ratios(above, below, lambda run: run.durable or run.wall)
                table.add_row("  both durable", times(found_ratios))
        table.add_section()
    return table


def _row(name: str, runs: Sequence[Run], walls: Sequence[float]) -> list[str]:
    return [
        name,
        seconds(walls),
        f"{statistics.median(run.cpu for run in runs):.2f}",
        size([run.anonymous for run in runs]),
        size([run.beyond for run in runs]),
        size([run.mapped for run in runs]),
        size([run.read for run in runs]),
        size([run.written for run in runs]),
    ]


def imports(runs: Sequence[Run]) -> str:
    """Return what a process holds when it has imported everything."""
    return size([run.imports for run in runs if run.imports is not None])


def reader_table(found: Sequence[dict[str, Any]], item: int) -> Table:
    """Return the table of the ways to read a checkpoint of ``item`` bytes an entry."""
    table = Table(title="readers", title_justify="left", title_style="bold", box=box.SIMPLE)
    table.add_column("")
    for name in ("wall, s", "GB/s", "CPU, s", "beyond\nimports", "mapped"):
        table.add_column(name, justify="right", no_wrap=True)
    for reader in dict.fromkeys(read["reader"] for read in found):
        mine = [read for read in found if read["reader"] == reader]
        walls = [read["wall"] for read in mine]
        beyond = [
            None if read["anonymous"] is None else max(0, read["anonymous"] - read["imports"])
            for read in mine
        ]
        table.add_row(
            reader,
            seconds(walls),
            f"{mine[0]['entries'] * item / statistics.median(walls) / 1e9:.2f}",
            f"{statistics.median(read['cpu'] for read in mine):.2f}",
            size(beyond),
            size([read["mapped"] for read in mine]),
        )
    return table


def say(console: Console, text: str) -> None:
    console.print(Text(text), overflow="fold")


def show_floor(
    console: Console, runs: Sequence[Run], copied: Sequence[dict[str, Any]], methods: Sequence[str]
) -> None:
    """Print how long plain copying took, and each merge alone as a multiple of it."""
    fastest = _fastest(copied)
    copies = list(fastest.values())
    fsync = statistics.median(one["fsync"] for one in copies)
    threads = " or ".join(str(number) for number in sorted({one["threads"] for one in copied}))
    say(
        console,
        f"floor: plain copying of the same bytes ({size([copies[0]['bytes_read']])} read, "
        f"{size([copies[0]['bytes_written']])} written, fsync), {threads} threads, the "
        f"faster: {seconds([one['wall'] for one in copies])} s, {fsync:.2f} of it "
        f"in fsync",
    )
    for method in methods:
        alone = [run for run in runs if (run.method, run.side) == (method, "lines")]
        found = [run.wall / fastest[run.round]["wall"] for run in alone if run.mode == "alone"]
        if found:
            say(console, f"lines/{method} alone: {times(found)} the floor")


def _fastest(copied: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return each round's faster copying, by the round."""
    return {
        number: min(
            (one for one in copied if one["round"] == number),
            key=lambda one: float(one["wall"]),
        )
        for number in sorted({one["round"] for one in copied})
    }


def summary(runs: Sequence[Run], copied: Sequence[dict[str, Any]]) -> Table:
    """Return one row for each method and setting of the merges alone: ratios, floor, bound.

    A merge's bound is the larger of the floor and of its CPU seconds over its threads.

    Args:
        runs: of every setting.
        copied: the floors of every setting.
    """
    table = Table(title="merges alone", title_justify="left", title_style="bold", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("inputs", no_wrap=True)
    heads = ("mergekit / lines\nCPU", "\nwall", "both\ndurable", "lines\nwall, s", "floor, s")
    for name in (*heads, "lines /\nfloor", "lines /\nbound"):
        table.add_column(name, justify="right", no_wrap=True)
    alone = [run for run in runs if run.mode == "alone"]
    for setting, method in dict.fromkeys((run.setting, run.method) for run in alone):
        mine = [run for run in alone if (run.setting, run.method) == (setting, method)]
        above = [run for run in mine if run.side == "mergekit"]
        below = [run for run in mine if run.side == "lines"]
        floors = _fastest([one for one in copied if one["setting"] == setting])
        walls = {number: float(one["wall"]) for number, one in floors.items()}
        if below:
            table.add_row(
                method,
                setting,
                middle_of(ratios(above, below, lambda run: run.cpu)),
                middle_of(ratios(above, below, lambda run: run.wall)),
                middle_of(ratios(above, below, lambda run: run.durable or run.wall)),
                f"{statistics.median(run.wall for run in below):.2f}",
                f"{statistics.median(walls.values()):.2f}",
                middle_of([run.wall / walls[run.round] for run in below]),
                middle_of([run.wall / _bound(run, walls[run.round]) for run in below]),
            )
    return table


def _bound(run: Run, copying: float) -> float:
    threads = (run.report or {}).get("threads", 1)
    return max(copying, run.cpu / threads)


def show_beside(console: Console, runs: Sequence[Run], own: Sequence[str]) -> None:
    """Print what merges that mergekit does not have take of the time of our TIES."""
    alone = [run for run in runs if (run.side, run.mode) == ("lines", "alone")]
    ties = [run for run in alone if run.method == "ties"]
    for method in own:
        mine = [run for run in alone if run.method == method]
        if found := ratios(mine, ties, lambda run: run.wall):
            say(console, f"lines/{method} alone: {times(found)} the time of lines/ties")


def show_neighbour(console: Console, runs: Sequence[Run], methods: Sequence[str]) -> None:
    """Print each merge beside a neighbour as a multiple of the same merge without one."""
    for method in methods:
        for side in ("mergekit", "lines"):
            mine = [run for run in runs if (run.method, run.side) == (method, side)]
            busy = [run for run in mine if run.mode == "beside"]
            alone = [run for run in mine if run.mode == "alone"]
            found = ratios(busy, alone, lambda run: run.wall)
            if found:
                say(
                    console,
                    f"{side}/{method} with one core taken: {times(found)} its time alone",
                )
