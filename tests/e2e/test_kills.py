"""A merge that is killed or stopped at any moment: no half model, and the next run goes on.

``LINES_KILLS`` is how often each method is killed at random moments; with more than 40 it is also
killed both before and after every step that makes something durable or visible.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import models
from tests.e2e.runner import BIN, STUCK, environment, recipe_text
from tests.e2e.torture import (
    STEPS,
    Torturer,
    check_left,
    done_for_multi,
    output_digest,
    partial_of,
)

KILLS = int(os.environ.get("LINES_KILLS", "40"))
LOG = logging.getLogger(__name__)  # pytest -o log_cli=true --log-cli-level=INFO
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"wrap": "task_arithmetic"},
    "dare_ties": {"wrap": "dare_ties", "density": 0.5, "seed": 7},
    "lora": {"wrap": "task_arithmetic"},
}


@dataclass(frozen=True)
class Arena:
    """A folder with a recipe, and what its merge gives when it is left alone."""

    folder: Path
    flags: tuple[str, ...]
    digest: dict[str, str]
    tensors: models.Tensors
    calls: list[Any]

    @property
    def out(self) -> Path:
        """The folder that the merge makes."""
        return self.folder / "out"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes of a base, two fine-tuned models and two adapters."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, shape in {
        "small": {"hidden": 32, "vocab": 128},
        "large": {"hidden": 192, "vocab": 4000, "layers": 6},
    }.items():
        place = folder / name
        base = models.llama(place / "base", dtype=torch.bfloat16, seed=1, **shape)
        for number, tuned in enumerate("ab"):
            models.finetuned(base, place / tuned, seed=number, scale=0.05)
            models.lora(base, place / f"adapter_{tuned}", seed=number)
    return folder


def write_recipe(folder: Path, method: str, **parameters: Any) -> None:
    names = ("base+adapter_a", "base+adapter_b") if method == "lora" else ("a", "b")
    made = {
        "merge_method": "lines",
        "base_model": "base",
        "models": [{"model": name} for name in names],
        "parameters": {**METHODS[method], "alpha": 0.4, "beta": 0.5, **parameters},
    }
    made["parameters"] = {k: v for k, v in made["parameters"].items() if v is not None}
    (folder / "recipe.yml").write_text(recipe_text(made), encoding="utf-8")


def arena(torturer: Torturer, inputs: Path, folder: Path, method: str, shard_size: str) -> Arena:
    """Copy the inputs, merge them once undisturbed, and remove OUT again."""
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    write_recipe(folder, method)
    flags = ("--out-shard-size", shard_size)
    calls = folder / "calls.json"
    torturer.merge(folder, *flags, hooks=[("record", str(calls), *STEPS, "pwrite")]).succeeded()
    out = folder / "out"
    assert len(list(out.glob("*.safetensors"))) >= 5
    made = Arena(folder, flags, output_digest(out), models.read(out), json.loads(calls.read_text()))
    shutil.rmtree(out)
    return made


def kept_shards(arena: Arena) -> dict[str, tuple[int, int]]:
    """Return inode and time of the whole shards in the partial folder, by their final names."""
    return {
        path.name.removeprefix("partial-"): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in partial_of(arena.out).glob("*.safetensors")
    }


def check_and_resume(torturer: Torturer, arena: Arena) -> int:
    """Assert that nothing half loads, go on, and compare the bytes; return the shards kept."""
    out = arena.out
    check_left(out, arena.tensors)
    kept = kept_shards(arena)
    if out.exists():
        assert not kept
        again = torturer.merge(arena.folder, *arena.flags)
        assert "already holds a model" in again.refusal  # it is whole: check_left saw it
        Path(f"{partial_of(out)}.lock").unlink(missing_ok=True)
    else:
        again = torturer.merge(arena.folder, *arena.flags).succeeded()
        shards = sum(name.endswith(".safetensors") for name in arena.digest)
        assert (f"found {len(kept)} of {shards} shards in " in again.stderr) == bool(kept)
        for name, (inode, time_ns) in kept.items():
            stat = (out / name).stat()
            assert (stat.st_ino, stat.st_mtime_ns) == (inode, time_ns), f"{name} was merged again"
    assert output_digest(out) == arena.digest
    assert [path.name for path in arena.folder.iterdir() if path.name.startswith(".")] == []
    shutil.rmtree(out)
    return len(kept)


@pytest.mark.parametrize("method", METHODS)
def test_kills_at_random_moments(
    method: str, torturer: Torturer, inputs: Path, tmp_path: Path
) -> None:
    """SIGKILLs, three in four between the first byte of a shard and the last rename.

    When is said by the writes that have begun: a busy machine shifts no kill.
    """
    # Writes are slowed a little, so that the merge is a target that cannot be missed.
    hooks = [("slow", 0.004)]
    ring = arena(torturer, inputs / "large", tmp_path, method, "1500K")
    writes = [seconds for name, _, seconds in ring.calls if name == "pwrite"]
    end = max(seconds for name, _, seconds in ring.calls if name == "rename")
    tail = end - writes[-1]  # from the last write to the last rename
    random_numbers = random.Random(method)
    kills = inside = late = resumed = 0
    while inside < KILLS * 3 / 4 or kills < KILLS:
        # One in four before the first write; of the others one in four after the last.
        number = 0 if kills % 4 == 3 else random_numbers.randint(1, len(writes) * 4 // 3)
        span = tail if number >= len(writes) else 0.01 if number else writes[0]
        kill = {
            "signals": [signal.SIGKILL],
            "writes": min(number, len(writes)),
            "seconds": random_numbers.uniform(0, span),
        }
        ended = torturer.merge(ring.folder, *ring.flags, hooks=hooks, kill=kill)
        if ended.returncode == 0 or ring.out.exists():
            late += 1
            assert late < 2 * KILLS
            tail *= 0.9
        kills += ended.returncode == -signal.SIGKILL
        writing = list(partial_of(ring.out).glob("*.safetensors*"))
        inside += ended.returncode != 0 and bool(writing) and not ring.out.exists()
        resumed += bool(check_and_resume(torturer, ring))
    LOG.info("%s: %d kills, %d inside, %d found whole shards", method, kills, inside, resumed)
    assert resumed > KILLS / 4


@pytest.mark.parametrize("method", METHODS)
def test_kills_at_every_step(method: str, torturer: Torturer, inputs: Path, tmp_path: Path) -> None:
    """A SIGKILL at every fsync, rename and unlink, and at the first write of every shard."""
    ring = arena(torturer, inputs / "small", tmp_path, method, "20K")
    steps = [name for name, *_ in ring.calls if name in STEPS]
    assert steps.count("fsync") > 20 and steps.count("rename") > 10
    writes = [place for name, place, _ in ring.calls if name == "pwrite"]
    first = [writes.index(place) for place in dict.fromkeys(writes)]
    moments = ["before"] if KILLS <= 40 else ["before", "after"]
    dying = [("die", number, when, *STEPS) for number in range(len(steps)) for when in moments]
    dying += [("die", number, "after", "pwrite") for number in first]
    for hook in dying:
        # One thread: then the calls have the same numbers in every run.
        ended = torturer.merge(ring.folder, *ring.flags, "--num-threads", "1", hooks=[hook])
        assert ended.returncode == -signal.SIGKILL, hook
        check_and_resume(torturer, ring)
    LOG.info("%s: %d kills, %d steps, %d first writes", method, len(dying), len(steps), len(first))


def test_kills_while_files_move_into_a_folder_of_others(
    torturer: Torturer, inputs: Path, tmp_path: Path
) -> None:
    """Into an OUT that holds other things files go one by one: a kill between two is got over."""
    ring = arena(torturer, inputs / "small", tmp_path, "task_arithmetic", "20K")
    calls = tmp_path / "calls.json"

    def note() -> None:
        ring.out.mkdir()
        (ring.out / "notes.txt").write_text("mine")

    note()
    torturer.merge(tmp_path, *ring.flags, hooks=[("record", str(calls), *STEPS)]).succeeded()
    steps = json.loads(calls.read_text())
    first = next(
        number
        for number, (name, place, _) in enumerate(steps)
        if name == "rename" and place == "README.md"
    )
    found_in_out = []
    for number in range(first, len(steps)):
        shutil.rmtree(ring.out)
        note()
        ended = torturer.merge(tmp_path, *ring.flags, hooks=[("die", number, "before", *STEPS)])
        assert ended.returncode == -signal.SIGKILL
        (ring.out / "notes.txt").unlink()
        done = (ring.out / "config.json").exists()
        found_in_out.append(len(list(ring.out.iterdir())))
        if done:
            check_left(ring.out, ring.tensors)
        else:
            assert not done_for_multi(partial_of(ring.out))
            again = torturer.merge(tmp_path, *ring.flags).succeeded()
            assert "shards in " in again.stderr
        assert output_digest(ring.out) == ring.digest
        shutil.rmtree(partial_of(ring.out), ignore_errors=True)
    assert found_in_out[0] == 0 and len(set(found_in_out)) == len(ring.digest) + 1


def rewrite_shard(folder: Path) -> None:
    def change(tensors: models.Tensors) -> None:
        tensors["model.norm.weight"] += 1

    models.rewrite(folder / "a", change)


def change_adapter(folder: Path) -> None:
    config = folder / "adapter_a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))


OTHERS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...], str]] = {
    "beta": (
        *("dare_ties", lambda folder: write_recipe(folder, "dare_ties", beta=0.6), ()),
        "the recipe differ",
    ),
    "seed": ("dare_ties", lambda folder: None, ("--random-seed", "8"), "the seed differ"),
    "shard size": (
        *("dare_ties", lambda folder: None, ("--out-shard-size", "30K")),
        "--out-shard-size differ",
    ),
    "a rewritten shard": ("dare_ties", rewrite_shard, (), "model a (model.safetensors) differ"),
    "a touched shard": (
        *("dare_ties", lambda folder: os.utime(folder / "b" / "model.safetensors"), ()),
        "model b (model.safetensors) differ",
    ),
    "a changed adapter": (
        *("lora", change_adapter, ()),
        "model base+adapter_a (adapter_config.json) differ",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_merge_does_not_go_on(
    name: str, torturer: Torturer, inputs: Path, tmp_path: Path
) -> None:
    """Another recipe, option or input is refused by name, and spoils nothing of the first."""
    method, change, flags, phrase = OTHERS[name]
    sound, changed = tmp_path / "sound", tmp_path / "changed"
    shutil.copytree(inputs / "small", sound)
    # The seed is in no recipe here: a flag beside it would be refused for that.
    seed = {"seed": None} if name == "seed" else {}
    write_recipe(sound, method, **seed)
    usual = ("--out-shard-size", "20K")
    first = torturer.merge(sound, *usual, hooks=[("die", 6, "after", "rename")])
    assert first.returncode == -signal.SIGKILL
    kept = shards_of(partial_of(sound / "out"))
    assert len(kept) == 3
    # A ctime cannot be put back: what changes is a copy, with the partial folder beside it.
    shutil.copytree(sound, changed)
    change(changed)
    refusal = torturer.merge(changed, *usual, *flags).refusal
    partial = partial_of(changed / "out")
    assert phrase in refusal
    assert "shards of an interrupted merge" in refusal and str(partial) in refusal
    assert shards_of(partial) == kept
    shutil.rmtree(partial_of(sound / "out"))
    partial.rename(partial_of(sound / "out"))
    assert "shards in " in torturer.merge(sound, *usual).succeeded().stderr
    whole = models.weights_digest(sound / "out")
    torturer.merge(sound, *usual, out="again").succeeded()
    assert models.weights_digest(sound / "again") == whole


def test_an_input_whose_time_was_put_back_is_another(
    torturer: Torturer, inputs: Path, tmp_path: Path
) -> None:
    """An input rewritten in place between a kill and the next run is seen by its ctime."""
    shutil.copytree(inputs / "small", tmp_path, dirs_exist_ok=True)
    write_recipe(tmp_path, "dare_ties")
    usual = ("--out-shard-size", "20K")
    torturer.merge(tmp_path, *usual, hooks=[("die", 6, "after", "rename")])
    file = tmp_path / "b" / "model.safetensors"
    stat, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    refusal = torturer.merge(tmp_path, *usual).refusal
    assert "model b (model.safetensors) differ" in refusal


def test_another_merge_begins_anew_once_the_folder_is_gone(
    torturer: Torturer, inputs: Path, tmp_path: Path
) -> None:
    """The remedy that the refusal names: the folder is removed, the other merge is done."""
    shutil.copytree(inputs / "small", tmp_path, dirs_exist_ok=True)
    write_recipe(tmp_path, "dare_ties")
    usual = ("--out-shard-size", "20K")
    torturer.merge(tmp_path, *usual, hooks=[("die", 7, "after", "rename")])
    write_recipe(tmp_path, "dare_ties", beta=0.6)
    assert "remove the folder" in torturer.merge(tmp_path, *usual).refusal
    shutil.rmtree(partial_of(tmp_path / "out"))
    assert "shards in " not in torturer.merge(tmp_path, *usual).succeeded().stderr
    torturer.merge(tmp_path, *usual, out="again").succeeded()
    assert models.digest(tmp_path / "out").keys() == models.digest(tmp_path / "again").keys()
    assert models.weights_digest(tmp_path / "out") == models.weights_digest(tmp_path / "again")


def shards_of(folder: Path) -> dict[str, str]:
    """Return the digests of the safetensors files in a folder."""
    found = models.digest(folder)
    return {name: value for name, value in found.items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a merge that takes some seconds, in shards of a few tensors."""
    folder = tmp_path_factory.mktemp("huge")
    shape = {"hidden": 768, "vocab": 12_000, "layers": 6}
    base = models.llama(folder / "base", dtype=torch.bfloat16, **shape)
    for number, tuned in enumerate("ab"):
        models.finetuned(base, folder / tuned, seed=number, scale=0.05)
    parameters = {"wrap": "dare_ties", "density": 0.5, "alpha": 0.4, "beta": 0.5}
    names = [{"model": name} for name in "ab"]
    made = {"merge_method": "lines", "base_model": "base", "models": names}
    (folder / "recipe.yml").write_text(recipe_text({**made, "parameters": parameters}))
    return folder


