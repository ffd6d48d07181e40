"""The benchmark's checkpoints: LLaMA shapes, a base and models or adapters that differ a little."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file

NOTE = "benchmark.json"  # inside each finished folder: what it was made from
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2_000_000_000
DTYPES = {  # and the name that a safetensors header has for each
    "bfloat16": (torch.bfloat16, "BF16"),
    "float16": (torch.float16, "F16"),
    "float32": (torch.float32, "F32"),
}
RUN = 1 << 22  # entries that are drawn and written at once
STDDEV, NOISE = 0.02, 0.001  # of the base's weights, and of what is added to them
LEAST, MOST = 0.0005, 100.0  # billions of parameters
RANK = 16  # of adapters, on every matrix of the blocks


@dataclass(frozen=True)
class Shape:
    """A LLaMA, and how many entries of each tensor are real (the rest are holes that read 0).

    The largest tensors are real to the end: a merge needs its most memory for them.
    """

    hidden: int
    intermediate: int
    vocabulary: int
    layers: int
    heads: int
    filled: int | None = None
    dtype: str = "bfloat16"  # one of DTYPES

    @property
    def item(self) -> int:
        """The bytes of an entry."""
        return DTYPES[self.dtype][0].itemsize

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield every tensor's name and shape."""
        hidden, wide = self.hidden, self.intermediate
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            for name in ("q", "k", "v", "o"):
                yield f"{at}.self_attn.{name}_proj.weight", (hidden, hidden)
            yield f"{at}.mlp.gate_proj.weight", (wide, hidden)
            yield f"{at}.mlp.up_proj.weight", (wide, hidden)
            yield f"{at}.mlp.down_proj.weight", (hidden, wide)
            yield f"{at}.input_layernorm.weight", (hidden,)
            yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocabulary, hidden)

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    @property
    def largest(self) -> int:
        """The number of entries of the largest tensor."""
        return max(math.prod(shape) for _, shape in self.tensors())

    @property
    def disk_bytes(self) -> int:
        """The bytes of one checkpoint on the disk, without its holes."""
        return self.item * sum(self.real(math.prod(shape)) for _, shape in self.tensors())

    def real(self, entries: int) -> int:
        """Return how many of a tensor's entries are written."""
        whole = self.filled is None or entries == self.largest
        return entries if self.filled is None or whole else min(entries, self.filled)

    def config(self) -> dict[str, Any]:
        """Return the model's config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "tie_word_embeddings": False,
            "dtype": self.dtype,
        }


# LLaMA-2-7B (arXiv 2307.09288): 6,738,415,616 parameters. The embeddings are real, and of each
# other tensor a mebibyte. Checkpoints that share shards through links would be as small, but the
# reader opens a shared shard once, and task vectors over it would be zero or equal.
LLAMA_7B = Shape(4096, 11008, 32000, 32, 32, filled=1 << 19)


def shape_of(billions: float, dtype: str = "bfloat16", *, small_tensors: bool = False) -> Shape:
    """Return the smallest LLaMA of a usual width with at least that many parameters.

    Args:
        billions: how many.
        dtype: one of :data:`DTYPES`.
        small_tensors: of many matrices with 2^20 entries instead, as experts are stored.
    """
    # From this many billions on: hidden size, intermediate size, vocabulary, heads.
    widths = (
        (4.0, (4096, 11008, 32000, 32)),
        (0.15, (2048, 5504, 16000, 16)),
        (0.02, (768, 2048, 8000, 12)),
        (0.0, (128, 344, 1000, 4)),
    )
    hidden, wide, vocabulary, heads = next(found for least, found in widths if billions >= least)
    if small_tensors:
        hidden, wide, vocabulary, heads = 1024, 1024, 1024, 8
    block = 4 * hidden**2 + 3 * hidden * wide + 2 * hidden
    outside = 2 * vocabulary * hidden + hidden
    layers = max(2, math.ceil((billions * 1e9 - outside) / block))
    return Shape(hidden, wide, vocabulary, layers, heads, dtype=dtype)


@dataclass(frozen=True)
class Checkpoint:
    """One of the benchmark's models: number 0 is the base; an adapter holds a LoRA alone."""

    shape: Shape
    number: int
    folder: Path
    adapter: bool = False

    @property
    def note(self) -> dict[str, Any]:
        """What the checkpoint is made from."""
        return {"format": 3, "number": self.number, "adapter": self.adapter, **asdict(self.shape)}

    @property
    def finished(self) -> bool:
        """Whether the folder is whole and made from the same things."""
        try:
            found = json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == self.note)

    @property
    def shards(self) -> list[Path]:
        """The files with the weights."""
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def disk_bytes(self) -> int:
        """The bytes of its files on the disk, without their holes."""
        if not self.adapter:
            return self.shape.disk_bytes
        matrices = [shape for _, shape in _matrices(self.shape)]
        return self.shape.item * RANK * sum(rows + columns for rows, columns in matrices)


