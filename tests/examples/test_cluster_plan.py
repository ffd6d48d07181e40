"""The plan of a merge on a cluster: its simulation by hand, its bytes by the planner's totals."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.inspection.inspect import inspect_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = ("cluster_plan", "_cluster_shards", "_cluster_simulation")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The command and what it stands on, as modules."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    command, shards, simulation = (importlib.import_module(name) for name in MODULES)
    yield SimpleNamespace(command=command, shards=shards, simulation=simulation)
    for name in set(sys.modules) - before:
        if name in (*MODULES, "benchmark") or name.startswith("_benchmark_"):
            del sys.modules[name]


def test_the_readme_has_the_output(examples: SimpleNamespace) -> None:
    """What the command prints by default stands in examples/README.md, line by line."""
    result = CliRunner().invoke(examples.command.main)
    assert result.exit_code == 0, result.output
    written = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert result.stdout.strip() in written
    assert "405.9 B parameters" in result.stdout  # Llama-3.1-405B's: 405,853,388,800


def test_a_wave_by_hand(examples: SimpleNamespace) -> None:
    """Three shards on two nodes: two share the storage, and the third has it for itself."""
    # Each of 6 bytes. Two at once get 3/2 each of the storage: 4 s. The third alone has 3 of the
    # storage and of its network, and is as fast as its cores, 2: 3 s, while one worker is idle.
    cluster = examples.simulation.Cluster(nodes=2, workers=1, network=3.0, storage=3.0)
    wave = examples.simulation.wave([6.0, 6.0, 6.0], cluster, 2.0)
    assert wave.seconds == pytest.approx(7.0)
    assert wave.node == (0, 1, 0)
    assert dict(wave.waits) == pytest.approx({"storage": 8.0, "cores": 3.0, "shards": 3.0})


def test_workers_of_a_node_share_its_network(examples: SimpleNamespace) -> None:
    """A worker left alone on its node is faster than it was beside another."""
    # 4 and 8 bytes at 1/2 each: 8 s, 4 left; alone at 1: 4 s more.
    cluster = examples.simulation.Cluster(nodes=1, workers=2, network=1.0, storage=9.0)
    wave = examples.simulation.wave([4.0, 8.0], cluster, 5.0)
    assert wave.seconds == pytest.approx(12.0)
    assert dict(wave.waits) == pytest.approx({"network": 20.0, "shards": 4.0})


def test_the_second_wave_waits_for_the_first(examples: SimpleNamespace) -> None:
    """Norms of all shards, then the merge: reads and writes both take a worker's rate."""
    shard, command = examples.shards.Shard, examples.command
    shards = [shard(norms=6, read=6, size=2), shard(norms=0, read=3, size=1)]
    cluster = examples.simulation.Cluster(nodes=2, workers=1, network=100.0, storage=100.0)
    run = command.simulate(shards, cluster, command.Rates(norms=3.0, merge=4.0))
    assert (run.norms.seconds, run.merge.seconds) == pytest.approx((2.0, 2.0))
    assert dict(run.waits) == pytest.approx({"cores": 2.0 + 2.0 + 1.0, "shards": 2.0 + 1.0})


def test_no_limit_is_beaten(examples: SimpleNamespace) -> None:
    """More nodes take no longer, and never less than the storage or the largest shard does."""
    sizes = [float(1 + number % 7) for number in range(50)]
    last = float("inf")
    for nodes in (1, 2, 4, 8, 16, 32, 64, 128):
        cluster = examples.simulation.Cluster(nodes, workers=1, network=2.0, storage=20.0)
        seconds = examples.simulation.wave(sizes, cluster, 1.5).seconds
        assert seconds <= last * (1 + 1e-9)
        assert seconds >= max(sum(sizes) / 20.0, max(sizes) / 1.5, sum(sizes) / (1.5 * nodes))
        last = seconds


def test_bytes_are_those_that_inspect_tells(examples: SimpleNamespace, tmp_path: Path) -> None:
    """The shards' bytes add up to those that `inspect` tells of the same recipe."""
    hollow = examples.shards.Hollow(256, 512, 1000, 3, 8, filled=0, groups=2)
    plan = examples.shards.plan_of(hollow, 2, tmp_path)
    shards = plan.shards(500_000)
    made = sys.modules["_benchmark_models"].checkpoints(hollow, 2, tmp_path)
    recipe: dict[str, Any] = examples.shards.ties_recipe(made)
    config = MergeConfiguration.model_validate(recipe)
    told = inspect_recipe(config, yaml.safe_dump(recipe), MergeOptions(quiet=True))
    assert told.problems == ()
    assert told.totals is not None
    assert sum(one.norms + one.read for one in shards) == told.totals.read
    weights = 2 * hollow.parameters
    assert told.totals.output == weights < sum(one.size for one in shards) < 1.05 * weights
    assert max(one.size for one in shards) < 1_100_000  # the embeddings, alone: 1000 * 256 * 2
    assert len(plan.shards(0)) == 1


def test_where_it_stops(examples: SimpleNamespace) -> None:
    """It stops before the first doubling that brings less than a quarter."""
    stop = examples.command.stop
    assert stop([(1, 100.0), (2, 50.0), (4, 41.0), (8, 10.0)]) == 2
    assert stop([(1, 100.0), (2, 79.0)]) is None
    assert stop([(1, 100.0), (4, 60.0)]) == 1  # 1.67 times, where 1.75 are wanted of four times


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--workers", "5", "--cores", "4"], "wanted at most --cores 4"),
        (["--storage", "0"], "0.0 is not in the range x>0"),
        (["--network", "-1"], "-1.0 is not in the range x>0"),
        (["--nodes", "0"], "0 is not in the range"),
        (["--shard", "nan"], "wanted a finite number"),
        (["--merge-rate", "inf"], "wanted a finite number"),
    ],
)
def test_bad_options_are_refused(examples: SimpleNamespace, flags: list[str], text: str) -> None:
    """What no cluster has is refused with what is wanted, before anything is planned."""
    result = CliRunner().invoke(examples.command.main, flags)
    assert result.exit_code == 2
    assert text in result.stderr
