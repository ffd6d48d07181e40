"""Time a merge by one worker of `mergekit-lines merge --workers` against several, on one machine.

    python examples/workers_benchmark.py --billions 0.84 --workers 1 --workers 2 --rounds 3

Each has one thread. Every round merges TIES with automatic α once by each number of workers in
turn: what is timed is the workers' share, the norms of Eq. 2 and the merge, from the first shard
that is given out to the last one that is taken; the workers have imported all by then. A line ends
with what the whole merge takes beside that, planning and report among it.
"""

from __future__ import annotations

import shutil
import statistics
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _benchmark_models as models
import click
import yaml
from _benchmark_runs import recipe
from benchmark import FOLDER, prepare, working
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import mergekit_lines
from mergekit_lines.cluster import crew
from mergekit_lines.cluster.connection import connected
from mergekit_lines.plugin import run_by_kernels
from mergekit_lines.recipe.reading import merge_options, read_documents

SHARDS = 24  # of the output, at least


class Timed(crew.RayCrew):
    """Workers whose share of a merge is timed, in seconds."""

    seconds = 0.0

    def gather(self, *arguments: Any, **options: Any) -> None:
        """See the class above."""
        begun = time.perf_counter()
        super().gather(*arguments, **options)
        Timed.seconds += time.perf_counter() - begun

    def write(self, *arguments: Any) -> None:
        """See the class above."""
        begun = time.perf_counter()
        super().write(*arguments)
        Timed.seconds += time.perf_counter() - begun


def timed(file: Path, out: Path, shard: int, workers: int) -> tuple[float, float]:
    """Merge by warm workers; return the seconds of their share, and of the whole merge."""
    options = {"out_shard_size": shard, "quiet": True, "copy_tokenizer": False}
    (document,) = read_documents(file)
    with connected(workers, None, threads=1) as connection:
        cluster = partial(crew.crew, workers=workers, address=None, quiet=True)
        same = mock.Mock(side_effect=lambda *_, **__: nullcontext(connection))
        for _ in range(2):  # the first one imports
            shutil.rmtree(out, ignore_errors=True)
            Timed.seconds, begun = 0.0, time.perf_counter()
            with mock.patch.multiple(crew, connected=same, RayCrew=Timed):
                flags = merge_options(options)
                run_by_kernels(document.config, str(out), flags, document.text, cluster)
            whole = time.perf_counter() - begun
    return Timed.seconds, whole


@click.command()
@click.option("--billions", type=click.FloatRange(0.0005, 100.0), default=0.84, show_default=True)
@click.option("--workers", "numbers", type=click.IntRange(1), multiple=True, default=(1, 2))
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
def main(billions: float, numbers: tuple[int, ...], rounds: int, folder: Path) -> None:
    """Time one worker against several."""
    mergekit_lines.register()
    shape = models.shape_of(billions)
    made = models.checkpoints(shape, 2, folder)
    prepare(made, 1)
    shard = max(1, shape.parameters * shape.item // SHARDS)
    taken: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    with working(folder) as work:
        settings = recipe("ties", "lines", made)
        settings["parameters"] = {"wrap": "ties", "beta": 0.5}
        file = work / "recipe.yml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        for number in tqdm(list(numbers) * rounds, leave=False, disable=None):
            taken[number].append(timed(file, work / "out", shard, number))
    table = Table("workers", "seconds", "of rounds", "times as fast", "and beside that")
    first = statistics.median(seconds for seconds, _ in taken[numbers[0]])
    for number, rows in taken.items():
        seconds = statistics.median(seconds for seconds, _ in rows)
        beside = statistics.median(whole - seconds for seconds, whole in rows)
        each = ", ".join(f"{seconds:.1f}" for seconds, _ in rows)
        table.add_row(
            str(number), f"{seconds:.1f}", each, f"{first / seconds:.2f}", f"{beside:.1f}"
        )
    Console().print(f"TIES, α automatic, {shape.parameters / 1e9:.3g} B parameters in bf16")
    Console().print(table)


if __name__ == "__main__":
    main()
