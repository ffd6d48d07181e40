"""Time what reads or decomposes whole matrices: the merges by singular vectors, `inspect --deep`.

    python examples/spectra_benchmark.py                 # both
    python examples/spectra_benchmark.py --only merges --device cuda

Merges: one matrix of LLaMA-2-7B's feed-forward and one of its attention, each method once a
round in turn, and what the whole model would take of that. Look: reading base and models from
shards, and reading them with all that `inspect --deep` computes, in turns.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import _benchmark_models as models
import click
import torch
from benchmark import FOLDER, prepare
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import get
from mergekit.merge_methods.base import TensorGroup
from mergekit.options import MergeOptions
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import mergekit_lines
from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.host.process import available_cores
from mergekit_lines.host.state import fresh_caches
from mergekit_lines.inspection import deep
from mergekit_lines.plan import prepare as plan
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.planned import MergeRun, PlannedTensor

BLOCKS = 32
SHAPES = {"attention": ((4096, 4096), 4), "feed-forward": ((4096, 11008), 3)}  # and how many
RANK = 0.08  # CART's
METHODS = {"cart": {"rank": RANK}, "tsv_m": {}, "iso_c": {}, "iso_cts": {}}
MODELS = 2


def merges(console: Console, rounds: int, device: str) -> None:
    """Time each method on both matrices, and print what all of LLaMA-2-7B's would take."""
    taken: dict[tuple[str, str], list[float]] = {}
    turns = [(method, kind) for _ in range(rounds) for kind in SHAPES for method in METHODS]
    for method, kind in (bar := tqdm(turns, desc="merging")):
        bar.set_description(f"{method}, {kind}")
        shape, _ = SHAPES[kind]
        generator = torch.Generator().manual_seed(0)
        base = 0.02 * torch.randn(shape, generator=generator)
        tensors = [base]
        tensors += [base + 0.001 * torch.randn(shape, generator=generator) for _ in range(MODELS)]
        group = TensorGroup.from_tensors(
            [tensor.to(device) for tensor in tensors], base_index=0, name="layers.0.weight"
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a merge
        # A busy neighbour takes time from one core's wall clock, and none from its CPU seconds.
        clock = time.process_time if device == "cpu" else time.perf_counter
        start = clock()
        (merged,) = get(method)([group], parameters=METHODS[method])
        float(merged.sum())  # a GPU is waited for
        taken.setdefault((method, kind), []).append(clock() - start)
        torch.set_num_threads(threads)
    table = Table(title=f"{MODELS} models, seconds on {device}", title_justify="left")
    for name in ("", *(f"{kind} {shape[0]} x {shape[1]}" for kind, (shape, _) in SHAPES.items())):
        table.add_column(name, justify="right")
    table.add_column("LLaMA-2-7B, hours", justify="right")
    for method in METHODS:
        medians = {kind: statistics.median(taken[method, kind]) for kind in SHAPES}
        whole = BLOCKS * sum(count * medians[kind] for kind, (_, count) in SHAPES.items())
        times = [f"{medians[kind]:.2f}" for kind in SHAPES]
        table.add_row(method, *times, f"{whole / 3600:.2f}")
    console.print(table)


def look(console: Console, rounds: int, billions: float, folder: Path) -> None:
    """Time reading alone and the deep look over the same checkpoints, in turns."""
    made = models.checkpoints(models.shape_of(billions), MODELS, folder.absolute())
    prepare(made, outputs=0)
    walls: dict[str, list[float]] = {"reading": [], "inspect --deep": []}
    cpu: dict[str, list[float]] = {"reading": [], "inspect --deep": []}
    ways = {"reading": _read, "inspect --deep": _look}
    for _ in range(rounds):
        for name, way in ways.items():
            with _opened(made) as (planned, opened):
                used, start = time.process_time(), time.perf_counter()
                way(planned, opened)
                walls[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    table = Table(title=f"base + {MODELS} of {billions} B, seconds", title_justify="left")
    for name in ("", "wall", "CPU", "of reading"):
        table.add_column(name, justify="right")
    for name in ways:
        pairs = zip(walls[name], walls["reading"], strict=True)
        share = statistics.median(own / other for own, other in pairs)
        wall, used = (f"{statistics.median(one[name]):.1f}" for one in (walls, cpu))
        table.add_row(name, wall, used, f"{share:.2f}")
    console.print(table)


@contextmanager
def _opened(made: list[models.Checkpoint]) -> Iterator[tuple[list[PlannedTensor], OpenedModels]]:
    """Give the planned tensors and the opened models, as `inspect` has them."""
    base, *tuned = (str(checkpoint.folder) for checkpoint in made)
    config = MergeConfiguration.model_validate(
        {
            "merge_method": "lines",
            "base_model": base,
            "models": [{"model": model} for model in tuned],
            "parameters": {"alpha": 0.5, "beta": 0.5},
        }
    )
    options = MergeOptions(quiet=True)
    with fresh_caches():
        planned = plan.prepare(config, options, MergeRun.of(config, options)).planned
    with fresh_caches(), ExitStack() as stack:
        LoaderCache().setup(options=options)
        yield planned, open_models(config, options, made[0].folder, stack)


def _look(planned: list[PlannedTensor], opened: OpenedModels) -> None:
    depths = {item.weight.name: item.placed.depth for item in planned}
    deep.look(planned, opened, depths, {}, None)


def _read(planned: list[PlannedTensor], opened: OpenedModels) -> None:
    """Read what the look reads, in its pieces and on as many threads."""
    held = threading.local()

    def read(source: Any, start: int, stop: int) -> None:
        buffer = held.__dict__.setdefault("buffer", torch.empty(deep.PIECE))
        source.read_into(start, stop, buffer[: stop - start])

    with ThreadPoolExecutor(
        available_cores(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for item in planned:
            sources = [opened.source(m, weight) for m, weight in item.task.inputs.items()]
            size = math.prod(sources[0].shape)
            jobs = [
                pool.submit(read, source, start, min(start + deep.PIECE, size))
                for start in range(0, size, deep.PIECE)
                for source in sources
            ]
            for job in jobs:
                job.result()


@click.command()
@click.option("--only", type=click.Choice(["merges", "look"]), help="One of the two.")
@click.option("--rounds", type=click.IntRange(1, 100), default=1)
@click.option("--device", default="cpu", help="Of the merges.")
@click.option("--billions", type=click.FloatRange(0.0005, 100.0), default=0.84, help="Of the look.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
def main(only: str | None, rounds: int, device: str, billions: float, folder: Path) -> None:
    """Time the merges by singular vectors, and the deep look."""
    mergekit_lines.register()
    console = Console()
    if only != "look":
        merges(console, rounds, device)
    if only != "merges":
        look(console, max(rounds, 3), billions, folder)


if __name__ == "__main__":
    main()
