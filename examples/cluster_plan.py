"""Plan a merge of Llama-3.1-405B's shapes on a cluster: how long, and where more nodes do not help.

    python examples/cluster_plan.py                     # the tables of examples/README.md
    python examples/cluster_plan.py --measure           # the rates of this machine first
    python examples/cluster_plan.py --storage 200 --network 25 --cores 64 --nodes 16

Shards, bytes and memory are those of our own planner, over the headers of checkpoints that have
holes for weights; the work on each shard is that of `mergekit-lines merge --workers`, the norms of
Eq. 2 first. The cluster is simulated: each worker takes the next shard when it is free, at the
rate of its cores, its share of its node's network or of the storage, whichever is least.
"""

from __future__ import annotations

import functools
import math
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import _benchmark_models as models
import click
import yaml
from _cluster_shards import LLAMA_405B, Plan, Shard, plan_of, planned, ties_recipe
from _cluster_simulation import Cluster, Wave, wave
from benchmark import FOLDER, prepare, working
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.options import MergeOptions

import mergekit_lines
from mergekit_lines.plugin import run_by_kernels

GB = 10**9
MODELS = 2
MERGING = "merging"  # what mergekit runs itself; what comes before has a bar of ours
BILLIONS, ROUNDS = 0.22, 3  # of the merge that is measured
# What `--measure` gave, in GB per second of one core: see examples/README.md.
NORMS, MERGE = 0.44, 1.48
DOUBLING = 1.25  # times as fast by twice the nodes: less is where it stops
NODES = tuple(2**power for power in range(8))
TITLES = (
    "nodes",
    "shards per node",
    "rounds",
    "read per node",
    "written per node",
    "norms",
    "merge",
    "in all",
    "times as fast",
    "workers wait for",
)


@dataclass(frozen=True)
class Rates:
    """Bytes per second that one worker reads and writes, where it waits for nothing."""

    norms: float
    merge: float


@dataclass(frozen=True)
class Run:
    """A simulated merge: the norms of Eq. 2, then the merge itself."""

    norms: Wave
    merge: Wave

    @property
    def seconds(self) -> float:
        """Both waves'."""
        return self.norms.seconds + self.merge.seconds

    @property
    def waits(self) -> Counter[str]:
        """Worker-seconds of both, by what limited them."""
        return self.norms.waits + self.merge.waits


def simulate(shards: Sequence[Shard], cluster: Cluster, rates: Rates) -> Run:
    """Run both waves; the second begins when α is known, after the last norm."""
    first = wave([shard.norms for shard in shards if shard.norms], cluster, rates.norms)
    second = wave([shard.read + shard.size for shard in shards], cluster, rates.merge)
    return Run(first, second)


