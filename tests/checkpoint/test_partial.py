"""The partial folder: what of it is taken over, what is refused, and what is never touched.

The oracle is the bytes that were put there, and safetensors' own reader.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lines import LinesError
from mergekit_lines.checkpoint.out import Out, model_folder, partial_path
from mergekit_lines.checkpoint.partial import Partial, partial_folder
from mergekit_lines.checkpoint.sources import Shard
from mergekit_lines.checkpoint.state import MARK, mark_of
from mergekit_lines.checkpoint.writer import ShardLayout, ShardWriter, Slot, lay_out, whole_name
from mergekit_lines.errors import ResumableError

VALUES = {f"layer.{number}": torch.arange(64.0) + number for number in range(4)}
MERGE = {"the recipe": "one"}


def layout() -> list[ShardLayout]:
    """Four tensors in two shards."""
    slots = [Slot(name, tuple(values.shape), values.dtype) for name, values in VALUES.items()]
    return lay_out(slots, 2 * 64 * 4)


def fill(partial: Partial, shards: list[ShardLayout], names: list[str]) -> ShardWriter:
    """Write some of the tensors."""
    writer = ShardWriter(partial.path, shards, partial.vouch)
    for name in names:
        if writer.wants(name):
            writer.sink(name).write(0, VALUES[name])
            writer.finished(name)
    writer.close()
    return writer


class Interrupted(BaseException):
    """As Ctrl-C."""


def interrupted(out: Out) -> Path:
    """Merge three of four tensors to OUT, and be stopped; return the shard that is whole."""

    def merge() -> None:
        with partial_folder(out, lambda _: None) as partial:
            partial.begin(MERGE, layout())
            fill(partial, layout(), list(VALUES)[:3])
            raise Interrupted

    with pytest.raises(Interrupted):
        merge()
    (whole,) = partial_path(out.path).glob("*.safetensors")
    return whole


def resumed(out: Out) -> tuple[list[str], set[str]]:
    """Merge to the end; return what was told, and which shards were kept."""
    told: list[str] = []
    with partial_folder(out, told.append) as partial:
        partial.begin(MERGE, layout())
        kept = fill(partial, layout(), list(VALUES)).done
        (partial.path / "config.json").write_text("{}")
        partial.publish(layout())
    return told, kept


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return model_folder(tmp_path / "OUT")


def loaded(out: Out) -> dict[str, torch.Tensor]:
    return {k: v for file in out.path.glob("*.safetensors") for k, v in load_file(file).items()}


def check_whole(out: Out) -> None:
    """Assert that OUT holds the values that were written."""
    tensors = loaded(out)
    assert tensors.keys() == VALUES.keys()
    assert all(tensors[name].equal(VALUES[name]) for name in VALUES)
    assert not partial_path(out.path).exists()


def test_a_sound_shard_is_kept(out: Out) -> None:
    """A shard whose digest is that of its state is not made again."""
    interrupted(out)
    told, kept = resumed(out)
    assert kept == {"model-00001-of-00002.safetensors"}
    assert told == [
        f"found 1 of 2 shards in {partial_path(out.path)}, left by a merge that was killed or "
        f"stopped: going on behind them"
    ]
    check_whole(out)


def test_the_last_shard_is_kept_too(out: Out) -> None:
    """Where all shards are whole and OUT is not, none is made again."""

    def merge() -> None:
        with partial_folder(out, lambda _: None) as partial:
            partial.begin(MERGE, layout())
            fill(partial, layout(), list(VALUES))
            raise Interrupted

    with pytest.raises(Interrupted):
        merge()
    told, kept = resumed(out)
    assert len(kept) == 2
    assert "found 2 of 2 shards" in told[0]
    check_whole(out)


def test_a_damaged_last_shard_is_made_again(out: Out) -> None:
    """Of the last shard the header and samples are held against their digest."""

    def merge() -> None:
        with partial_folder(out, lambda _: None) as partial:
            partial.begin(MERGE, layout())
            fill(partial, layout(), list(VALUES))
            raise Interrupted

    with pytest.raises(Interrupted):
        merge()
    all_zeros(partial_path(out.path) / "partial-model-00002-of-00002.safetensors")
    told, kept = resumed(out)
    assert kept == {"model-00001-of-00002.safetensors"}
    assert "model-00002-of-00002.safetensors in " in told[0]
    check_whole(out)


def zeros(whole: Path) -> None:
    """Let the end of the file be zeros, as after a disk that lost a page."""
    with whole.open("r+b") as file:
        file.seek(-32, os.SEEK_END)
        file.write(bytes(32))


def all_zeros(whole: Path) -> None:
    whole.write_bytes(bytes(whole.stat().st_size))


def shorter(whole: Path) -> None:
    os.truncate(whole, whole.stat().st_size - 1)


@pytest.mark.parametrize("damage", [zeros, all_zeros, shorter])
def test_a_damaged_shard_is_made_again(damage: Callable[[Path], None], out: Out) -> None:
    """Zeros in a kept shard, in its header or cut off: told, and merged once more."""
    damage(interrupted(out))
    told, kept = resumed(out)
    assert kept == set()
    assert "model-00001-of-00002.safetensors in " in told[0]
    assert "no longer as written, made again" in told[0]
    check_whole(out)


def test_a_shard_whose_state_is_lost_is_refused(out: Out) -> None:
    """Without a state nobody knows which merge the shards belong to."""
    interrupted(out)
    (partial_path(out.path) / MARK).write_text("")
    with pytest.raises(LinesError, match="its state is lost"):
        resumed(out)


def test_a_state_of_a_stranger_moves_nothing(out: Out) -> None:
    """A forged state that names a file of the user's neither moves nor deletes it."""
    partial = partial_path(out.path)
    for folder in (out.path, partial):
        folder.mkdir()
    notes = out.path / "notes.txt"
    notes.write_text("mine")
    (partial / out.hidden).write_text("{}")
    for moving in (["notes.txt"], {"notes.txt": mark_of(notes)}, {"../notes.txt": mark_of(notes)}):
        (partial / MARK).write_text(json.dumps({"moving": moving, "merge": MERGE}))
        assert out.moved() == []
    resumed(out)
    assert notes.read_text() == "mine"
    check_whole(out)


