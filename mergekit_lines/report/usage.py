"""How a model is used, by its files: dtype, special tokens, chat template, generation settings."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.bounded import read_json, read_text
from mergekit_lines.errors import TextError

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
# Ids of special tokens, which config.json repeats.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
PROCESSORS = re.compile(r".*processor(_config)?\.json")
# Parts of a processor, under whose names one release of transformers writes what another writes
# plainly; and what names a class, which changes from release to release.
_PARTS = ("image_processor", "feature_extractor")
_CLASSES = re.compile(r"_.*|.*(_type|_class|_version)|auto_map")
_SHOWN = 60  # letters of a value in a line
# Of generation_config.json, what tells of the writer and not of the model.
_WRITER = ("transformers_version", "_from_model_config")


def keep_config(folder: Path, source: Path) -> None:
    """Give a merged model the config that its base has, or none, in the place of an empty one.

    Args:
        folder: the merged model.
        source: the base's folder; or a file, which has no config.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    if (source / CONFIG).is_file():
        shutil.copy(source / CONFIG, folder / CONFIG)


def finish_config(folder: Path, dtype: str | None, tokens: Path | None) -> None:
    """Let config.json say the dtype that the weights have, and the carried special tokens.

    They are plain, whatever an input's said: with a left-over ``quantization_config`` whoever
    loads the model would quantise it.

    Args:
        folder: the merged model.
        dtype: of most of its weights; None where none is floating-point.
        tokens: the folder of the model whose special tokens it has, where that is not the base.
    """
    config = content_of(folder / CONFIG)
    if not isinstance(config, dict):
        return
    finished = _unquantised(config)
    if dtype and not (finished.get("dtype") or finished.get("torch_dtype")):
        finished["dtype"] = dtype
    finished = _with_dtype(finished, dtype) if dtype else finished
    if tokens is not None and isinstance(donor := content_of(tokens / CONFIG), dict):
        finished = _with_ids(finished, donor)
    if finished != config:
        write_json(folder / CONFIG, finished)


def _unquantised(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _unquantised(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "quantization_config"
    }


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config, and those of a model's parts in it, with another dtype."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            result[key] = dtype
        else:
            result[key] = _with_dtype(value, dtype) if isinstance(value, dict) else value
    return result


def _with_ids(config: dict[str, Any], donor: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(config)
    for key, value in donor.items():
        if key in _IDS:
            result[key] = value
        elif isinstance(value, dict) and isinstance(config.get(key), dict):
            result[key] = _with_ids(config[key], value)
    return result


def differences(carried: Path, other: Path, *, template: bool = True) -> list[str]:
    """Return in what a model's use differs from that of the one whose files are carried.

    Args:
        carried: the folder of the model whose files are carried.
        other: the other model's folder.
        template: whether the chat template is carried at all.
    """
    names = []
    if template and chat_template(carried) != chat_template(other):
        names.append("chat template")
    ours, theirs = _special_tokens(carried), _special_tokens(other)
    names += [f"{one} {theirs.get(one)!r}" for one in _TOKENS if ours.get(one) != theirs.get(one)]
    ours, theirs = (_settings(folder) for folder in (carried, other))
    keys = sorted(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
    names += [f"{key} {theirs.get(key)!r}" for key in keys]
    return names + list(_processor_differences(_processor(carried), _processor(other)))


def _processor_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Yield what both processors say, and say otherwise: a default is not known here."""
    if theirs and not ours:
        yield "processor"
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            value = repr(theirs[key])
            yield f"{key} {value if len(value) <= _SHOWN else value[: _SHOWN - 1] + '…'}"


def _processor(folder: Path) -> dict[str, Any]:
    """Return what a model's processor is set to, by dotted key, whichever release wrote it."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    settings: dict[str, Any] = {}
    for name in sorted(name for name in names if PROCESSORS.fullmatch(name)):
        content = content_of(folder / name)
        place = "video_processor." if name.startswith("video_") else ""
        settings |= _leaves(content, place) if isinstance(content, dict) else {}
    return settings


def _leaves(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        if _CLASSES.fullmatch(key) or value is None:
            continue
        if isinstance(value, dict):
            leaves |= _leaves(value, place if key in _PARTS else f"{place}{key}.")
        else:
            leaves[f"{place}{key}"] = value
    return leaves


def chat_template(folder: Path) -> Any:
    """Return a tokenizer's chat template, or None where it has none that can be read."""
    try:
        if (folder / TEMPLATE).is_file():
            return read_text(folder / TEMPLATE)
    except (OSError, TextError):
        return None
    return entry(folder / TOKENIZER_CONFIG, "chat_template")


def _special_tokens(folder: Path) -> dict[str, Any]:
    config = content_of(folder / TOKENIZER_CONFIG)
    held = config if isinstance(config, dict) else {}
    more = content_of(folder / "special_tokens_map.json")
    held = {**held, **(more if isinstance(more, dict) else {})}
    return {name: _content(held[name]) for name in _TOKENS if held.get(name)}


def _content(token: Any) -> Any:
    """Return a token's text; it may be written with how it is matched."""
    if isinstance(token, list):
        return sorted(str(_content(one)) for one in token)
    return token.get("content") if isinstance(token, dict) else token


def _settings(folder: Path) -> dict[str, Any]:
    settings = content_of(folder / GENERATION)
    held = settings if isinstance(settings, dict) else {}
    return {name: value for name, value in held.items() if name not in _WRITER}


def entry(path: Path, key: str) -> Any:
    """Return what a JSON file holds under a key, or None."""
    content = content_of(path)
    return content.get(key) if isinstance(content, dict) else None


def content_of(path: Path) -> Any:
    """Return what a JSON file holds, or None where it cannot be read."""
    try:
        return read_json(path)
    except (OSError, TextError):
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers writes it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
