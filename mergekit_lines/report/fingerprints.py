"""What tells a file of a model from a changed one, without reading its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.io import ShardedTensorIndex
from mergekit.io.tasks import LoaderCache

from mergekit_lines.checkpoint.headers import header_digest, is_file_name
from mergekit_lines.checkpoint.opened import adapter_folder
from mergekit_lines.checkpoint.writer import ShardLayout
from mergekit_lines.files import COMMIT, DIFFUSERS_INDEX, INDEX, file_digest

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def describe_inputs(models: Iterable[ModelReference]) -> dict[str, Any]:
    """Return every model's files, by the model's name; their loaders have to be open.

    Of a shard there are its bytes and its header's digest. Of an adapter, of an index, and of
    what the Hub's cache names by it, there is the digest of the content. No path is in it: a
    report goes along with the merged model.
    """
    return {f"{model}": _describe(model) for model in models}


def _describe(model: ModelReference) -> dict[str, Any]:
    # An adapter that PEFT merges has a loader of a copy: the base itself is what is described.
    index = LoaderCache().get(ModelReference(model=model.model)).index
    folder = Path(index.base_path)
    result: dict[str, Any] = {}
    if commit := _commit(folder, model.model.path):
        result["revision"] = commit
    result["files"] = {name: _file(folder / name) for name in _names(index, folder)}
    if model.lora is not None:
        place = adapter_folder(model)
        adapter: dict[str, Any] = {}
        if commit := _commit(place, model.lora.path):
            adapter["revision"] = commit
        adapter["files"] = {
            name: {"bytes": (place / name).stat().st_size, "sha256": file_digest(place / name)}
            for name in _ADAPTER
            if (place / name).exists()
        }
        result["adapter"] = adapter
    return result


def _names(index: ShardedTensorIndex, folder: Path) -> list[str]:
    listings = (INDEX, DIFFUSERS_INDEX) if index.is_safetensors else ()
    held = {listing for listing in listings if (folder / listing).exists()}
    return sorted({*index.tensor_paths.values(), *held})


def _commit(folder: Path, path: str) -> str | None:
    """Return the commit of a model in the Hub's cache, where its folder has the commit's name."""
    cached = folder.parent.name == "snapshots" and not Path(path).exists()
    return folder.name if cached and COMMIT.fullmatch(folder.name) else None


def _file(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"bytes": path.stat().st_size}
    if path.suffix == ".safetensors":
        result["header_sha256"] = header_digest(path)
    if path.suffix == ".json":
        result["sha256"] = file_digest(path)
    # The Hub's cache names large files by the digest of their content.
    elif path.is_symlink() and _SHA256.fullmatch(path.resolve().name):
        result["sha256"] = path.resolve().name
    return result


def describe_output(shards: Sequence[ShardLayout]) -> dict[str, Any]:
    """Return the shards of the output with their bytes and their headers' digests."""
    return {
        "bytes": sum(shard.size for shard in shards),
        "tensors": sum(len(shard.offsets) for shard in shards),
        "shards": {
            shard.file: {
                "bytes": shard.size,
                "header_sha256": hashlib.sha256(shard.header[8:]).hexdigest(),
            }
            for shard in shards
        },
    }


def changed_input(
    model: ModelReference, entry: Mapping[str, Any], *, contents: bool = False
) -> list[str]:
    """Return how a model's files differ from what :func:`describe_inputs` said of them.

    Args:
        model: its loader has to be open.
        entry: the model's entry.
        contents: whether to read whole files where the entry has a digest of the content.
    """
    index = LoaderCache().get(ModelReference(model=model.model)).index
    folder = Path(index.base_path)
    problems = changed_files(folder, entry["files"], contents=contents)
    more = [name for name in _names(index, folder) if name not in entry["files"]]
    problems += [f"{name} is there, and not in the report" for name in more]
    if model.lora is not None:
        place = adapter_folder(model)
        problems += changed_files(place, entry.get("adapter", {}).get("files", {}))
    return problems


def changed_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], *, contents: bool = False
) -> list[str]:
    """Return how files differ from what a report says of them.

    Args:
        folder: where the files are.
        files: by file, its ``bytes``, and ``header_sha256`` or ``sha256`` where there is one.
        contents: whether to read whole shards where the report has a digest of the content.
    """
    problems = []
    for name, facts in files.items():
        path = folder / name
        if not is_file_name(name):
            problems.append(f"{name!r} is no plain name of a file in it")
            continue
        if not path.is_file():
            problems.append(f"{name} is not there")
            continue
        size = path.stat().st_size
        if size != facts["bytes"]:
            problems.append(f"{name} has {size:,} bytes, by the report {facts['bytes']:,}")
        elif facts.get("header_sha256") not in (None, header_digest(path)):
            problems.append(f"{name} has another header than by the report")
        elif "header_sha256" in facts and not contents:
            continue
        elif facts.get("sha256") not in (None, file_digest(path)):
            problems.append(f"{name} has another content than by the report")
    return problems