Status = dict[str, str]


def wait_until(process: subprocess.Popen[str], condition: Callable[[Status], bool]) -> None:
    """Return when the kernel's account of a process fulfils a condition, or it has ended."""
    deadline = time.monotonic() + STUCK
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if condition({key: value.strip() for key, _, value in (x.partition(":") for x in lines)}):
            return
        assert time.monotonic() < deadline
        time.sleep(0.002)


def of_ended_processes() -> float:
    """Return the seconds of computing of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def computed(process: subprocess.Popen[str]) -> float:
    """Return the seconds of computing that a process has had so far."""
    numbers = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def has_arrived(number: signal.Signals, status: Status) -> bool:
    """Tell whether a signal that was sent to a process is no longer waiting for it."""
    return not int(status["ShdPnd"], 16) >> (number - 1) & 1


@pytest.mark.parametrize(
    ("signals", "statuses"),
    [
        ([signal.SIGINT], {1}),
        ([signal.SIGINT, signal.SIGINT], {1, -signal.SIGINT}),  # Python itself may be ending
        ([signal.SIGTERM], {128 + signal.SIGTERM}),
    ],
    ids=["Ctrl-C", "twice", "SIGTERM"],
)
def test_a_signal_ends_a_merge_at_once(
    signals: list[signal.Signals], statuses: set[int], huge: Path, torturer: Torturer
) -> None:
    """Ctrl-C, an impatient second one, SIGTERM: no other shard is made, and told how to go on."""
    out = huge / "out"
    shutil.rmtree(partial_of(out), ignore_errors=True)  # a failed test may have left it
    command = [BIN / "mergekit-yaml", "recipe.yml", "out", "--out-shard-size", "10M"]
    others = of_ended_processes()
    process = subprocess.Popen(
        command,
        cwd=huge,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + STUCK
    while not list(partial_of(out).glob("*.safetensors")):  # other files come and go
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.002)
    # It stands still until the first signal is there: what it does then, it does after that.
    process.send_signal(signal.SIGSTOP)
    wait_until(process, lambda status: status["State"].startswith("T"))
    made_before = shards_of(partial_of(out))
    used_before = computed(process)
    for number in signals:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        wait_until(process, functools.partial(has_arrived, number))
        time.sleep(0.05 * (len(signals) - 1))
    stderr = process.communicate(timeout=STUCK)[1]
    used = of_ended_processes() - others - used_before
    name = "+".join(number.name for number in signals)
    LOG.info("%s: ended after %.2f s of computing", name, used)
    assert used <= 20  # seconds of its own computing: some tenths
    made_after = shards_of(partial_of(out)).keys() - made_before.keys()
    assert len(made_after) <= 1  # one may have been whole but for its name
    assert "Traceback" not in stderr, stderr
    assert process.returncode in statuses
    assert not out.exists()
    assert len(signals) > 1 or "whole shards are kept. Run the same command to go on" in stderr
    again = torturer.merge(huge, "--out-shard-size", "10M").succeeded()
    assert "shards in " in again.stderr
    if not (huge / "whole").exists():
        torturer.merge(huge, "--out-shard-size", "10M", out="whole").succeeded()
    assert models.weights_digest(out) == models.weights_digest(huge / "whole")
    assert len(shards_of(out)) > len(made_before) + 2  # so that another one could have been made
    shutil.rmtree(out)


def test_ctrl_c_before_a_shard_is_whole(huge: Path, torturer: Torturer) -> None:
    """Of one shard nothing can be kept: that is told, and what would lose less."""
    kill = {"signals": [signal.SIGINT], "writes": 3, "seconds": 0}
    ended = torturer.merge(huge, hooks=[("slow", 0.02)], kill=kill)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert "stopped before a shard was whole; nothing is kept" in ended.stderr
    assert "--out-shard-size" in ended.stderr
    assert sorted(path.name for path in huge.iterdir() if "out" in path.name) == []
