"""The streaming writer: what mergekit's own writer would have stored, cut in the same places."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mergekit.common import parse_kmb
from mergekit.io import LazyTensorLoader
from mergekit.io.tensor_writer import TensorWriter
from safetensors import safe_open

from mergekit_lines.checkpoint.writer import (
    WRITING,
    ShardWriter,
    Slot,
    index_of,
    lay_out,
    whole_name,
)
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process

SIZES = ["100", "5K", "12345", "20K", "64K", "1M", "5B"]


def tensors() -> models.Tensors:
    """Tensors of many dtypes and shapes, scalars and empty ones among them."""
    generator = torch.Generator().manual_seed(1)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "embed": floats(100, 16).to(torch.bfloat16),
        "norm": floats(33),
        "count": torch.arange(7),
        "mask": torch.tensor([True, False, True]),
        "empty": floats(0, 4),
        "scalar": floats(),
        "half": floats(5, 7).to(torch.float16),
        "double": floats(3).double(),
        **{f"layer.{number}": floats(40, 30).to(torch.bfloat16) for number in range(12)},
        "big": floats(300, 20),
        "é.weight": floats(2, 3),
    }


def mergekit_writes(held: models.Tensors, folder: Path, size: int) -> None:
    with TensorWriter(str(folder), max_shard_size=size) as writer:
        for name, tensor in held.items():
            writer.save_tensor(name, tensor)


def ours_writes(held: models.Tensors, folder: Path, size: int, order: list[str]) -> None:
    slots = [Slot(name, tuple(t.shape), t.dtype) for name, t in held.items()]
    shards = lay_out(slots, size)
    folder.mkdir()
    writer = ShardWriter(folder, shards)
    for name in order:
        sink, flat = writer.sink(name), held[name].reshape(-1)
        for start in range(0, len(flat), 501):
            sink.write(start, flat[start : start + 501])
        writer.finished(name)
    writer.close()
    assert writer.bytes_written == sum(shard.size for shard in shards)
    for shard in shards:
        (folder / whole_name(shard.file)).rename(folder / shard.file)
    index = index_of(shards)
    if index is not None:
        (folder / models.INDEX).write_text(index)


def shards_of(folder: Path) -> dict[str, list[str]]:
    """Return what each shard holds, by its name."""
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            result[path.name] = sorted(shard.keys())
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turn", [list, lambda names: list(reversed(names))], ids=["along", "back"])
def test_shards_are_those_of_mergekit(
    size: str, turn: Callable[[list[str]], list[str]], tmp_path: Path
) -> None:
    """For any ``--out-shard-size``: the same files, tensors, bytes and index; in any order."""
    held = tensors()
    mergekit_writes(held, tmp_path / "theirs", parse_kmb(size))
    ours_writes(held, tmp_path / "ours", parse_kmb(size), turn(list(held)))
    assert shards_of(tmp_path / "ours") == shards_of(tmp_path / "theirs")
    found, wanted = models.read(tmp_path / "ours"), models.read(tmp_path / "theirs")
    assert found.keys() == wanted.keys() == held.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype and tensor.shape == wanted[name].shape
        # Bit for bit: NaN and the sign of zero count, too.
        assert (
            tensor.reshape(-1).view(torch.uint8).equal(wanted[name].reshape(-1).view(torch.uint8))
        )
    indexes = [tmp_path / place / models.INDEX for place in ("ours", "theirs")]
    assert indexes[0].exists() == indexes[1].exists()
    if indexes[0].exists():
        ours, theirs = (json.loads(index.read_text()) for index in indexes)
        assert ours["weight_map"] == theirs["weight_map"]
        assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    """Data begins at a multiple of eight bytes, and each tensor at one of its entries' size."""
    held = tensors()
    for shard in lay_out([Slot(n, tuple(t.shape), t.dtype) for n, t in held.items()], 20_000):
        assert len(shard.header) % 8 == 0
        for name, offset in shard.offsets.items():
            assert offset % held[name].element_size() == 0


def test_a_shard_that_is_not_whole_has_another_name(tmp_path: Path) -> None:
    """Until its last tensor is stored nothing in the folder ends as a shard does."""
    held = tensors()
    slots = [Slot(name, tuple(t.shape), t.dtype) for name, t in held.items()]
    (shard,) = lay_out(slots, 0)
    writer = ShardWriter(tmp_path, [shard])
    *some, last = held
    for name in some:
        writer.sink(name).write(0, held[name].reshape(-1))
        writer.finished(name)
    assert [path.name for path in tmp_path.iterdir()] == [shard.file + WRITING]
    assert writer.wants(last) and not writer.wants("unknown")
    writer.sink(last).write(0, held[last].reshape(-1))
    writer.finished(last)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == [whole_name(shard.file)]
    again = ShardWriter(tmp_path, [shard])
    assert not any(again.wants(name) for name in held)
    again.close()


def test_a_shard_of_another_size_is_not_whole(tmp_path: Path) -> None:
    """A whole shard's name alone is no proof: one that was cut is written again."""
    held = tensors()
    (shard,) = lay_out([Slot(name, tuple(t.shape), t.dtype) for name, t in held.items()], 0)
    (tmp_path / whole_name(shard.file)).write_bytes(bytes(shard.size - 1))
    assert ShardWriter(tmp_path, [shard]).wants("embed")


@pytest.mark.parametrize("settled", [False, True])
def test_a_shard_on_its_way_to_the_disk(
    settled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C waits for no fsync, and by its end the file may be another run's; a failure waits."""
    held = tensors()
    (shard,) = lay_out([Slot(name, tuple(t.shape), t.dtype) for name, t in held.items()], 0)
    disk, threads, begin = threading.Event(), list[threading.Thread](), threading.Thread.start
    monkeypatch.setattr(os, "fsync", lambda _: disk.wait())
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: (threads.append(thread), begin(thread))
    )
    writer = ShardWriter(tmp_path, [shard])
    for name, tensor in held.items():
        writer.sink(name).write(0, tensor.reshape(-1))
        writer.finished(name)
    assert [path.name for path in tmp_path.iterdir()] == [shard.file + WRITING]
    if settled:
        disk.set()
        writer.settle()
    writer.abandon()
    disk.set()
    for thread in threads:
        thread.join()
    assert len(threads) == 1
    name = whole_name(shard.file) if settled else shard.file + WRITING
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("size", [10_000, 50_000, 10**9])
def test_a_merge_loads_everywhere(
    size: int, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """transformers, safetensors and mergekit read the same tensors, none missing, none left."""
    from transformers import AutoModelForCausalLM

    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}],
        "parameters": {"alpha": 0.4, "beta": 0.5},
    }
    out = in_process(recipe, tmp_path / "out", out_shard_size=size)
    wanted = models.read(out)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loader = LazyTensorLoader.from_disk(str(out))
    held = {}
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            held |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    assert loader.index.tensor_paths.keys() == model.state_dict().keys() == held.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(wanted[name])
        assert tensor.equal(loader.get_tensor(name)) and tensor.equal(held[name])


@pytest.mark.parametrize("size", [0, 8])
def test_a_name_stands_once(size: int) -> None:
    """A tensor named twice is refused by name, in one shard and across two."""
    slots = [Slot(name, (2,), torch.float32) for name in ("merger.bias", "norm", "merger.bias")]
    with pytest.raises(LinesError, match=r"merger\.bias would be written more than once"):
        lay_out(slots, size)
