"""A Ray of a command's own: on the loopback device, quiet, and gone in the end."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mergekit_lines.checkpoint.writer import Slot, lay_out
from mergekit_lines.cli import main
from mergekit_lines.cli.options.workers import shared_among
from mergekit_lines.cluster.connection import Connection, _session, connected
from mergekit_lines.errors import LinesError, ResumableError
from mergekit_lines.plan.sizes import idle_workers
from tests.e2e.runner import STUCK, environment, recipe_text
from tests.models import weights_digest

LOCAL = """
import glob, json, os, signal, sys, tempfile
from mergekit_lines.cluster.connection import _session, connected

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
}))
"""


def _is_running(pid: int) -> bool:
    """Whether a process does anything still: a dead one stays on the table until init takes it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_ray_of_its_own_is_private_quiet_and_gone_in_the_end(tmp_path: Path) -> None:
    """Its workers listen on loopback alone; it says nothing, and leaves no process and no file."""
    place = tmp_path / "t"
    place.mkdir()
    home = tmp_path / "home"
    variables = {**environment(), "TMPDIR": str(place), "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], env=variables, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert not home.exists()  # where a token would make later clusters refuse whoever has none
    assert len(set(told["workers"])) == told["count"] == 2
    assert told["names"] == ["127.0.0.1"]
    assert (told["folders"], told["handler"]) == ([], True)
    end = (
        time.monotonic() + STUCK
    )  # they were told to end, and on a busy machine that takes a while
    while any(map(_is_running, told["workers"])):
        assert time.monotonic() < end
        time.sleep(0.05)


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


def test_everything_else_works_without_ray(
    llama_base: Path, llama_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray not installed: a merge goes as ever, ``--multi-gpu`` too, and ``--workers`` is told."""
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = write_recipe(llama_base, llama_a, tmp_path)

    def merge(out: str, *flags: str) -> Result:
        return CliRunner().invoke(main, ["merge", str(recipe), str(tmp_path / out), *flags])

    plain, gpus, shared = merge("plain"), merge("gpus", "--multi-gpu"), merge("x", "--workers", "2")
    assert (plain.exit_code, gpus.exit_code, shared.exit_code) == (0, 0, 1), gpus.output
    assert "--multi-gpu is ignored" in gpus.output
    assert "Run `pip install 'mergekit-lines[ray]'`" in shared.output
    assert weights_digest(tmp_path / "gpus") == weights_digest(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpus", "plain", "recipe.yml"]


def test_one_gpu_by_its_number_is_refused(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """``--device cuda:1`` names a GPU of one machine, which no worker of a cluster can be given."""
    recipe = write_recipe(llama_base, llama_a, tmp_path)
    flags = ["--workers", "2", "--device", "cuda:1"]
    done = CliRunner().invoke(main, ["merge", str(recipe), str(tmp_path / "out"), *flags])
    assert "--device cuda:1: found one GPU of a machine, wanted cuda" in done.output


def write_recipe(base: Path, tuned: Path, folder: Path) -> Path:
    """Write a recipe of mergekit's own TIES, and return its file."""
    recipe = folder / "recipe.yml"
    words = {"merge_method": "ties", "base_model": str(base), "models": [{"model": str(tuned)}]}
    parameters = {"weight": 1.0, "density": 0.5}
    recipe.write_text(recipe_text({**words, "parameters": parameters}), encoding="utf-8")
    return recipe


@pytest.mark.parametrize(("gpus", "there", "workers"), [(2, True, 2), (1, True, 0), (2, False, 0)])
def test_multi_gpu_is_a_worker_for_each_gpu(
    gpus: int, there: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs and Ray make two workers; one GPU, or no Ray, leave what the stock commands do."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None)
    names = ("cuda", "gpu_rich", "quiet")
    flags = {"multi_gpu": True, "device": None, "num_threads": None, **dict.fromkeys(names, False)}
    cluster, left = shared_among(None, None, flags)
    if not workers:
        assert (cluster, left) == (None, flags)
        return
    assert isinstance(cluster, functools.partial)
    assert (cluster.keywords["workers"], cluster.keywords["gpus"]) == (workers, True)
    assert (left["cuda"], left["multi_gpu"]) == (True, False)


@pytest.mark.parametrize(("shards", "workers"), [(1, 2), (3, 8)])
def test_fewer_shards_than_workers_are_told(shards: int, workers: int) -> None:
    """The size that is advised gives every worker several shards."""
    slots = [Slot(f"t{number}", (1000, 1000), torch.float32) for number in range(96)]
    size = sum(slot.bytes for slot in slots)
    text = idle_workers(lay_out(slots, size // shards), workers)
    assert text is not None and f"{workers - shards} of {workers} workers" in text
    advised = int(text.rpartition("--out-shard-size ")[2].split("M")[0]) * 1_000_000
    assert len(lay_out(slots, advised)) >= 2 * workers
    assert idle_workers(lay_out(slots, advised), workers) is None


class Slow:
    """Stands for Ray on a machine that is too busy for its first attempts."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, list[str]()

    def init(self, **_options: Any) -> None:
        self.calls.append("init")
        if self.calls.count("init") <= self.failures:
            raise RuntimeError("The current node timed out during startup")

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_a_ray_that_does_not_come_up_in_time_is_started_again() -> None:
    """One of the command's own has three attempts, one that is joined has one; then it is told."""
    ray = Slow(2)
    with _session(ray, "no Ray", address="local", num_cpus=1):
        assert ray.calls == ["init", "shutdown"] * 2 + ["init"]
    for ray, options in ((Slow(3), {"num_cpus": 1}), (Slow(1), {})):
        with (
            pytest.raises(LinesError, match=r"no Ray .*timed out during startup"),
            _session(ray, "no Ray", address="here", **options),
        ):
            pytest.fail("it is connected")
        assert ray.calls == ["init", "shutdown"] * ray.failures


class Gone:
    """Stands for a Ray whose machines have gone one after the other."""

    def __init__(self, alive: list[bool]) -> None:
        self.alive = alive

    def wait(self, references: list[str], **_options: Any) -> tuple[list[str], list[str]]:
        return [], references

    def nodes(self) -> list[dict[str, Any]]:
        alive = self.alive.pop(0)
        room = {"CPU": 1.0}
        return [{"NodeID": "1", "NodeManagerAddress": "a", "Alive": alive, "Resources": room}]


def test_a_cluster_without_machines_is_not_waited_for() -> None:
    """As long as one is there that has room its work is waited for; then it is told."""
    ray = Gone([True, True, False])
    connection = Connection(ray, 1, 1, {"num_cpus": 1.0, "num_gpus": 0.0}, is_local=False)
    with pytest.raises(ResumableError, match="no machine of the cluster that is still there"):
        connection.first_of(["work"])
    assert ray.alive == []


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_device_is_known_before_workers_share_it(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is a GPU for each worker where there is one; the CPU beside --multi-gpu wins."""
    flags = {"multi_gpu": device == "cpu", "device": device, "cuda": False, "gpu_rich": False}
    flags |= {"num_threads": 1, "quiet": True}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if device == "cpu":
        assert shared_among(None, None, flags) == (None, flags)
        return
    cluster, given = shared_among(2, None, flags)
    assert isinstance(cluster, functools.partial)
    assert (given["device"], cluster.keywords["gpus"]) == ("cuda", True)
