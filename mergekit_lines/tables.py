"""An inspection as text: tables that are whole in a pipe and folded on a narrow terminal."""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mergekit_lines.findings import Coefficient, Container, Inspection, Memory, Outside, Totals

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
WIDE = 10_000  # columns of a pipe: nothing is folded or cut there


def show(inspections: Sequence[Inspection], title: str) -> None:
    """Print every document to stdout."""
    piped = not sys.stdout.isatty()
    console = Console(
        width=WIDE if piped else None,
        color_system=None if piped or os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )
    for told in inspections:
        name = f" · {told.name}" if told.name else ""
        _line(console, f"{title}{name}", "bold")
        for line in _facts(told):
            _line(console, line)
        for container in told.containers:
            _print(console, _blocks(container))
        if told.outside:
            _print(console, _outside(told.outside))
        if told.totals:
            _print(console, _inputs(told))
            for line in _totals(told.totals):
                _line(console, line)
        for note in told.notes:
            _line(console, f"note: {note}")
        _line(console, "")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), overflow="fold")


def _print(console: Console, table: Table) -> None:
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():  # rich pads each line to the table's width
        console.file.write(f"{line.rstrip()}\n")


def _facts(told: Inspection) -> Iterable[str]:
    wraps = f" around {', '.join(told.wraps)}" if told.wraps else ""
    yield f"merge_method {told.merge_method}{wraps}, seed {told.seed}"
    if told.alpha_source:
        value = "α" if told.alpha is None else f"α = {told.alpha:.6g}"
        yield f"{value}: {told.alpha_source}"
    if told.totals and not told.containers:
        yield (
            "no residual blocks found in the tensor names: every tensor gets the coefficient for "
            "outside, and beta has no effect"
        )


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for header in others:
        table.add_column(header, justify="right", overflow="fold")
    return table


def _blocks(container: Container) -> Table:
    table = _table(f"{container.name}", "block", "λ", "tensors", "parameters", "bytes")
    for block in container.blocks:
        table.add_row(
            "",
            str(block.index),
            _lambda(block.coefficients),
            str(block.tensors),
            f"{block.parameters:,}",
            f"{block.bytes:,}",
        )
    _sum(table, container.blocks, "all", sum(block.tensors for block in container.blocks))
    return table


def _outside(outside: Sequence[Outside]) -> Table:
    """Return the tensors outside, those alike but for a number in one row."""
    rows: dict[tuple[str, Coefficient | None], list[Outside]] = defaultdict(list)
    for tensor in outside:
        rows[_NUMBER.sub("*", tensor.name), tensor.coefficient].append(tensor)
    table = _table("outside the blocks", "", "λ", "tensors", "parameters", "bytes")
    for (name, coefficient), tensors in rows.items():
        table.add_row(
            name if len(tensors) > 1 else tensors[0].name,
            "",
            _lambda((coefficient,) if coefficient else ()),
            str(len(tensors)),
            f"{sum(tensor.parameters for tensor in tensors):,}",
            f"{sum(tensor.bytes for tensor in tensors):,}",
        )
    _sum(table, outside, "", len(outside))
    return table


def _sum(table: Table, parts: Sequence[object], name: str, tensors: int) -> None:
    table.add_section()
    parameters = sum(getattr(part, "parameters", 0) for part in parts)
    size = sum(getattr(part, "bytes", 0) for part in parts)
    table.add_row("", name, "", str(tensors), f"{parameters:,}", f"{size:,}")


def _lambda(coefficients: Sequence[Coefficient]) -> str:
    return ", ".join(map(str, coefficients)) or "?"


def _inputs(told: Inspection) -> Table:
    table = _table("model", "checkpoint", "to download", "for Eq. 2", "for the merge", "read")
    for model in told.inputs:
        table.add_row(
            model.model,
            f"{model.checkpoint:,}",
            f"{model.download:,}",
            f"{model.calibration:,}",
            f"{model.merge:,}",
            f"{model.read:,}",
        )
    return table


def _totals(totals: Totals) -> Iterable[str]:
    yield f"{totals.tensors:,} tensors, {totals.parameters:,} parameters"
    yield f"reads    {_size(totals.read)}"
    if totals.download:
        yield f"download {_size(totals.download)}, before"
    yield f"writes   {_size(totals.output)}"
    more = totals.disk - totals.output
    copies = f", of which {_size(more)} for adapters merged into their bases" if more else ""
    yield f"disk     {_size(totals.disk)}{copies}"
    if totals.memory:
        yield f"memory   {_memory(totals.memory)}"


def _memory(memory: Memory) -> str:
    beside = "" if memory.device == "cpu" else f" on {memory.device}"
    parts = (
        f"{_short(memory.buffered)} of output until it is written, "
        f"{_short(memory.temporaries)} for one tensor's merge{beside}"
    )
    if memory.total is None or memory.process is None:
        return f"{parts}, and what Python and its packages take"
    if memory.loaded > memory.total - memory.process - 1 and memory.loaded:
        parts = f"{_short(memory.loaded)} for merging an adapter into its base"
    return (
        f"about {_short(memory.total)}: {_short(memory.process)} for Python and packages, {parts}"
    )


def _size(number: int) -> str:
    return f"{_short(number)} ({number:,} bytes)"


def _short(number: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"