def checkpoints(
    shape: Shape, models: int, folder: Path, *, adapters: bool = False
) -> list[Checkpoint]:
    """Return the base and the models, made or not; they lie in a folder of their shape."""
    kind = "-sparse" if shape.filled else ""
    kind += "" if shape.dtype == "bfloat16" else f"-{shape.dtype}"
    place = folder / f"llama-{shape.parameters / 1e9:.4g}B{kind}"
    word = "adapter" if adapters else "tuned"
    tuned = (
        Checkpoint(shape, number, place / f"{word}-{number}", adapters)
        for number in range(1, models + 1)
    )
    return [Checkpoint(shape, 0, place / "base"), *tuned]


@dataclass(frozen=True)
class Setting:
    """What is merged: models of one shape, or adapters, and how many beside the base."""

    shape: Shape
    count: int
    adapters: bool = False

    def checkpoints(self, folder: Path, *, base_only: bool = False) -> list[Checkpoint]:
        """Return its checkpoints under a folder, made or not."""
        count = 0 if base_only else self.count
        return checkpoints(self.shape, count, folder, adapters=self.adapters)


def settings(
    billions: float,
    counts: Sequence[int],
    dtypes: Sequence[str],
    *,
    lora: bool = False,
    small_tensors: bool = False,
) -> dict[str, Setting]:
    """Return the settings by the name that tables have for them.

    The first count and dtype are one; each further value of either is one beside the first of
    the other, and so are adapters and small tensors.
    """
    count, dtype = counts[0], dtypes[0]
    shapes = {each: shape_of(billions, each) for each in dtypes}
    plain = [(each, dtype) for each in counts] + [(count, each) for each in dtypes[1:]]
    chosen = {f"base + {each} in {kind}": Setting(shapes[kind], each) for each, kind in plain}
    if lora:
        chosen[f"base + {count} LoRA in {dtype}"] = Setting(shapes[dtype], count, adapters=True)
    if small_tensors:
        small = shape_of(billions, dtype, small_tensors=True)
        chosen[f"base + {count} of 2^20 entries in {dtype}"] = Setting(small, count)
    return chosen


