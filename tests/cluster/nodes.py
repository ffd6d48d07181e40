"""Two nodes of Ray with a CPU each, on this machine, until stdin ends.

A script: ``python nodes.py PRIVATE`` prints the address for ``--ray-address``. The second node does
not see what lies in the folder PRIVATE.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.cluster_utils import Cluster

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def checked(status: int) -> None:
    """Raise what a call of the C library has ended with."""
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def hide(folder: str) -> None:
    """Let the children of this process see an empty folder there."""
    libc = ctypes.CDLL(None, use_errno=True)
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    checked(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, None))


def started(start: Callable[[], Any]) -> Any:
    """Return what starts a node: Ray waits 30 s for one, and on a busy machine it takes longer."""
    for _ in range(2):
        with suppress(Exception):
            return start()
    return start()


head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
hide(sys.argv[1])
started(lambda: cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
sys.stdout.write(f"{cluster.address}\n")
sys.stdout.flush()
sys.stdin.read()
cluster.shutdown()