def test_only_what_has_our_digest_is_taken_back(out: Out) -> None:
    """A README that the user wrote after a kill between the last renames stays where it is."""
    partial = partial_path(out.path)
    for folder in (out.path, partial):
        folder.mkdir()
    ours, other = out.path / "lines_report.json", out.path / "README.md"
    ours.write_text("{}")
    other.write_text("ours")
    moving = {path.name: mark_of(path) for path in (ours, other)}
    (partial / out.hidden).write_text("{}")
    (partial / MARK).write_text(json.dumps({"moving": moving, "merge": MERGE}))
    assert out.moved() == ["lines_report.json", "README.md"]
    other.write_text("mine")
    assert out.moved() == ["lines_report.json"]
    assert "already holds a model or parts of one (README.md)" in out.problems()[0]
    assert other.read_text() == "mine"


def test_a_shard_of_equal_header_is_not_ours(out: Out) -> None:
    """Whoever knows an architecture knows the header of the user's model, and not its weights."""
    partial = partial_path(out.path)
    for folder in (out.path, partial):
        folder.mkdir()
    weights = out.path / "model.safetensors"
    save_file(VALUES, weights)
    moving = {weights.name: mark_of(weights)}
    save_file({name: tensor + 1 for name, tensor in VALUES.items()}, weights)
    (partial / out.hidden).write_text("{}")
    (partial / MARK).write_text(json.dumps({"moving": moving, "merge": MERGE}))
    before = weights.read_bytes()
    assert out.moved() == []
    with pytest.raises(
        LinesError, match=r"already holds a model or parts of one \(model\.safetens"
    ):
        resumed(out)
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    "state",
    ["[" * 100_000, '{"moving": 3, "merge": [1], "digests": []}', '{"merge": {"\\u001b[2J": 1}}'],
    ids=["deep", "other kinds", "escapes"],
)
def test_any_state_ends_in_a_sentence(state: str, out: Out) -> None:
    """Whatever a state holds, shards of another merge are refused, and nothing of it is echoed."""
    interrupted(out)
    (partial_path(out.path) / MARK).write_text(state)
    with pytest.raises(LinesError, match="and that was another one") as error:
        resumed(out)
    assert "\x1b" not in str(error.value)


def test_a_state_that_is_a_pipe_is_not_waited_for(out: Out) -> None:
    """A pipe of the state's name is a state that is lost."""
    interrupted(out)
    mark = partial_path(out.path) / MARK
    mark.unlink()
    os.mkfifo(mark)
    with pytest.raises(LinesError, match="its state is lost"):
        resumed(out)