def make(
    checkpoint: Checkpoint,
    base: Checkpoint,
    step: Callable[[int], object],
    device: str = "cpu",
) -> None:
    """Write a checkpoint run by run; the folder gets its name when it is whole.

    Args:
        checkpoint: what to make.
        base: the base, already made unless it is what is made.
        step: called with the number of bytes written.
        device: where values are drawn; each kind draws its own.
    """
    part = checkpoint.folder.with_name(checkpoint.folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    generator = torch.Generator(device).manual_seed(checkpoint.number)
    if checkpoint.adapter:
        _adapt(part, checkpoint, generator)
        step(checkpoint.disk_bytes)
    else:
        _write(part, checkpoint, base, generator, step)
    (part / NOTE).write_text(json.dumps(checkpoint.note, indent=1), encoding="utf-8")
    shutil.rmtree(checkpoint.folder, ignore_errors=True)
    part.rename(checkpoint.folder)


def _write(
    part: Path,
    checkpoint: Checkpoint,
    base: Checkpoint,
    generator: torch.Generator,
    step: Callable[[int], object],
) -> None:
    groups = list(_shards(checkpoint.shape))
    weight_map = {}
    for number, tensors in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        weight_map.update(dict.fromkeys((name for name, _ in tensors), file))
        with (part / file).open("wb") as target:
            if checkpoint.number == 0:
                _fill(target, None, tensors, checkpoint.shape, generator, step)
            else:
                with (base.folder / file).open("rb") as start:
                    _fill(target, start, tensors, checkpoint.shape, generator, step)
    total = checkpoint.shape.parameters * checkpoint.shape.item
    texts = {
        "config.json": checkpoint.shape.config(),
        INDEX: {"metadata": {"total_size": total}, "weight_map": weight_map},
    }
    for file, content in texts.items():
        (part / file).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _matrices(shape: Shape) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the matrices of the blocks, which adapters change."""
    for name, dimensions in shape.tensors():
        if ".layers." in name and len(dimensions) == 2:
            yield name, (dimensions[0], dimensions[1])


def _adapt(part: Path, checkpoint: Checkpoint, generator: torch.Generator) -> None:
    """Write an adapter as PEFT does; its product has the size of a model's noise."""
    dtype = DTYPES[checkpoint.shape.dtype][0]
    spread = (NOISE / math.sqrt(RANK)) ** 0.5  # of both factors
    factors = {}
    for name, (rows, columns) in _matrices(checkpoint.shape):
        at = f"base_model.model.{name.removesuffix('.weight')}"
        for factor, size in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
            values = torch.randn(size, generator=generator, device=generator.device)
            factors[f"{at}.{factor}.weight"] = values.mul_(spread).to(dtype).cpu()
    save_file(factors, part / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted({name.split(".")[-2] for name, _ in _matrices(checkpoint.shape)}),
    }
    (part / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _shards(shape: Shape) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    held: list[tuple[str, tuple[int, ...]]] = []
    size = 0
    for name, dimensions in shape.tensors():
        more = math.prod(dimensions) * shape.item
        if held and size + more > SHARD_BYTES:
            yield held
            held, size = [], 0
        held.append((name, dimensions))
        size += more
    yield held


def _fill(
    target: BinaryIO,
    base: BinaryIO | None,
    tensors: list[tuple[str, tuple[int, ...]]],
    shape: Shape,
    generator: torch.Generator,
    step: Callable[[int], object],
) -> None:
    dtype, code = DTYPES[shape.dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dimensions in tensors:
        first, end = end, end + math.prod(dimensions) * shape.item
        offsets = [first, end]
        header[name] = {"dtype": code, "shape": list(dimensions), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.write(struct.pack("<Q", len(text)) + text)
    data = target.tell()
    for name, dimensions in tensors:
        place = data + header[name]["data_offsets"][0]
        count = shape.real(math.prod(dimensions))
        for start in range(0, count, RUN):
            size = min(RUN, count - start)
            values = torch.randn(size, generator=generator, device=generator.device)
            # The base has the same header, so its entries lie in the same place.
            if base is None:
                values = values.mul_(STDDEV).add_(float(len(dimensions) == 1))
            else:
                base.seek(place + start * shape.item)
                stored = torch.frombuffer(bytearray(base.read(size * shape.item)), dtype=dtype)
                values = values.mul_(NOISE).add_(stored.to(values.device))
            target.seek(place + start * shape.item)
            target.write(values.to(dtype).cpu().view(torch.uint8).numpy().data)
            step(size * shape.item)
    target.truncate(data + end)
