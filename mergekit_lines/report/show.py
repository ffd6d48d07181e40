"""A merged model as text: what its report says, and the verdict on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from mergekit_lines.console import new_table, open_console, print_line, print_table, short
from mergekit_lines.report.file import is_by_depth

MANY = 20  # tensors outside the blocks that are listed by name


def show_report(report: Mapping[str, Any], title: str) -> None:
    """Print what a merge did, by its report."""
    console = open_console()
    print_line(console, title, "bold")
    for text in _facts(report):
        print_line(console, text)
    for container in report["containers"]:
        tiers = report.get("larv", {}).get(container["name"])
        heads = ("r_eff(θ₀)/r_eff(τ)", "conflict", "level") if tiers else ()
        table = new_table(container["name"], "block", "λ", *heads)
        for number, value in enumerate(container["coefficients"], 1):
            values = value if isinstance(value, list) else [value]
            own = tiers[number - 1] if tiers and number <= len(tiers) else {}
            cells = [f"{own[key]:.4g}" for key in ("contrast", "conflict", "level") if key in own]
            table.add_row("", str(number), _lambdas(values), *cells)
        print_table(console, table)
    if report["outside"]:
        place = "outside the blocks" if is_by_depth(report) else "all tensors"
        print_table(console, _outside(place, report["outside"]))
    if report.get("inputs"):
        print_table(console, _inputs(report["inputs"]))
    for text in _figures(report):
        print_line(console, text)


def _facts(report: Mapping[str, Any]) -> Iterator[str]:
    if not is_by_depth(report):
        yield f"merge_method {report['merge_method']}, not scaled by depth"
    else:
        wraps = f" around {', '.join(report['wrap'])}" if report["wrap"] else ""
        yield f"merge_method {report['merge_method']}{wraps}, seed {report['seed']}"
        alpha = report["alpha"]
        value = "differs between tensors" if alpha["value"] is None else f"= {alpha['value']:.6g}"
        blocks = " over the whole model, and for each block" if alpha.get("blocks") else ""
        source = "the recipe" if alpha["source"] == "recipe" else alpha["source"]
        yield f"α {value}: {source}{blocks}"
    if trim := report.get("trim"):
        sign = "+" if trim["zero_sign"] > 0 else "-"
        cuts = ", ".join(f"{value:.4g}" for value in trim["magnitudes"].values())
        yield f"trim: model kept magnitudes from {cuts} on; sums of 0 took the sign {sign}"
    versions = {"mergekit-lines": report["mergekit_lines"], **report["versions"]}
    yield f"made with {', '.join(f'{name} {version}' for name, version in versions.items())}"


def _lambdas(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _outside(place: str, outside: Mapping[str, float]) -> Table:
    """Return the tensors in no block; where they are many, only how many of each λ."""
    table = new_table(place, "λ")
    names: dict[float, list[str]] = defaultdict(list)
    for name, value in outside.items():
        names[value].append(name)
    for value, alike in names.items():
        for name in alike if len(alike) <= MANY else [f"{len(alike):,} tensors"]:
            table.add_row(name, _lambdas([value]))
    return table


def _inputs(inputs: Mapping[str, Any]) -> Table:
    table = new_table("model", "revision", "files", "bytes")
    for model, entry in inputs.items():
        files = [*entry["files"].values(), *entry.get("adapter", {}).get("files", {}).values()]
        size = sum(facts["bytes"] for facts in files)
        table.add_row(model, entry.get("revision", "")[:12], str(len(files)), short(size))
    return table


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    output, run = report.get("output"), report.get("run")
    if output:
        shards = len(output["shards"])
        count = f"{shards} shard{'s' if shards != 1 else ''}"
        yield f"output   {output['tensors']:,} tensors, {short(output['bytes'])} in {count}"
    if run:
        went_on = ", behind an interrupted run" if run["resumed"] else ""
        threads = f"{run['threads']} thread{'s' if run['threads'] != 1 else ''}"
        yield f"run      {run['seconds']:,.1f} s on {run['device']}, {threads}{went_on}"
        yield f"read     {short(run['bytes_read'])}"
        yield f"written  {short(run['bytes_written'])}"
        if run["peak_rss"] is not None:
            yield f"memory   {short(run['peak_rss'])} at its peak, mapped files included"
