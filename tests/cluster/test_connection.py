"""A Ray of a command's own: on the loopback device, quiet, and gone in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_lines.cluster.connection import connected
from mergekit_lines.errors import LinesError
from tests.e2e.runner import environment

LOCAL = """
import glob, json, os, signal, sys, tempfile
from mergekit_lines.cluster.connection import connected

with connected(2, None) as connection:
    def work():
        import os, time
        time.sleep(0.5)
        return os.getpid()
    task = connection.ray.remote(work).options(**connection.demands)
    workers = connection.ray.get([task.remote() for _ in range(4)])
    names = list(connection.nodes().values())
    count = connection.workers
print(json.dumps({
    "workers": workers, "names": names, "count": count,
    "handler": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "folders": glob.glob(tempfile.gettempdir() + "/lines-ray-*"),
    "alive": [pid for pid in workers if os.path.exists(f"/proc/{pid}")],
}))
"""


def test_a_ray_of_its_own_is_private_quiet_and_gone_in_the_end(tmp_path: Path) -> None:
    """Its workers listen on loopback alone; it says nothing, and leaves no process and no file."""
    place = tmp_path / "t"
    place.mkdir()
    variables = {**environment(), "TMPDIR": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], env=variables, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert len(set(told["workers"])) == told["count"] == 2
    assert told["names"] == ["127.0.0.1"]
    assert (told["alive"], told["folders"], told["handler"]) == ([], [], True)


def test_without_ray_the_flags_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing Ray is one sentence with the command that installs it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(LinesError, match=r"Run `pip install 'mergekit-lines\[ray\]'`"),
        connected(2, None),
    ):
        pass


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """Only auto and HOST:PORT are taken, before anything is asked of the network."""
    with pytest.raises(LinesError, match=r"wanted auto, or HOST:PORT"), connected(None, address):
        pass