def test_links_in_a_partial_folder_are_removed_and_not_followed(out: Out, tmp_path: Path) -> None:
    """A link to a folder or a shard of others goes; what it leads to stays."""
    interrupted(out)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine").write_text("mine")
    partial = partial_path(out.path)
    (partial / "folder").symlink_to(kept)
    (partial / "partial-model-00002-of-00002.safetensors").symlink_to(kept / "mine")
    resumed(out)
    assert (kept / "mine").read_text() == "mine"
    check_whole(out)


def test_out_is_looked_at_again_behind_the_lock(out: Out) -> None:
    """A merge that waited for its turn sees at once that OUT has been made meanwhile."""
    out.path.mkdir()
    (out.path / "config.json").write_text("{}")
    with (
        pytest.raises(LinesError, match=r"already holds a model or parts of one \(config\.json\)"),
        partial_folder(out, lambda _: None),
    ):
        pytest.fail("nothing may be merged")
    assert [path.name for path in out.path.parent.iterdir()] == ["OUT"]


def test_a_link_in_the_place_of_the_lock_is_refused(out: Out, tmp_path: Path) -> None:
    """What a link of the lock's name leads to is neither made nor written to."""
    lock = Path(f"{partial_path(out.path)}.lock")
    lock.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(LinesError, match="in the way of the lock and not ours"),
        partial_folder(out, lambda _: None),
    ):
        pytest.fail("nothing may be merged")
    assert lock.is_symlink() and not (tmp_path / "elsewhere").exists()