def row(shards: Sequence[Shard], cluster: Cluster, run: Run, alone: float) -> list[str]:
    """Return the table's row of a number of nodes; of nodes, the one with the most to do."""
    read, written, count = Counter[int](), Counter[int](), Counter(run.merge.node)
    for shard, node in zip(shards, run.merge.node, strict=True):
        read[node] += shard.read
        written[node] += shard.size
    normed = [shard.norms for shard in shards if shard.norms]
    for size, node in zip(normed, run.norms.node, strict=True):
        read[node] += size
    rounds = -(-len(shards) // (cluster.nodes * cluster.workers))
    name, waited = run.waits.most_common(1)[0]
    return [
        str(cluster.nodes),
        str(max(count.values())),
        str(rounds),
        f"{max(read.values()) / GB:,.0f} GB",
        f"{max(written.values()) / GB:,.0f} GB",
        duration(run.norms.seconds),
        duration(run.merge.seconds),
        duration(run.seconds),
        f"{alone / run.seconds:.1f}",
        f"{name} ({waited / run.waits.total():.0%})",
    ]


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def markdown(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    titles = list(titles)
    for cells in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(cells)} |"


def stop(runs: Sequence[tuple[int, float]]) -> int | None:
    """Return the nodes after which the next row brings little, or None.

    Args:
        runs: nodes and seconds, ascending; a row with more than twice the nodes has to bring more.
    """
    for (nodes, seconds), (more, faster) in pairwise(runs):
        if seconds / faster < 1 + (DOUBLING - 1) * (more / nodes - 1):
            return nodes
    return None


def changes(plan: Plan, most: int, cluster: Cluster, rates: Rates) -> Iterator[tuple[str, float]]:
    """Yield what could be changed of a cluster or a merge, and the seconds of it then."""
    shards = plan.shards(most)
    faster = Rates(2 * rates.norms, 2 * rates.merge)
    wider = replace(cluster, network=2 * cluster.network)
    yield "as above", simulate(shards, cluster, rates).seconds
    yield "twice the cores", simulate(shards, cluster, faster).seconds
    yield "twice the network", simulate(shards, wider, rates).seconds
    storage = replace(cluster, storage=2 * cluster.storage)
    yield "twice the storage", simulate(shards, storage, rates).seconds
    yield "shards of half the size", simulate(plan.shards(most // 2), cluster, rates).seconds


def report(
    plan: Plan, most: int, nodes: Sequence[int], cluster: Cluster, rates: Rates, threads: int
) -> Iterator[str]:
    """Yield the lines of the whole output."""
    shards = plan.shards(most)
    size, largest = sum(one.size for one in shards), max(one.size for one in shards)
    parameters = sum(one.entries for one in plan.sizes.tensors)
    memory = plan.memory(threads)
    yield (
        f"TIES of a base and {MODELS} models with {parameters / 1e9:.1f} B parameters, α by Eq. 2: "
        f"{len(shards)} output shards, {size / GB:,.0f} GB, the largest {largest / GB:.2f} GB."
    )
    yield (
        f"Each node has {cluster.workers} workers with {threads} threads, and "
        f"{cluster.network / GB:g} GB/s to a storage of {cluster.storage / GB:g} GB/s that all "
        f"share. A worker holds {memory / GB:.1f} GB beside its imports. Alone it does "
        f"{rates.norms / GB:.2f} GB/s of norms and {rates.merge / GB:.2f} GB/s of the merge."
    )
    runs = {n: simulate(shards, replace(cluster, nodes=n), rates) for n in nodes}
    alone = simulate(shards, replace(cluster, nodes=1), rates).seconds
    rows = [row(shards, replace(cluster, nodes=n), run, alone) for n, run in runs.items()]
    yield ""
    yield from markdown(TITLES, rows)
    yield ""
    end = stop([(n, run.seconds) for n, run in runs.items()])
    yield (
        f"After {end} nodes twice as many are less than {DOUBLING} times as fast. What would help:"
        if end
        else f"It scales to {nodes[-1]} nodes. What would help:"
    )
    columns = sorted({end or nodes[-1], nodes[-1]})
    helped = [dict(changes(plan, most, replace(cluster, nodes=n), rates)) for n in columns]
    yield ""
    yield from markdown(
        ("", *(f"{n} node{'s' * (n > 1)}" for n in columns)),
        [[name, *(duration(times[name]) for times in helped)] for name in helped[0]],
    )


def measure(folder: Path) -> tuple[float, float]:
    """Merge a small model by the real engine on one thread; return GB per CPU second of a core.

    CPU seconds of the process, since neighbours take the wall's: what a core waits for the disk
    is no part of it. The medians of the rounds, for the norms and for the merge.
    """
    made = models.checkpoints(models.shape_of(BILLIONS), MODELS, folder.absolute())
    prepare(made, 1)
    shards = planned(made).shards(0)
    norms = sum(shard.norms for shard in shards) / GB
    merge = sum(shard.read + shard.size for shard in shards) / GB
    settings, used = ties_recipe(made), list[Counter[str]]()
    config = MergeConfiguration.model_validate(settings)
    options = MergeOptions(quiet=True, num_threads=1, copy_tokenizer=False)
    with working(folder) as work:
        for _ in range(ROUNDS + 1):  # the first one compiles kernels and fills the page cache
            used.append(seconds := Counter())
            with mock.patch.object(Executor, "run", _clocked(Executor.run, seconds)):
                run_by_kernels(config, str(work / "out"), options, yaml.safe_dump(settings))
            shutil.rmtree(work / "out")
    first = statistics.median(one.total() - one[MERGING] for one in used[1:])
    return norms / first, merge / statistics.median(one[MERGING] for one in used[1:])


def _clocked(run: Any, seconds: Counter[str]) -> Any:
    """Return mergekit's executor's method with the CPU seconds of each bar added up."""

    @functools.wraps(run)
    def clocked(self: Any, **flags: Any) -> Iterator[Any]:
        begun = time.process_time()
        yield from run(self, **flags)
        seconds[flags.get("desc") or MERGING] += time.process_time() - begun

    return clocked


class Rate(click.FloatRange):
    """A number above 0 that is finite."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """See click."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"found {value}, wanted a finite number above 0", param, ctx)
        return number


POSITIVE = Rate(0, min_open=True)


@click.command()
@click.option("--nodes", "numbers", type=click.IntRange(1, 1024), multiple=True, default=NODES)
@click.option("--cores", type=click.IntRange(1), default=16, show_default=True, help="Of a node.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Of a node.")
@click.option("--network", type=POSITIVE, default=12.5, show_default=True, help="GB/s of a node.")
@click.option("--storage", type=POSITIVE, default=50.0, show_default=True, help="GB/s of all.")
@click.option("--shard", type=POSITIVE, default=5.0, show_default=True, help="GB at most.")
@click.option("--norms-rate", type=POSITIVE, default=NORMS, show_default=True, help="GB/s a core.")
@click.option("--merge-rate", type=POSITIVE, default=MERGE, show_default=True, help="GB/s a core.")
@click.option("--measure", "measures", is_flag=True, help="Measure both rates on this machine.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
def main(
    numbers: tuple[int, ...],
    cores: int,
    workers: int,
    network: float,
    storage: float,
    shard: float,
    norms_rate: float,
    merge_rate: float,
    measures: bool,
    folder: Path,
) -> None:
    """Plan a merge of 405 B parameters on a cluster."""
    if workers > cores:
        raise click.BadParameter(
            f"found {workers}, wanted at most --cores {cores}: a worker needs one core.",
            param_hint="'--workers'",
        )
    mergekit_lines.register()
    if measures:
        norms_rate, merge_rate = measure(folder)
        click.echo(f"measured: --norms-rate {norms_rate:.2f} --merge-rate {merge_rate:.2f}\n")
    threads = cores // workers
    rates = Rates(threads * norms_rate * GB, threads * merge_rate * GB)
    cluster = Cluster(1, workers, network * GB, storage * GB)
    with tempfile.TemporaryDirectory() as holes:
        plan = plan_of(LLAMA_405B, MODELS, Path(holes))
    lines = report(plan, int(shard * GB), sorted(set(numbers)), cluster, rates, threads)
    for line in lines:
        click.echo(line)


if __name__ == "__main__":
    main()
