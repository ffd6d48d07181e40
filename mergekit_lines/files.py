"""Files by the names that every room knows them by, and how a small one is read and written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

# What a merge writes beside its weights.
REPORT = "lines_report.json"
RECIPE = "mergekit_config.yml"
CARD = "README.md"
# What tells that a folder holds a tokenizer, beside its config.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
    *("sentencepiece.bpe.model", "spm.model", "source.spm"),
)
# What weights are called, by transformers and by diffusers: in one file, or by an index of several.
STEM, DIFFUSERS = "model", "diffusion_pytorch_model"
WEIGHTS, INDEX = (f"{STEM}.safetensors{end}" for end in ("", ".index.json"))
DIFFUSERS_WEIGHTS, DIFFUSERS_INDEX = (
    f"{DIFFUSERS}.safetensors{end}" for end in ("", ".index.json")
)
_WEIGHTS = re.compile(rf"({STEM}|{DIFFUSERS})(-\d{{5,}}-of-\d{{5,}})?\.safetensors")

MODULES = "modules.json"  # of sentence-transformers: the steps behind the transformer

# What travels from a model to what is merged from it: bytes of one file, of all such files
# together, and of the folders that come whole.
SMALL, SMALL_TOGETHER, FOLDERS_TOGETHER = 64 << 20, 256 << 20, 1 << 30
MOST_FILES = 1000
# Folders that are known by their names; others by modules.json.
FOLDERS = ("additional_chat_templates", "custom_generate")
_STAYS = re.compile(
    # Hidden; and code, which travels where another file names it.
    r"\..*|__pycache__|.*\.(py|pyc|lock)"
    # Weights in any form with their indexes, and pickles, which are code too.
    r"|.*\.(safetensors|bin|pth?|ckpt|h5|hdf5|msgpack|onnx(_data)?|gguf|ggml|tflite|ot|nemo|npz)"
    r"|.*\.(pkl|pickle|joblib|pdparams|mlmodel|distcp|engine|index(\.\w+)?\.json)"
    r"|openvino_.*|consolidated.*|params\.json"
    # What a training leaves behind, and an adapter.
    r"|trainer_state\.json|training_args\..*|events\.out.*|rng_state.*|latest|.*\.log"
    r"|(all|train|eval|test|predict)_results\.json|checkpoint-.*|global_step.*"
    r"|adapter_config\.json|adapter_model.*"
    # The model's own card, with its pictures and results.
    r"|readme(\..*)?|results\.json|.*\.(png|jpe?g|gif|svg|webp|bmp|mp[34]|wav|flac|webm|pdf)"
    # What is written anew, or stands in a partial folder.
    r"|config\.json(\..*)?|lines_report\.json|mergekit_config\.yml|mergekit-lines.*"
    r"|partial-.*|.*\.(writing|partial)",
    re.IGNORECASE,
)

COMMIT = re.compile(r"[0-9a-f]{40}")  # of a model on the Hub
_BLOCK = 1 << 22


def weights_stem(name: str) -> str | None:
    """Return what the name of a weight file begins with, before its number; None: of another."""
    match = _WEIGHTS.fullmatch(name)
    return match[1] if match else None


def index_beside(file: str) -> str:
    """Return the name of the index by which a weight file is read where it is one of several."""
    return DIFFUSERS_INDEX if weights_stem(file) == DIFFUSERS else INDEX


def holds_tokenizer(folder: Path) -> bool:
    """Tell whether a tokenizer is in a folder."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def travels(name: str) -> bool:
    """Tell whether a file beside a model's weights goes with what is merged from it.

    All do that are no weights, no leavings of a training, no part of the model's card and no
    code, and that a merge does not write itself.

    Args:
        name: of the file, without folders.
    """
    plain = bool(name) and name.isprintable() and "/" not in name and "\\" not in name
    return plain and not _STAYS.fullmatch(name)


def within_bounds(sizes: Mapping[str, int]) -> list[str]:
    """Return which files are small enough to travel, and together not too many.

    Args:
        sizes: bytes by name.
    """
    names: list[str] = []
    left = SMALL_TOGETHER
    for name, size in sizes.items():
        if size <= min(SMALL, left) and len(names) < MOST_FILES:
            names.append(name)
            left -= size
    return names


def module_folders(modules: Any) -> dict[str, str]:
    """Return the folders that the content of ``modules.json`` names, each with its class.

    The model's own folder is none of them. What is no list of modules names nothing.
    """
    entries = [one for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    paths = {str(PurePosixPath(str(one.get("path") or ""))): one for one in entries}
    return {path: str(one.get("type")) for path, one in paths.items() if path != "."}


def is_module_folder(path: str) -> bool:
    """Tell whether a path that ``modules.json`` names is that of a folder below the model's."""
    return all(travels(part) and "." not in part for part in path.split("/"))


def names_no_class(place: Path) -> bool:
    """Tell whether a model is a file, or a folder whose config.json names nothing known.

    timm's and open_clip's models are such, which name no architecture, and those of a type that
    came out after the installed transformers: their tensors' names are all that a merge has.
    """
    if place.is_file():
        return True
    path = place / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > _BLOCK:
            return False
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # which is told where the model is checked
        return False
    if not isinstance(config, dict) or config.get("architectures") is None:
        return isinstance(config, dict)
    kind = config.get("model_type")
    return isinstance(kind, str) and "auto_map" not in config and not _is_known(kind)


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING  # not before a model is looked at

    return model_type in CONFIG_MAPPING


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
