"""``mergekit-lines merge``: mergekit's recipes by this package's engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.cli.options.flags import FLAGS, merge_flags, with_values
from mergekit_lines.cli.options.workers import shared_among, worker_options
from mergekit_lines.errors import LinesError


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path())
@worker_options
@merge_flags(FLAGS)
def merge(
    recipe: Path, out: str, workers: int | None, ray_address: str | None, **flags: Any
) -> None:
    """Merge a recipe by our kernels, mergekit's own methods too.

    RECIPE is a file as mergekit-yaml takes it, and OUT the folder to make. Recipes of lines,
    lines_postprocess and this package's other methods are merged as mergekit-yaml merges them, to
    the byte. Those of task_arithmetic, ties, dare_linear, dare_ties, breadcrumbs,
    breadcrumbs_ties, della and della_linear are merged likewise, unscaled: in pieces, computed in
    fp32 and rounded once, with a report that verify recomputes, a card, and every problem told
    before weights are read. A merge that was interrupted goes on when the same command is given
    again. The flags are mergekit's.

    With --workers or --ray-address the output's shards are merged by several processes, on this
    machine or on those of a Ray cluster that share the storage of models and OUT. The bytes are
    those of one process. A worker that is lost has its shard merged again; when the command itself
    is lost, the same command goes on. With --cuda each worker has a GPU of its own, and --multi-gpu
    is one worker for each GPU of this machine.
    """
    import mergekit_lines

    mergekit_lines.register()
    from mergekit_lines.plugin import run_by_kernels
    from mergekit_lines.recipe.checks import check_method
    from mergekit_lines.recipe.reading import merge_options, read_documents

    documents = read_documents(recipe)
    if len(documents) != 1:
        raise LinesError(
            f"{recipe}: found {len(documents)} recipes, wanted one. mergekit-multi merges files of "
            f"several, those of `merge_method: lines` among them by our kernels."
        )
    config = documents[0].config
    if problems := list(check_method(config.merge_method, recipe)):
        raise LinesError([problem.under(str(recipe)) for problem in problems])
    cluster, flags = shared_among(workers, ray_address, flags)
    run_by_kernels(config, out, merge_options(with_values(flags)), documents[0].text, cluster)
