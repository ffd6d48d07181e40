"""What a checkpoint on the Hub holds, by its index and the heads of its shards.

Of each shard huggingface_hub asks for its first 100 KB, which the header nearly always fits in.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mergekit_lines.checkpoint.bounded import INDEX_BYTES, TEXT_BYTES, read_json
from mergekit_lines.checkpoint.headers import (
    Headers,
    TensorHeader,
    is_file_name,
    read_headers,
    safe_form,
    take_indexed,
    unfit_forms,
)
from mergekit_lines.checkpoint.remote.failures import message_of, reading, status_of, unreached
from mergekit_lines.checkpoint.stand_ins import MOST, is_pointer
from mergekit_lines.errors import TextError, some
from mergekit_lines.files import (
    FOLDERS,
    MODULES,
    is_module_folder,
    module_folders,
    travels,
    within_bounds,
)

SHARDS_AT_ONCE = 8
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What git-lfs may keep of what is read of a model.
_LARGE = re.compile(
    r"[^/]+\.(safetensors|bin)|tokenizer\.(json|model)|spiece\.model|vocab\.(json|txt)|merges\.txt"
)
SHA256 = 64  # digits
_CODE = re.compile(r"\w+\.py")
# Beside the weights, what mergekit, transformers and the output's tokenizer want of a model.
_TEXTS = re.compile(
    r"[^/]+\.json|tokenizer\.model|spiece\.model|vocab\.txt|merges\.txt|chat_template\.jinja"
)


@dataclass
class HubFiles:
    """Files of a model on the Hub.

    Attributes:
        repo: its name.
        commit: what was looked at; None where the Hub was not asked.
        files: those that are needed, with their bytes.
        digests: what the Hub says of their contents: the SHA-256 of a large file, and of another
            the SHA-1 that git gives it.
    """

    repo: str = ""
    commit: str | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass
class HubHeaders(HubFiles, Headers):
    """Headers of a model on the Hub, from its snapshot in the local cache.

    Attributes:
        folder: the snapshot, where its weights are whole.
    """

    folder: Path | None = None


@dataclass
class RemoteHeaders(HubHeaders):
    """Headers that were read on the Hub: a merge downloads these files first."""


def files_of(repo: str, revision: str | None = None) -> HubFiles:
    """Ask the Hub for all files of a model.

    Raises:
        Exception: what huggingface_hub raises where the Hub does not say.
    """
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    entries = info.siblings or []
    sizes = {entry.rfilename: entry.size or 0 for entry in entries}
    digests = {
        entry.rfilename: (entry.lfs.sha256 if entry.lfs else entry.blob_id) or ""
        for entry in entries
    }
    valid = {name: digest for name, digest in digests.items() if _DIGEST.fullmatch(digest)}
    return HubFiles(repo, info.sha, sizes, valid)


def remote_pointers(where: str, files: HubFiles, cache_dir: str | None = None) -> list[str]:
    """Return which files of a model are git-lfs pointers on the Hub itself."""
    small = [name for name, size in files.files.items() if size <= MOST and _LARGE.fullmatch(name)]
    return [
        f"{where}: {name} is a git-lfs pointer on the Hub itself, wanted the contents: its owner "
        f"pushed it without git-lfs. Ask for the file there."
        for name in small
        if is_pointer(
            Path(hf_hub_download(files.repo, name, revision=files.commit, cache_dir=cache_dir))
        )
    ]


def remote_headers(
    repo_id: str, revision: str | None = None, cache_dir: str | None = None
) -> Headers:
    """Return the headers of a model on the Hub without downloading its weights.

    A whole snapshot in the local cache is read instead of asking the Hub: that of the commit
    which the Hub names, or, without a network, that of the revision as it was last seen.

    Args:
        repo_id: the model's name on the Hub.
        revision: branch, tag or commit; None for the default branch.
        cache_dir: where snapshots lie, if not in huggingface_hub's own cache.
    """
    where = f"model {repo_id}{'@' + revision if revision else ''}"
    if constants.HF_HUB_OFFLINE:
        offline = OfflineModeIsEnabled("HF_HUB_OFFLINE")
        return _cached(repo_id, revision, cache_dir) or Headers(problems=[reading(where, offline)])
    try:
        files = files_of(repo_id, revision)
        headers: Headers | None = _cached(repo_id, files.commit, cache_dir)
        if headers is None:
            headers = _from_hub(files, where, cache_dir)
        if not isinstance(headers, HubHeaders):
            return headers
        headers.repo, headers.commit = repo_id, files.commit
        headers.files = _needed(files, headers, cache_dir)
        headers.digests = {
            name: digest for name, digest in files.digests.items() if name in headers.files
        }
    except Exception as error:  # noqa: BLE001 - the Hub's clients raise a dozen kinds
        no_answer = not isinstance(error, HfHubHTTPError)
        if no_answer and (cached := _cached(repo_id, revision, cache_dir)):
            return cached
        return Headers(problems=[_unread(where, error)])
    return headers


def _unread(where: str, error: Exception) -> str:
    if status_of(error) is not None or unreached(error):
        return reading(where, error)
    return (
        f"{where}: its index or the headers of its shards cannot be read on the Hub "
        f"({message_of(error)}). Check the model's files, or use another revision."
    )


def _needed(files: HubFiles, headers: Headers, cache_dir: str | None) -> dict[str, int]:
    """Return what a merge needs of a model's files: no second copy of the weights, no picture.

    That is, beside the weights, what mergekit reads and what goes with the merged model.
    """
    sizes = files.files
    if headers.tensors is None:
        weights = {name for name in sizes if name.endswith(".bin") and "/" not in name}
    else:
        weights = {header.file for header in headers.tensors.values()}
    small = {name: size for name, size in sizes.items() if travels(name) or _CODE.fullmatch(name)}
    names = {*weights, *within_bounds(small)}
    folders = {*FOLDERS, *_modules(files, cache_dir)}
    return {
        name: size
        for name, size in sizes.items()
        if name in names or _TEXTS.fullmatch(name) or _is_below(name, folders)
    }


def _modules(files: HubFiles, cache_dir: str | None) -> list[str]:
    """Return the folders that a model's modules.json names; it is judged where it is carried."""
    if not 0 < files.files.get(MODULES, 0) <= TEXT_BYTES:
        return []
    path = hf_hub_download(files.repo, MODULES, revision=files.commit, cache_dir=cache_dir)
    try:
        return [one for one in module_folders(read_json(Path(path))) if is_module_folder(one)]
    except TextError:
        return []


