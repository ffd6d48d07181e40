"""What a checkpoint on the Hub holds, by its index and the heads of its shards.

Of each shard huggingface_hub asks for its first 100 KB, which the header nearly always fits in.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.constants import (
    PYTORCH_WEIGHTS_NAME,
    SAFETENSORS_INDEX_FILE,
    SAFETENSORS_SINGLE_FILE,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mergekit_lines.checkpoint.headers import Headers, TensorHeader, read_headers
from mergekit_lines.errors import reason, some

SHARDS_AT_ONCE = 8


@dataclass
class RemoteHeaders(Headers):
    """Headers that were read on the Hub: a merge downloads these files first."""


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
        return _cached(repo_id, revision, cache_dir) or Headers(
            problems=[
                f"{where}: there is no such folder, no whole snapshot of it is in the local cache, "
                f"and HF_HUB_OFFLINE is set. Unset it, or download the model first."
            ]
        )
    api = HfApi()
    try:
        info = api.model_info(repo_id, revision=revision)
        files = {entry.rfilename for entry in info.siblings or []}
        found = _cached(repo_id, info.sha, cache_dir)
        return found or _from_hub(api, repo_id, info.sha, files, where, cache_dir)
    except Exception as error:  # noqa: BLE001 - the Hub's clients raise a dozen kinds
        if not isinstance(error, HfHubHTTPError):  # no answer at all
            found = _cached(repo_id, revision, cache_dir)
            if found:
                return found
        return Headers(problems=[_explain(where, error)])


def _cached(repo_id: str, revision: str | None, cache_dir: str | None) -> Headers | None:
    """Return the headers of a snapshot in the local cache, if it is whole."""
    try:
        folder = snapshot_download(
            repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True
        )
    except Exception:  # noqa: BLE001 - whatever the cache lacks, the Hub is asked next
        return None
    headers = read_headers(Path(folder))
    return None if headers.problems else headers


def _from_hub(
    api: Any,
    repo_id: str,
    commit: str | None,
    files: set[str],
    where: str,
    cache_dir: str | None,
) -> Headers:
    if {SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE} <= files:
        return Headers(
            problems=[
                f"{where}: found both {SAFETENSORS_SINGLE_FILE} and {SAFETENSORS_INDEX_FILE} on "
                f"the Hub, of which mergekit reads the second and transformers the first. "
                f"Download the model and remove the stale one."
            ]
        )
    if not {SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE} & files:
        if {PYTORCH_WEIGHTS_NAME, f"{PYTORCH_WEIGHTS_NAME}.index.json"} & files:
            return RemoteHeaders()  # pickled: no headers, but no problem
        return Headers(
            problems=[
                f"{where}: found no {SAFETENSORS_SINGLE_FILE}, no {PYTORCH_WEIGHTS_NAME} and no "
                f"index of either on the Hub, wanted a checkpoint in one of these forms. Check "
                f"the name in the recipe."
            ]
        )
    weight_map = None
    if SAFETENSORS_INDEX_FILE in files:
        index = api.hf_hub_download(
            repo_id, SAFETENSORS_INDEX_FILE, revision=commit, cache_dir=cache_dir
        )
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    shards = sorted({*weight_map.values()}) if weight_map else [SAFETENSORS_SINGLE_FILE]
    outside = [file for file in shards if PurePosixPath(file).name != file or "\\" in file]
    if outside:
        return Headers(
            problems=[
                f"{where}: {SAFETENSORS_INDEX_FILE} names shards outside the model's folder "
                f"({some(outside, 3)}), wanted files beside the index. Do not use this checkpoint."
            ]
        )
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        found = pool.map(
            lambda file: api.parse_safetensors_file_metadata(repo_id, file, revision=commit), shards
        )
        tensors = {
            name: TensorHeader(info.dtype, tuple(info.shape), file)
            for file, metadata in zip(shards, found, strict=True)
            for name, info in metadata.tensors.items()
        }
    headers = RemoteHeaders()
    weight_map = weight_map or tensors
    headers = RemoteHeaders()
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        headers.problems.append(
            f"{where}: {SAFETENSORS_INDEX_FILE} names {len(absent)} tensors that no shard holds: "
            f"{some(absent)}. Index and shards are of different models; use another revision."
        )
    # mergekit finds tensors through the index alone.
    headers.tensors = {name: tensors[name] for name in weight_map if name in tensors}
    return headers


def _explain(where: str, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f"{where}: the Hub gives access to it only on request ({reason(error)}). Ask for it on "
            f"the model's page, then `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{where}: the Hub has no such revision. Check what stands after the @."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{where}: there is no such folder, and no such model on the Hub. Check the name, and "
            f"for a private model `hf auth login`."
        )
    return (
        f"{where}: its index or the headers of its shards cannot be read on the Hub "
        f"({reason(error)}). Check the network and the model's files, or download it first."
    )
