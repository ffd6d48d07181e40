"""An inspection as text: tables that are whole in a pipe and folded on a narrow terminal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.table import Table

from mergekit_lines.console import new_table, open_console, print_line, print_table, short
from mergekit_lines.inspection.findings import (
    Block,
    Coefficient,
    Container,
    Inspection,
    Outside,
    Totals,
)
from mergekit_lines.inspection.look_tables import look_lines, look_tables
from mergekit_lines.lines.outside import NO_BLOCKS
from mergekit_lines.plan.memory import Memory

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def show(inspections: Sequence[Inspection], title: str) -> None:
    """Print every document to stdout."""
    console = open_console()
    for inspection in inspections:
        name = f" · {inspection.name}" if inspection.name else ""
        print_line(console, f"{title}{name}", "bold")
        for line in _facts(inspection):
            print_line(console, line)
        for container in inspection.containers:
            print_table(console, _blocks(container))
        if inspection.outside:
            place = "all tensors" if _alone(inspection) else "outside the blocks"
            print_table(console, _outside(place, inspection.outside))
        if inspection.totals:
            print_table(console, _inputs(inspection))
            for line in _totals(inspection.totals):
                print_line(console, line)
        if inspection.deep:
            for table in look_tables(inspection.deep):
                print_table(console, table)
            for line in look_lines(inspection.deep):
                print_line(console, line)
        for trouble in inspection.troubles:
            print_line(console, f"warning: {trouble}", "bold")
        for note in inspection.notes:
            print_line(console, f"note: {note}")
        print_line(console, "")


def _alone(inspection: Inspection) -> bool:
    """Tell a merge of which nothing is scaled by depth."""
    return inspection.wraps == (inspection.merge_method,)


def _facts(inspection: Inspection) -> Iterable[str]:
    if _alone(inspection):
        yield f"merge_method {inspection.merge_method}, not scaled by depth"
        return
    wraps = f" around {', '.join(inspection.wraps)}" if inspection.wraps else ""
    yield f"merge_method {inspection.merge_method}{wraps}, seed {inspection.seed}"
    if inspection.alpha_source:
        value = "α" if inspection.alpha is None else f"α = {inspection.alpha:.6g}"
        yield f"{value}: {inspection.alpha_source}"
    if inspection.totals and not inspection.containers:
        yield NO_BLOCKS


def _blocks(container: Container) -> Table:
    table = new_table(container.name, "block", "λ", "tensors", "parameters", "bytes")
    for block in container.blocks:
        _add(table, "", str(block.index), _lambda(block.coefficients), [block], block.tensors)
    table.add_section()
    count = sum(block.tensors for block in container.blocks)
    _add(table, "", "all", "", container.blocks, count)
    return table


def _outside(place: str, outside: Sequence[Outside]) -> Table:
    """Return tensors in no block, those alike but for a number in one row."""
    rows: dict[tuple[str, Coefficient | None], list[Outside]] = defaultdict(list)
    for tensor in outside:
        rows[_NUMBER.sub("*", tensor.name), tensor.coefficient].append(tensor)
    table = new_table(place, "", "λ", "tensors", "parameters", "bytes")
    for (pattern, value), tensors in rows.items():
        name = pattern if len(tensors) > 1 else tensors[0].name
        _add(table, name, "", _lambda((value,) if value else ()), tensors, len(tensors))
    table.add_section()
    _add(table, "", "", "", outside, len(outside))
    return table


def _add(
    table: Table, name: str, block: str, value: str, parts: Sequence[Block | Outside], count: int
) -> None:
    """Add a row of the sums of its parts."""
    parameters, size = sum(part.parameters for part in parts), sum(part.bytes for part in parts)
    table.add_row(name, block, value, str(count), f"{parameters:,}", f"{size:,}")


def _lambda(coefficients: Sequence[Coefficient]) -> str:
    return ", ".join(map(str, coefficients)) or "?"


def _inputs(inspection: Inspection) -> Table:
    cuts = any(model.cuts for model in inspection.inputs)
    more = ("for the cuts",) if cuts else ()
    table = new_table("model", "checkpoint", "to download", "for λ", *more, "for the merge", "read")
    for model in inspection.inputs:
        before = (model.calibration, model.cuts) if cuts else (model.calibration,)
        sizes = (model.checkpoint, model.download, *before, model.merge, model.read)
        table.add_row(model.model, *map(short, sizes))
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
    beside = "" if memory.device == "cpu" else f" (on {memory.device} for the most part)"
    parts = f"{short(memory.tensor)} for the largest tensor's merge{beside}"
    if memory.loaded > memory.tensor:
        parts = f"{short(memory.loaded)} for merging an adapter into its base"
    if memory.total is None or memory.process is None:
        text = f"{parts}, and what Python and its packages take"
    else:
        process = f"{short(memory.process)} for Python and packages"
        text = f"about {short(memory.total)}: {process}, {parts}"
    if memory.workers == 1:
        return text
    return f"in each of {memory.workers} workers {text}; the command itself and Ray come on top"


def _size(number: int) -> str:
    return f"{short(number)} ({number:,} bytes)"
