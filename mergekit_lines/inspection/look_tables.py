"""A deep look as tables and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table

from mergekit_lines.console import new_table
from mergekit_lines.inspection.deep import Depth, Look

SHOWN = 4  # models with a column of their own
PAIRS = ("cosine", "sign conflict")


def look_tables(look: Look) -> Iterator[Table]:
    """Yield a table of the blocks of each container, and one of what is outside and of all."""
    for container, depths in groupby(look.depths, key=lambda depth: depth.container):
        listed = list(depths)
        if container:
            yield _table(look, container, listed)
    rest = [depth for depth in look.depths if not depth.index]
    yield _table(look, "over all", [*rest, look.total])


def columns(look: Look) -> tuple[str, ...]:
    """Return the heads of the columns: of each model ‖τ‖/‖θ_0‖, of many the least and the most."""
    models = look.labels if len(look.models) <= SHOWN else ("least change", "most change")
    return ("block", *_values(look), *models, *(PAIRS if len(look.models) > 1 else ()), "rank")


def _values(look: Look) -> tuple[str, ...]:
    """Return the column of λ, where it is known of any block."""
    return ("λ",) if any(depth.coefficient is not None for depth in look.depths) else ()


def cells(look: Look, depth: Depth) -> tuple[str, ...]:
    """Return the texts of one row."""
    shares = depth.shares
    if len(shares) > SHOWN:
        shares = (min(shares), max(shares))
    name = "all" if depth is look.total else str(depth.index) if depth.index else "outside"
    cosines = [cosine for cosine in depth.cosines if cosine is not None]
    ranks = [rank for rank in depth.ranks if rank is not None]
    pairs = (
        (_span(cosines), "" if depth.conflict is None else f"{depth.conflict:.0%}")
        if len(look.models) > 1
        else ()
    )
    value = "" if depth.coefficient is None else f"{depth.coefficient:.4g}"
    values = (value,) if _values(look) else ()
    rank = f"{sum(ranks) / len(ranks):.0%}" if ranks else ""
    return (name, *values, *(f"{share:.3%}" for share in shares), *pairs, rank)


def look_lines(look: Look) -> Iterator[str]:
    """Yield what the columns mean, and what holds for the whole model."""
    yield (
        "under a model: its difference from the base, of the base's length; rank: effective rank "
        "of sampled rows, of their number"
    )
    if len(look.models) > 1:
        yield (
            "cosine: between two models' differences; sign conflict: of sampled entries that two "
            "or more change, those in which they differ in sign"
        )
    if look.kept is not None:
        yield f"of the models' summed update the coefficients keep {look.kept:.1%} of the length"


def _table(look: Look, title: str, depths: Sequence[Depth]) -> Table:
    table = new_table(title, *columns(look)[1:])
    for depth in depths:
        table.add_row(*cells(look, depth))
    return table


def _span(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
