"""Checkpoints of published sizes without weights: right headers, then holes in sparse files.

What each should come to is written by hand from the published configs, not computed by the package.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models import INDEX

SIZES = {"F16": 2, "BF16": 2, "F32": 4}
Shapes = dict[str, tuple[int, ...]]

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Published:
    """A published model: its config, the names and shapes of its tensors, and its counts."""

    config: dict[str, Any]
    dtype: str
    parameters: int  # of the whole model
    per_block: int  # parameters of one of its 32 blocks
    tensors_per_block: int  # two norms, four of attention, and the rest

    @property
    def shapes(self) -> Shapes:
        """The tensors that the checkpoint on the Hub holds."""
        hidden, vocab = self.config["hidden_size"], self.config["vocab_size"]
        wide = self.config["intermediate_size"]
        heads = self.config["num_key_value_heads"] / self.config["num_attention_heads"]
        narrow = int(hidden * heads)
        result: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
        for block in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{block}"
            for name, rows in (("q", hidden), ("k", narrow), ("v", narrow), ("o", hidden)):
                result[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                result[f"{at}.{norm}.weight"] = (hidden,)
            if "num_local_experts" in self.config:
                moe = f"{at}.block_sparse_moe"
                result[f"{moe}.gate.weight"] = (self.config["num_local_experts"], hidden)
                for expert in range(self.config["num_local_experts"]):
                    result[f"{moe}.experts.{expert}.w1.weight"] = (wide, hidden)
                    result[f"{moe}.experts.{expert}.w2.weight"] = (hidden, wide)
                    result[f"{moe}.experts.{expert}.w3.weight"] = (wide, hidden)
            else:
                result[f"{at}.mlp.gate_proj.weight"] = (wide, hidden)
                result[f"{at}.mlp.up_proj.weight"] = (wide, hidden)
                result[f"{at}.mlp.down_proj.weight"] = (hidden, wide)
        return {**result, "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


# A block of LLaMA-2-7B: 4·4096² + 3·4096·11008 + 2·4096. The model: 6,738,415,616 parameters
# (arXiv 2307.09288 calls it 7B; the number is that of its model card).
LLAMA = Published(LLAMA_7B, "F16", 6_738_415_616, 202_383_360, 9)
# A block of Mixtral-8x7B: (2 + 2/4)·4096² + 8·3·4096·14336 + 8·4096 + 2·4096. The model:
# 46,702,792,704 parameters, as on its model card. mergekit writes the experts of a block as
# transformers 5 holds them: all in gate_up_proj and down_proj.
MIXTRAL = Published(MIXTRAL_8X7B, "BF16", 46_702_792_704, 1_451_270_144, 31)


def write(
    path: Path,
    config: dict[str, Any],
    shapes: Shapes,
    dtype: str = "F32",
    shard_bytes: int = 10_000_000_000,
) -> Path:
    """Write config, index and shards: each shard a header and a hole as large as its data."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    groups = list(_grouped(shapes, dtype, shard_bytes))
    weight_map = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, end = {}, 0
        for name in names:
            start, end = end, end + math.prod(shapes[name]) * SIZES[dtype]
            header[name] = {
                "dtype": dtype,
                "shape": list(shapes[name]),
                "data_offsets": [start, end],
            }
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (path / file).open("wb") as shard:
            shard.write(struct.pack("<Q", len(text)) + text)
            shard.truncate(8 + len(text) + end)
    total = sum(math.prod(shape) for shape in shapes.values()) * SIZES[dtype]
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index))
    return path


def _grouped(shapes: Shapes, dtype: str, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * SIZES[dtype]
        if names and held + size > shard_bytes:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def resident_bytes(file: Path) -> int:
    """Return how much of a file the page cache holds: all that anybody has read of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with file.open("rb") as handle:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle.fileno(), 0)
    found = (ctypes.c_ubyte * pages)()
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert libc.mincore(at, size, found) == 0
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.munmap(at, size)
    return sum(page & 1 for page in bytes(found)) * mmap.PAGESIZE
