"""A merge's output shards on the workers of a cluster that is not there: who waits for what."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

CORES, NETWORK, STORAGE, SHARDS = "cores", "network", "storage", "shards"
ROUNDING = 1e-9  # of a shard's bytes: what is left of it is nothing


@dataclass(frozen=True)
class Cluster:
    """Machines that share one storage; rates in bytes per second, read and written together.

    Args:
        nodes: how many.
        workers: of each node.
        network: of each node, shared evenly by the workers that are busy there.
        storage: of all nodes, shared evenly by all workers that are busy.
    """

    nodes: int
    workers: int
    network: float
    storage: float


@dataclass(frozen=True)
class Wave:
    """How it went.

    Args:
        seconds: until the last shard was done.
        node: of each shard, in their order.
        waits: worker-seconds by what limited them; SHARDS is where none was left to do.
    """

    seconds: float
    node: tuple[int, ...]
    waits: Counter[str]


def wave(sizes: Sequence[float], cluster: Cluster, speed: float) -> Wave:
    """Let workers do shards, in their order, each the next one as soon as it is free.

    A shard goes to the node with the fewest busy workers, as Ray spreads tasks.

    Args:
        sizes: bytes that each shard moves.
        cluster: whose workers do them.
        speed: of one worker that waits for nothing, in bytes per second.
    """
    everyone = cluster.nodes * cluster.workers
    waiting, left = deque(range(len(sizes))), dict[int, float]()
    node, busy = [0] * len(sizes), [0] * cluster.nodes
    waits, seconds = Counter[str](), 0.0
    while waiting or left:
        while waiting and len(left) < everyone:
            shard = waiting.popleft()
            node[shard] = busy.index(min(busy))
            busy[node[shard]] += 1
            left[shard] = sizes[shard]
        limits = {shard: _limit(cluster, speed, busy[node[shard]], len(left)) for shard in left}
        step = min(left[shard] / rate for shard, (rate, _) in limits.items())
        seconds += step
        waits[SHARDS] += step * (everyone - len(left))
        for shard, (rate, name) in limits.items():
            waits[name] += step
            left[shard] -= step * rate
            if left[shard] <= ROUNDING * sizes[shard]:
                del left[shard]
                busy[node[shard]] -= 1
    return Wave(seconds, tuple(node), waits)


def _limit(cluster: Cluster, speed: float, beside: int, busy: int) -> tuple[float, str]:
    """Return a worker's rate and what it hangs on, with so many busy on its node and in all."""
    return min(
        (speed, CORES), (cluster.network / beside, NETWORK), (cluster.storage / busy, STORAGE)
    )
