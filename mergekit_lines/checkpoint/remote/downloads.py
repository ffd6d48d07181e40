"""What a merge takes from the Hub: room for it first, then those files alone, at one commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import huggingface_hub
from mergekit import common
from mergekit.common import ModelReference

from mergekit_lines.checkpoint.headers import Headers
from mergekit_lines.checkpoint.remote.failures import reading, status_of, unreached
from mergekit_lines.checkpoint.remote.headers import HubHeaders
from mergekit_lines.errors import LinesError

HubModels = Mapping[tuple[str, "str | None"], HubHeaders]


def hub_models(headers: Mapping[ModelReference, Headers]) -> HubModels:
    """Return the recipe's models on the Hub, by name and revision."""
    return {
        (model.model.path, model.model.revision): entry
        for model, entry in headers.items()
        if isinstance(entry, HubHeaders)
    }


@contextmanager
def files_from_hub(models: HubModels) -> Iterator[None]:
    """Let mergekit's downloads be those that are needed, at the commits that were looked at.

    mergekit itself asks for every .safetensors of a repository, second copies and those of
    subfolders too, asks anew each time it wants a path, and cannot do without a network.
    """
    original = common.huggingface_hub
    common.huggingface_hub = _Client(models)
    try:
        yield
    finally:
        common.huggingface_hub = original


class _Client:
    """huggingface_hub as mergekit sees it meanwhile."""

    def __init__(self, models: HubModels) -> None:
        self._models = models
        self._folders: dict[tuple[str, str | None], str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(huggingface_hub, name)

    def list_repo_files(self, repo_id: str, **more: Any) -> list[str]:
        """Return the names of the files that are needed, without asking again."""
        model = self._models.get((repo_id, more.get("revision")))
        if model is None:
            return list(huggingface_hub.list_repo_files(repo_id, **more))
        if model.files:
            return list(model.files)
        return [path.name for path in model.folder.iterdir()] if model.folder else []

    def snapshot_download(
        self,
        repo_id: str,
        revision: str | None = None,
        cache_dir: str | None = None,
        allow_patterns: Iterable[str] | None = None,
    ) -> str:
        """Return the folder of a model, downloading what is missing of it."""
        key = (repo_id, revision)
        model = self._models.get(key)
        if model is None:
            return huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=list(allow_patterns or []) or None,
            )
        if key not in self._folders:
            self._folders[key] = _download(model, cache_dir)
        return self._folders[key]


def _download(model: HubHeaders, cache_dir: str | None) -> str:
    if model.commit is None:  # no network: the snapshot as it is
        return str(model.folder)
    try:
        return str(
            huggingface_hub.snapshot_download(
                model.repo,
                revision=model.commit,
                cache_dir=cache_dir,
                allow_patterns=[_literal(name) for name in model.files],
            )
        )
    except Exception as error:
        if status_of(error) is None and not unreached(error):
            raise  # a full disk, for one
        raise LinesError(reading(f"model {model.repo}", error)) from error


def _literal(name: str) -> str:
    """Return a pattern that means this one name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