def test_out_keeps_its_place_under_whoever_works_in_it(
    out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cd OUT; mergekit-yaml ../recipe.yml .`: the folder is filled, and not replaced."""
    out.path.mkdir()
    monkeypatch.chdir(out.path)
    before = out.path.stat().st_ino
    resumed(out)
    assert out.path.stat().st_ino == before
    assert "config.json" in {path.name for path in Path().iterdir()}
    check_whole(out)


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    """An OUT that safetensors could not open is refused before anything is merged."""
    for path in (tmp_path / os.fsdecode(b"o\xff"), tmp_path / os.fsdecode(b"p\xff") / "out"):
        (problem,) = model_folder(path).problems()
        assert "is no UTF-8" in problem


def test_a_name_is_planned_once() -> None:
    """A layout that names a tensor twice is refused: its offsets would have holes."""
    slot = Slot("visual.merger.weight", (2, 2), torch.float32)
    with pytest.raises(LinesError, match=r"visual\.merger\.weight would be written more than once"):
        lay_out([slot, slot], 0)


def other_name(text: bytes) -> bytes:
    return text.replace(b'"layer.1"', b'"layer.9"')


def hole(text: bytes) -> bytes:
    return text.replace(b"[256,512]", b"[260,512]")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (other_name, r"holds other tensors than were planned \(layer\.1, layer\.9\)"),
        (hole, "is not a whole safetensors file"),
    ],
)
def test_shards_are_held_against_the_plan_before_out_has_its_name(
    change: Callable[[bytes], bytes], text: str, out: Out
) -> None:
    """Whatever the cause: what safetensors reads in a shard has to be what was planned."""

    def merge() -> None:
        with partial_folder(out, lambda _: None) as partial:
            partial.begin(MERGE, layout())
            fill(partial, layout(), list(VALUES))
            (partial.path / "config.json").write_text("{}")
            whole = partial.path / whole_name(layout()[0].file)
            content = whole.read_bytes()
            assert change(content) != content
            whole.write_bytes(change(content))
            partial.publish(layout())

    with pytest.raises(LinesError, match=text):
        merge()
    assert list(out.path.parent.iterdir()) == []


def test_an_input_whose_time_was_put_back_has_changed(tmp_path: Path) -> None:
    """Rewritten in place with its mtime put back, a file has another ctime, which is seen."""
    file = tmp_path / "model.safetensors"
    save_file(VALUES, file)
    shard = Shard(file)
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-4, os.SEEK_END)
        handle.write(b"\1\2\3\4")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(LinesError, match="changed while it was merged"):
        shard.check_unchanged()
    shard.close()


def described(folder: Path) -> Any:
    from mergekit_lines.checkpoint.opened import describe_file

    return describe_file(folder / "model.safetensors", None)


def test_an_input_whose_time_was_put_back_between_two_runs_is_another(tmp_path: Path) -> None:
    """What an interrupted merge keeps of an input tells the rewritten one from it."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1234")
    before, stat = described(tmp_path), file.stat()
    file.write_bytes(b"4321")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert described(tmp_path) != before


def carried(out: Out) -> None:
    """Merge to the end, with files and folders that go with the weights."""
    with partial_folder(out, lambda _: None) as partial:
        partial.begin(MERGE, layout())
        fill(partial, layout(), list(VALUES))
        (partial.path / "1_Pooling" / "below").mkdir(parents=True)
        for name in ("config.json", "labels.txt", "1_Pooling/below/a", "1_Pooling/model.bin"):
            (partial.path / name).write_text(name)
        partial.publish(layout())


def stop_before(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let one of the renames to come be the one before which the process is stopped."""
    rename, calls = Path.rename, itertools.count(1)

    def stopping(path: Path, target: Path) -> Path:
        if next(calls) == number:
            raise Interrupted
        return rename(path, target)

    patch.setattr(Path, "rename", stopping)


def test_folders_are_moved_whole_and_once(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into an OUT that holds other things, stopped before any of the renames and taken up again."""
    stops, ended = 0, False
    while not ended:
        stops += 1
        out.path.mkdir()
        (out.path / "notes").write_text("mine")
        with monkeypatch.context() as patch:
            stop_before(patch, stops)
            try:
                carried(out)
                ended = True
            except Interrupted:
                assert not (out.path / "config.json").exists()
        if not ended:
            carried(out)
        check_whole(out)
        for name in ("config.json", "labels.txt", "1_Pooling/below/a", "1_Pooling/model.bin"):
            assert (out.path / name).read_text() == name
        assert (out.path / "notes").read_text() == "mine"
        shutil.rmtree(out.path)
    assert stops > 9


@pytest.mark.parametrize("name", ["labels.txt", "1_Pooling/model.bin", "1_Pooling/more"])
def test_a_file_of_the_users_is_in_the_way(out: Out, name: str) -> None:
    """What has the name of a carried file or folder, and not its contents, is not overwritten."""
    (out.path / name).parent.mkdir(parents=True)
    (out.path / name).write_text("mine")
    with pytest.raises(LinesError, match=f"{name.split('/')[0]} is there already"):
        carried(out)
    assert (out.path / name).read_text() == "mine"
    assert [path.name for path in out.path.iterdir()] == [name.split("/")[0]]


def test_a_link_is_in_the_way(out: Out, tmp_path: Path) -> None:
    """A link to the same contents is not ours."""
    out.path.mkdir()
    (tmp_path / "labels.txt").write_text("labels.txt")
    (out.path / "labels.txt").symlink_to("../labels.txt")
    with pytest.raises(LinesError, match=r"labels\.txt is there already"):
        carried(out)


def test_a_run_whose_lock_does_not_hold_gives_way(
    out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks of some network storage are one machine's own: whoever began last has the folder."""
    monkeypatch.setattr(f"{Partial.__module__}.locked", lambda *_: contextlib.nullcontext())

    def first() -> None:
        with partial_folder(out, lambda _: None) as partial:
            partial.begin(MERGE, layout())
            fill(partial, layout(), list(VALUES)[:3])
            with partial_folder(out, lambda _: None) as other:
                other.begin(MERGE, layout())
                with pytest.raises(ResumableError, match="another run has begun to write there"):
                    partial.vouch("x.safetensors", "0")
                before = (partial.path / MARK).read_bytes()
                with pytest.raises(ResumableError, match="another run has begun to write there"):
                    partial.keep("norms", [1.0])
                assert (partial.path / MARK).read_bytes() == before
                (partial.path / "config.json").write_text("{}")
                with pytest.raises(ResumableError, match="another run has begun to write there"):
                    partial.publish(layout())
                kept.update(fill(other, layout(), list(VALUES)).done)
                other.publish(layout())
            raise ResumableError("as the first run ends")

    kept: set[str] = set()
    with pytest.raises(ResumableError, match="as the first run ends"):
        first()
    assert len(kept) == 1
    assert not partial_path(out.path).exists()
    loaded = {name: values for path in out.path.glob("*.safetensors")
              for name, values in load_file(path).items()}  # fmt: skip
    assert all(torch.equal(loaded[name], values) for name, values in VALUES.items())
    assert not list(out.path.glob(".run-*"))


def test_files_that_are_still_held_are_waited_for(
    out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network storage renames a file that is open, and its folder is not empty until that ends."""
    interrupted(out)
    left = partial_path(out.path) / "workers-1"
    left.mkdir()
    held = [True, True]
    remove = shutil.rmtree

    def rmtree(path: Path, **_options: Any) -> None:
        if path == left and held:
            raise OSError(errno.ENOTEMPTY if held.pop() else errno.EBUSY, "held", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    told, kept = resumed(out)
    assert (len(told), len(kept), held, left.exists()) == (1, 1, [], False)