def _is_below(name: str, folders: Collection[str]) -> bool:
    """Tell whether a file is in one of some folders, and not hidden there."""
    inside = any(name.startswith(f"{folder}/") for folder in folders)
    return inside and not any(part.startswith(".") for part in name.split("/"))


def missing(files: HubFiles, cache_dir: str | None = None) -> dict[str, int]:
    """Return the needed files that are not in the local cache, with their bytes."""
    return {
        name: size
        for name, size in files.files.items()
        if not isinstance(try_to_load_from_cache(files.repo, name, cache_dir, files.commit), str)
    }


def _cached(repo_id: str, revision: str | None, cache_dir: str | None) -> HubHeaders | None:
    """Return the headers of a snapshot in the local cache, if it is whole."""
    config = try_to_load_from_cache(repo_id, "config.json", cache_dir, revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    headers = read_headers(folder)
    if headers.problems:
        return None
    return HubHeaders(headers.tensors, repo=repo_id, folder=folder)


def _from_hub(listing: HubFiles, where: str, cache_dir: str | None) -> Headers:
    if pointed := remote_pointers(where, listing, cache_dir):
        return Headers(problems=pointed)
    if problem := unfit_forms(where, listing.files, on_hub=True):
        return Headers(problems=[problem])
    headers = RemoteHeaders()
    form = safe_form(listing.files)
    if form is None:
        return headers  # pickled: no headers, but no problem
    weight_map = None
    if form.endswith(".json"):
        index = hf_hub_download(listing.repo, form, revision=listing.commit, cache_dir=cache_dir)
        weight_map = read_json(Path(index), INDEX_BYTES)["weight_map"]
    shards = sorted({*weight_map.values()}) if weight_map else [form]
    if outside := [file for file in shards if not is_file_name(file)]:
        return Headers(
            problems=[
                f"{where}: {form} names shards outside the model's folder "
                f"({some(outside, 3)}), wanted files beside the index. Do not use this checkpoint."
            ]
        )
    tensors = _read_shards(listing, shards)
    names = weight_map or tensors
    take_indexed(headers, names, tensors, f"{where}: {form}", "use another revision")
    return headers


def _read_shards(listing: HubFiles, shards: Sequence[str]) -> dict[str, TensorHeader]:
    """Return the headers of all tensors in some shards, several of which are asked for at once."""

    def metadata_of(file: str) -> Any:
        return HfApi().parse_safetensors_file_metadata(listing.repo, file, revision=listing.commit)

    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        return {
            name: TensorHeader(info.dtype, tuple(info.shape), file)
            for file, shard in zip(shards, pool.map(metadata_of, shards), strict=True)
            for name, info in shard.tensors.items()
        }
