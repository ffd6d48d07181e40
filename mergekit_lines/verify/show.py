"""A verdict as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lines.console import new_table, open_console, print_line, print_table

if TYPE_CHECKING:
    from mergekit_lines.verify.verdict import Checked, Verdict


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
        comparison = one.comparison
        table.add_row(
            one.name,
            one.dtype,
            f"{comparison.entries:,}",
            f"{one.coefficient:.4g}",
            f"{comparison.error:.3g}",
            f"{comparison.off:,}",
            f"{comparison.threshold_flips:,}",
            f"{comparison.sign_flips:,}",
            f"{comparison.wrong:,}",
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
    if one.comparison.example is None:
        return f"{one.name}: wrong"
    place, stored, expected = one.comparison.example
    return (
        f"{one.name}: {one.comparison.wrong:,} of {one.comparison.entries:,} entries are wrong; "
        f"entry {place:,} is {stored:.9g}, and {expected:.9g} by recipe and inputs"
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
