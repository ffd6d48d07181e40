"""A fork server in a network of its own, which is the loopback device alone, with a Ray in it.

A script, started by :class:`tests.cluster.server.ClusterServer`. Like ``runner.py`` of the whole
commands' tests it imports nothing from ``tests``, so that only the installed package counts.
``python networked.py probe`` ends with 0 where such a network can be had.

A job is that of ``runner.ForkServer``; ``merges``, command lines that one driver does one after
the other, whose workers stay the same ones; and ``kills``: each waits until a folder holds so many
whole shards, some ``seconds`` more, and kills the ``driver`` or a ``worker``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
import runner

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
TITLES = ("ray::merge", "ray::collect", "ray::meet", "ray::look", "ray::IDLE")


def alone() -> None:
    """Leave the network for one that has the loopback device only.

    Raises:
        OSError: the system does not permit it.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sH14s", b"lo", IFF_UP, b"")
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, up)


def serve(*preload: str) -> None:
    """Answer every job on stdin with how its command ended."""
    alone()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    private = Path("private").resolve()
    private.mkdir()
    nodes = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("nodes.py")), str(private)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    mains = runner.import_mains(*preload)
    assert nodes.stdout is not None and nodes.stdin is not None
    Path("address").write_text(nodes.stdout.readline().strip(), encoding="ascii")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            main = mains["mergekit-lines"]
            if job.get("merges"):
                main = functools.partial(all_of_one_driver, job["merges"], job["address"], main)
            runner._become(job, main)
        struck = [strike(child, kill) for kill in job.get("kills", ())]
        ended = runner._wait(child, job["timeout"])
        print(json.dumps({"returncode": ended, "struck": struck}), file=answers, flush=True)
    nodes.stdin.close()
    nodes.wait()


def all_of_one_driver(merges: list[list[str]], address: str, main: Any, prog_name: str) -> None:
    """Run command lines in this process, connected to Ray once for all of them."""
    from mergekit_lines.cluster import crew
    from mergekit_lines.cluster.connection import connected

    with connected(None, address, threads=1) as connection:
        same = mock.Mock(return_value=contextlib.nullcontext(connection))
        with mock.patch.object(crew, "connected", same):
            for words in merges:
                main(words, prog_name=prog_name, standalone_mode=False)
        assert same.call_count == len(merges)


def strike(driver: int, kill: dict[str, Any]) -> bool:
    """Kill a process at a moment that the progress of shards tells; tell whether it was there."""
    folder, number = Path(kill["folder"]), kill["shards"]
    while len(list(folder.glob("*.safetensors"))) < number or not folder.exists():
        if Path(kill["out"]).exists() or _ended(driver):
            return False
        time.sleep(0.005)
    time.sleep(kill["seconds"])
    victims = [driver] if kill["what"] == "driver" else workers()
    if not victims:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(victims[kill["choice"] % len(victims)], signal.SIGKILL)
    return True


def _ended(driver: int) -> bool:
    return (
        Path(f"/proc/{driver}/stat").read_text(encoding="utf-8").rsplit(")")[-1].split()[0] == "Z"
    )


def workers() -> list[int]:
    """Return the processes of Ray's workers in this network, which are nobody else's."""
    own, result = Path("/proc/self/ns/net").readlink(), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            if title.startswith(TITLES) and (place / "ns" / "net").readlink() == own:
                result.append(int(place.name))
    return sorted(result)


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        alone()
    else:
        serve(*sys.argv[2:])
