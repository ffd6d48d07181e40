"""Ray: a small one of this command's own, or a cluster that is joined.

Ray's own state is global to the process, and so is what is set here before it is imported.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mergekit_lines.errors import LinesError, ResumableError, reason
from mergekit_lines.host.process import available_cores, shared_threads

STORE = 256 << 20  # bytes for what is handed between processes: plans and numbers, no weights
STARTS = 3  # of a Ray of its own: Ray waits 30 s for it, and on a busy machine it takes longer
PATIENCE = 60.0  # seconds, after which it is asked whether there is still a machine that can work
SHORT = 20  # of a folder's path; a socket's may have 107 bytes, and 84 stand behind it
# Before Ray is imported: it reports nothing, says nothing, and leaves CUDA_VISIBLE_DEVICES alone
# where a task asks for no GPU.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# By this Ray stays on the loopback device, as it does on macOS and Windows: whoever reaches its
# ports may run code.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Other users of this machine have to know it (from Ray 2.52 on). Ray would make one of its own in
# the user's home, by which clusters that are started later would refuse who was not told of it.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@dataclass(frozen=True)
class Connection:
    """A Ray that this process is connected to.

    Attributes:
        ray: the module.
        workers: how many work at once at most.
        threads: of each of them.
        demands: what one of them asks of Ray, as arguments of ``options`` of a task or an actor.
        is_local: whether the command has started it for itself.
    """

    ray: Any
    workers: int
    threads: int
    demands: Mapping[str, float]
    is_local: bool

    def first_of(self, references: Sequence[Any]) -> Any:
        """Return one of them that is done, as soon as there is one.

        Raises:
            ResumableError: no machine that is left has room for a worker.
        """
        while True:
            done, _ = self.ray.wait(list(references), num_returns=1, timeout=PATIENCE)
            if done:
                return done[0]
            if not self.nodes():
                raise ResumableError(
                    "no machine of the cluster that is still there has room for a worker. Start "
                    "Ray on some again, and run the same command to go on."
                )

    def nodes(self) -> dict[str, str]:
        """Return the machines that can hold a worker: Ray's name of each, and what people see."""
        return {
            node["NodeID"]: str(node["NodeManagerAddress"])
            for node in self.ray.nodes()
            if node["Alive"] and _room(node["Resources"], self.demands)
        }


@contextmanager
def connected(
    workers: int | None, address: str | None, *, threads: int | None = None, gpus: bool = False
) -> Iterator[Connection]:
    """Start a Ray of ``workers`` on this machine, or join one; leave it as it was in the end.

    Args:
        workers: how many work at once; of a cluster that is joined None means all that have room.
        address: ``auto`` or ``host:port`` of a running Ray, or None to start one.
        threads: of each worker; None for this machine's cores shared out, or one on a cluster.
        gpus: give each worker a GPU of its own.

    Raises:
        LinesError: Ray is not installed, does not start or is not to be reached, or has no room.
    """
    ray = _ray(local=address is None)
    threads = threads or (shared_threads(workers) if workers and address is None else 1)
    demands = {"num_cpus": float(threads), "num_gpus": float(gpus)}
    if address is None:
        session = _start(ray, workers or _devices(gpus), demands)
    else:
        session = _join(ray, address)
    with session:
        room = sum(_room(node["Resources"], demands) for node in ray.nodes() if node["Alive"])
        if not room:
            raise LinesError(
                f"--ray-address {address}: no machine of this cluster has room for a worker, which "
                f"needs {threads} CPUs{' and a GPU' * gpus}. Give fewer --num-threads, or start "
                f"Ray with what the machines have (`ray start --num-cpus`, `--num-gpus`)."
            )
        yield Connection(ray, min(room, workers or room), threads, demands, address is None)


def _ray(*, local: bool) -> Any:
    """Import Ray, quiet, and on the loopback device where it will be this machine's alone."""
    own = {**LOOPBACK, **({} if "RAY_AUTH_MODE" in os.environ else TOKEN)} if local else {}
    for name, value in {**QUIET, **own}.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise LinesError(
            f"--workers, --ray-address: need Ray, which is not installed ({reason(error)}). Run "
            f"`pip install 'mergekit-lines[ray]'`, on a cluster on every machine."
        ) from error


def _devices(gpus: bool) -> int:
    """Return the number of workers where nobody has said one: the GPUs, or the cores."""
    if not gpus:
        return available_cores()
    import torch

    return torch.cuda.device_count()


@contextmanager
def _start(ray: Any, workers: int, demands: Mapping[str, float]) -> Iterator[None]:
    """Start a Ray for this command alone; its processes and files are gone in the end."""
    if demands["num_gpus"] and workers > _devices(gpus=True):
        raise LinesError(
            f"--workers {workers}: found {_devices(gpus=True)} GPUs, wanted one for each worker. "
            f"Give fewer workers, or drop --cuda."
        )
    place = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="lines-ray-", dir=place if len(place) < SHORT else "/tmp")  # noqa: S108
    try:
        with _session(
            ray,
            "a Ray of its own does not start here",
            address="local",
            num_cpus=workers * int(demands["num_cpus"]),
            num_gpus=workers * int(demands["num_gpus"]),
            object_store_memory=STORE,
            _temp_dir=folder,
        ):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _join(ray: Any, address: str) -> Iterator[None]:
    """Join a running Ray, which goes on in the end."""
    place, _, port = address.rpartition(":")
    if address != "auto" and ("/" in address or not place or not port.isdecimal()):
        raise LinesError(
            f"--ray-address: found {address!r}, wanted auto, or HOST:PORT as `ray start --head` "
            f"prints it for other machines."
        )
    failure = f"--ray-address {address}: no Ray is to be reached there"
    with _session(ray, failure, address=address):
        yield


@contextmanager
def _session(ray: Any, failure: str, **options: Any) -> Iterator[None]:
    """Connect this process, and put its signals back, of which Ray takes SIGTERM."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    local = "num_cpus" in options
    options |= {"include_dashboard": False if local else None, "log_to_driver": False}
    try:
        _connect(ray, STARTS if local else 1, logging_level="CRITICAL", **options)
    except Exception as error:  # Ray raises that too, where this machine is none of its own
        raise LinesError(
            f"{failure} ({reason(error)}). See that Ray runs (`ray status`), in the same version "
            f"of Ray and Python and with the same RAY_AUTH_MODE on every machine."
        ) from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, attempts: int, **options: Any) -> None:
    """Let Ray start or join, more than once where the first attempt fails."""
    for attempt in range(attempts):
        try:
            ray.init(**options)
        except Exception:
            ray.shutdown()
            if attempt == attempts - 1:
                raise
        else:
            return


def _room(resources: Mapping[str, float], demands: Mapping[str, float]) -> int:
    """Return the number of workers that a machine has room for."""
    rooms = [int(resources.get("CPU", 0) // demands["num_cpus"])]
    if demands["num_gpus"]:
        rooms.append(int(resources.get("GPU", 0) // demands["num_gpus"]))
    return min(rooms)
