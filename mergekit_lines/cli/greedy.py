"""``mergekit-lines greedy``: greedy and uniform soups of many checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.cli.options.searching import asked, end, search_options
from mergekit_lines.errors import tell


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--evaluate", multiple=True, required=True, metavar="SPEC", help="Choose by this.")
@click.option("--test", multiple=True, metavar="SPEC", help="Report this of the soups.")
@click.option(
    "--objective",
    default="sum",
    show_default=True,
    help="sum, or an expression over the metrics' names; higher is better.",
)
@search_options
def greedy(recipe: Path, out: Path, **options: Any) -> None:
    """Choose checkpoints for a soup greedily, with LiNeS after.

    RECIPE is `lines` around task_arithmetic with the checkpoints under `models`; its alpha, beta
    and schedule are those of the edit. A checkpoint is kept only if the mean of those kept and it
    is strictly better. Beside the greedy soup the uniform one of all is measured, both with LiNeS
    and without. OUT gets results.jsonl after every measurement, and greedy.yml, a recipe for
    mergekit-yaml. SPEC is as in `mergekit-lines sweep`.
    """
    from mergekit_lines.search import telling
    from mergekit_lines.search.greedy import greedy as search
    from mergekit_lines.search.store import GREEDY

    soups = search(recipe, out=out, **asked(options, "evaluate", "test", "objective"))
    telling.show_greedy(soups)
    tell(f"recipe: {out / GREEDY}")
    end(soups.failures, out)
