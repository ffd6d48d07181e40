"""A merged model as text: what its report says, and the verdict on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mergekit_lines.console import new_table, open_console, print_line, print_table, short

if TYPE_CHECKING:
    from mergekit_lines.verify import Checked, Verdict

MANY = 20  # tensors outside the blocks that are listed by name


def show_verdict(verdict: Verdict, title: str) -> None:
    """Print a verdict to stdout."""
    console = open_console()
    print_line(console, title, "bold")
    table = new_table(
        "tensor",
        "dtype",
        "entries",
        "λ",
        "largest error",
        "off",
        "threshold flips",
        "sign flips",
        "wrong",
    )
    for one in verdict.checked:
        found = one.found
        table.add_row(
            one.name,
            one.dtype,
            f"{found.entries:,}",
            f"{one.coefficient:.4g}",
            f"{found.error:.3g}",
            f"{found.off:,}",
            f"{found.threshold_flips:,}",
            f"{found.sign_flips:,}",
            f"{found.wrong:,}",
        )
    print_table(console, table)
    print_line(
        console,
        "largest error: in spacings of the dtype, or in bounds of the arithmetic's roundings where "
        "those are wider; 0.5 is the nearest number. off: next to the nearest, as roundings allow",
    )
    for note in verdict.notes:
        print_line(console, f"note: {note}")
    for one in verdict.checked:
        if not one.right:
            print_line(console, _example(one))
    print_line(console, _sentence(verdict), "bold")


def _example(one: Checked) -> str:
    if one.found.example is None:
        return f"{one.name}: wrong"
    place, stored, wanted = one.found.example
    return (
        f"{one.name}: {one.found.wrong:,} of {one.found.entries:,} entries are wrong; entry "
        f"{place:,} is {stored:.9g}, and {wanted:.9g} by recipe and inputs"
    )


def _sentence(verdict: Verdict) -> str:
    """Return the verdict in one line."""
    total, checked = verdict.total, len(verdict.checked)
    right = sum(one.right for one in verdict.checked)
    flips = f"{total.threshold_flips:,} threshold flips and {total.sign_flips:,} sign flips apart"
    left = f", {len(verdict.skipped)} left out" if verdict.skipped else ""
    return (
        f"{right} of {checked} tensors right ({verdict.tensors} in all{left}): {total.off:,} of "
        f"{total.entries:,} entries off by a rounding, {total.wrong:,} wrong, {flips}"
    )


def show_report(report: Mapping[str, Any], title: str) -> None:
    """Print what a merge did, by its report."""
    console = open_console()
    print_line(console, title, "bold")
    for text in _facts(report):
        print_line(console, text)
    for container in report["containers"]:
        table = new_table(container["name"], "block", "λ")
        for number, value in enumerate(container["coefficients"], 1):
            table.add_row("", str(number), _lambdas(value if isinstance(value, list) else [value]))
        print_table(console, table)
    if report["outside"]:
        print_table(console, _outside(report["outside"]))
    if report.get("inputs"):
        print_table(console, _inputs(report["inputs"]))
    for text in _figures(report):
        print_line(console, text)


def _facts(report: Mapping[str, Any]) -> Iterator[str]:
    wraps = f" around {', '.join(report['wrap'])}" if report["wrap"] else ""
    yield f"merge_method {report['merge_method']}{wraps}, seed {report['seed']}"
    alpha = report["alpha"]
    value = "differs between tensors" if alpha["value"] is None else f"= {alpha['value']:.6g}"
    yield f"α {value}: {'the recipe' if alpha['source'] == 'recipe' else alpha['source']}"
    made = {"mergekit-lines": report["mergekit_lines"], **report["versions"]}
    yield f"made with {', '.join(f'{name} {version}' for name, version in made.items())}"


def _lambdas(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _outside(outside: Mapping[str, float]) -> Table:
    """Return the tensors outside the blocks; where they are many, only how many of each λ."""
    table = new_table("outside the blocks", "λ")
    names: dict[float, list[str]] = defaultdict(list)
    for name, value in outside.items():
        names[value].append(name)
    for value, found in names.items():
        for name in found if len(found) <= MANY else [f"{len(found):,} tensors"]:
            table.add_row(name, _lambdas([value]))
    return table


def _inputs(inputs: Mapping[str, Any]) -> Table:
    table = new_table("model", "revision", "files", "bytes")
    for model, found in inputs.items():
        files = [*found["files"].values(), *found.get("adapter", {}).get("files", {}).values()]
        size = sum(facts["bytes"] for facts in files)
        table.add_row(model, found.get("revision", "")[:12], str(len(files)), short(size))
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
