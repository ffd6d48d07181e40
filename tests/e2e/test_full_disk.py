"""A disk that is full before or during a merge: one sentence, nothing half, and the rest later."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import models
from tests.e2e.runner import recipe_text
from tests.e2e.torture import (
    Ending,
    Hook,
    Torturer,
    check_left,
    output_digest,
    partial_of,
)

FLAGS = ("--out-shard-size", "70K")
PAGE = 4096


class Place:
    """A recipe, what it gives, and where it is merged to."""

    def __init__(self, folder: Path, torturer: Torturer) -> None:
        self.folder, self._torturer = folder, torturer
        base = models.llama(folder / "base", hidden=64, vocab=400, dtype=torch.bfloat16)
        for number, name in enumerate("ab"):
            models.finetuned(base, folder / name, seed=number, scale=0.05)
        made = {
            "merge_method": "lines",
            "base_model": "base",
            "models": [{"model": name} for name in "ab"],
            "parameters": {"wrap": "ties", "density": 0.5, "alpha": 0.4, "beta": 0.5},
        }
        (folder / "recipe.yml").write_text(recipe_text(made))
        calls = folder / "calls.json"
        record = ("record", str(calls), "pwrite", "fsync", "rename")
        # One thread: then the calls have the same numbers in every run.
        self.merge("sound/out", record).succeeded()
        self.digest = output_digest(folder / "sound" / "out")
        self.tensors = models.read(folder / "sound" / "out")
        self.calls = [name for name, *_ in json.loads(calls.read_text())]
        self.bytes = sum(
            path.stat().st_size for path in (folder / "sound" / "out").glob("*.safetensors")
        )

    def merge(self, out: str, *hooks: Hook) -> Ending:
        """Merge to a folder."""
        return self._torturer.merge(self.folder, *FLAGS, "--num-threads", "1", out=out, hooks=hooks)

    def check_full(self, ended: Ending, out: str) -> None:
        """Assert that a merge ended by the sentence about the disk, and left nothing half."""
        assert "the disk is full" in ended.refusal
        assert len(ended.refusal.splitlines()) == 1
        assert not (self.folder / out).exists()
        check_left(self.folder / out, self.tensors)

    def check_resumes(self, out: str) -> None:
        """Assert that another run goes on from what is kept, to the same bytes; remove OUT."""
        kept = len(list(partial_of(self.folder / out).glob("*.safetensors")))
        again = self.merge(out).succeeded()
        assert (f"found {kept} of " in again.stderr) == bool(kept)
        assert output_digest(self.folder / out) == self.digest
        shutil.rmtree(self.folder / out)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, torturer: Torturer) -> Place:
    """A merge into half a dozen shards."""
    made = Place(tmp_path_factory.mktemp("place"), torturer)
    assert len(list((made.folder / "sound" / "out").glob("*.safetensors"))) >= 6
    return made


@pytest.fixture
def disk(place: Place) -> Iterator[Path]:
    """A disk of its own in the merge's folder, a little larger than the output."""
    disk = place.folder / "disk"
    disk.mkdir()
    size = place.bytes + 100 * PAGE
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size // PAGE * PAGE}", "tmpfs", disk]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        disk.rmdir()
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


def leave(disk: Path, free: int) -> Path:
    """Fill a disk up, but for so many bytes, and return the file that fills it."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes(max(shutil.disk_usage(disk).free - free, 0) // PAGE * PAGE))
    return filler


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_disk_too_small_is_refused_first(share: float, place: Place, disk: Path) -> None:
    """Where the shards do not fit, nothing is merged, and nothing is left."""
    leave(disk, int(share * place.bytes))
    refusal = place.merge("disk/out").refusal
    assert "bytes more on this disk" in refusal or (share == 0 and "disk is full" in refusal)
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_a_disk_that_fills_up_during_the_merge(share: float, place: Place, disk: Path) -> None:
    """Another file takes the space at some write: one sentence; with space the merge goes on."""
    number = int(share * place.calls.count("pwrite"))
    filler = disk / "filler"
    ended = place.merge("disk/out", ("fill", number, str(filler), 2 * PAGE))
    place.check_full(ended, "disk/out")
    kept = sorted(partial_of(disk / "out").glob("*.safetensors"))
    assert kept or share < 0.5
    assert "whole shards are kept" in ended.stderr or not kept
    # Impatience loses nothing: what is kept stays while the disk is full. A shard that was on its
    # way to the disk may become whole now, in the room that half a shard behind it gave up.
    assert place.merge("disk/out").refusal
    after = sorted(partial_of(disk / "out").glob("*.safetensors"))
    assert after[: len(kept)] == kept
    assert len(after) <= len(kept) + 1
    filler.unlink()
    place.check_resumes("disk/out")
    assert list(disk.iterdir()) == []


def test_room_for_the_shards_and_not_for_the_rest(place: Place, disk: Path) -> None:
    """Page by page more room behind the shards: index, tokenizer, report and card fit or not."""
    succeeded = []
    for pages in range(0, 40, 3):
        filler = leave(disk, place.bytes + pages * PAGE)
        ended = place.merge("disk/out")
        succeeded.append(ended.returncode == 0)
        if not succeeded[-1]:
            assert "the disk is full" in ended.refusal or "more on this disk" in ended.refusal
            check_left(disk / "out", place.tensors)
            filler.unlink()
            place.check_resumes("disk/out")
        else:
            assert output_digest(disk / "out") == place.digest
            shutil.rmtree(disk / "out")
    assert succeeded == sorted(succeeded) and set(succeeded) == {False, True}


def test_the_disk_itself_as_out(place: Place, disk: Path) -> None:
    """OUT that is a mount point fills up, too: files move into it one by one in the end."""
    filler = disk / "filler"
    ended = place.merge("disk", ("fill", 20, str(filler), PAGE))
    assert "the disk is full" in ended.refusal
    assert not (disk / "config.json").exists()
    filler.unlink()
    assert "shards in " in place.merge("disk").succeeded().stderr
    # The card is called by the folder's name.
    assert {**output_digest(disk), "README.md": ""} == {**place.digest, "README.md": ""}


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_no_space_at_any_call(call: str, place: Place, tmp_path: Path) -> None:
    """The disk says that it is full at the n-th call and all later ones, for many an n."""
    count = place.calls.count(call)
    step = {"pwrite": 4, "fsync": 2, "rename": 1}[call]
    kept = []
    for number in range(0, count, step):
        ended = place.merge("full/out", ("fail", number, call))
        if (place.folder / "full" / "out").exists():
            # Behind the last rename OUT is whole, durable or not.
            check_left(place.folder / "full" / "out", place.tensors)
            assert call == "fsync" and number >= count - 2
            assert "the disk is full" in ended.refusal
            shutil.rmtree(place.folder / "full")
            continue
        place.check_full(ended, "full/out")
        kept.append(len(list(partial_of(place.folder / "full" / "out").glob("*.safetensors"))))
        place.check_resumes("full/out")
    assert kept[0] == 0 and kept[-1] >= 5


def test_no_space_for_the_tokenizer(place: Place) -> None:
    """mergekit only logs a tokenizer that it could not copy; a merge without it is no success."""
    ended = place.merge("full/out", ("copying_fails",))
    place.check_full(ended, "full/out")
    place.check_resumes("full/out")
