"""What a merge takes from the Hub: room for it first, then those files alone, at one commit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from mergekit import common
from mergekit.common import ModelReference

from mergekit_lines.checkpoint.bounded import TEXT_BYTES
from mergekit_lines.checkpoint.headers import Headers
from mergekit_lines.checkpoint.remote.failures import reading, status_of
from mergekit_lines.checkpoint.remote.headers import (
    SHA256,
    HubFiles,
    HubHeaders,
    files_of,
    missing,
    remote_pointers,
)
from mergekit_lines.errors import LinesError
from mergekit_lines.files import file_digest

# An adapter, and the tokenizer that it may have been trained with.
ADAPTER = re.compile(
    r"adapter_(config\.json|model\..+)|tokenizer\.(json|model)|tokenizer_config\.json"
    r"|(special_tokens_map|added_tokens|generation_config)\.json|chat_template\.jinja"
)
SMALL = 64 << 20  # bytes of a file whose digest costs nothing

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
            # Without a network it is the snapshot as it is.
            online = model.commit is not None
            folder = snapshot(f"model {repo_id}", model, cache_dir) if online else model.folder
            self._folders[key] = str(folder)
        return self._folders[key]


def snapshot(where: str, files: HubFiles, cache_dir: str | None = None) -> Path:
    """Download what is missing of some files of a model, and hold them against the Hub's digests.

    Large files are read for their digest when they come; small ones, which others may have
    fetched before, every time.

    Args:
        where: the model, for errors.
        files: those that are needed, at one commit.
        cache_dir: where snapshots lie, if not in huggingface_hub's own cache.

    Raises:
        LinesError: the Hub does not give them, or gives other contents than it names.
    """
    unchecked = _Unchecked(files, cache_dir)
    unchecked.note(missing(files, cache_dir))
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                files.repo,
                revision=files.commit,
                cache_dir=cache_dir,
                allow_patterns=[_literal(name) for name in files.files],
            )
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and status_of(error) is None:
            raise  # a full disk, for one
        raise LinesError(reading(where, error)) from error
    large = unchecked.names()
    digests = {
        name: digest
        for name, digest in files.digests.items()
        if name in large or files.files.get(name, 0) <= SMALL
    }
    check_digests(where, folder, digests)
    unchecked.done()
    return folder


def adapter_snapshot(repo: str, revision: str | None) -> Path:
    """Download an adapter of PEFT, and return its folder.

    Raises:
        LinesError: the Hub does not give it, or gives other contents than it names.
    """
    where = f"adapter {repo}{'@' + revision if revision else ''}"
    try:
        files = files_of(repo, revision)
    except Exception as error:
        last_seen = None  # where there is no network
        if status_of(error) is None:
            last_seen = try_to_load_from_cache(repo, "adapter_config.json", revision=revision)
        if isinstance(last_seen, str):
            return Path(last_seen).parent
        raise LinesError(reading(where, error)) from error
    sizes = {name: size for name, size in files.files.items() if ADAPTER.fullmatch(name)}
    files = replace(files, files=sizes)
    if pointed := remote_pointers(where, files):
        raise LinesError(pointed)
    return snapshot(where, files)


def fetch(
    where: str, files: HubFiles, name: str, revision: str | None = None, most: int = TEXT_BYTES
) -> Path:
    """Download one small file, and hold it against the Hub's digest.

    Args:
        where: the model, for errors.
        files: what the Hub says of the model's files.
        name: the file.
        revision: by which it is kept in the cache, if not by its commit.
        most: bytes that it may have.

    Raises:
        LinesError: it is too large, or its content is not what the Hub names.
        Exception: what huggingface_hub raises where the file cannot be had.
    """
    size = files.files.get(name, 0)
    if size > most:
        raise LinesError(
            f"{where}: {name} has {size:,} bytes, wanted {most:,} at most. Do not use this model."
        )
    path = Path(
        huggingface_hub.hf_hub_download(files.repo, name, revision=revision or files.commit)
    )
    if name in files.digests:
        check_digests(where, path.parent, {name: files.digests[name]})
    return path


def check_digests(where: str, folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse files of a snapshot whose contents are not those that the Hub names.

    What is refused is removed from the cache, so that it is asked for again.

    Args:
        where: the model, for errors.
        folder: the snapshot.
        digests: by file, its SHA-256, or the SHA-1 that git gives a small one.

    Raises:
        LinesError: names the files.
    """
    problems = []
    for name, digest in digests.items():
        path = folder / name
        if not path.exists():
            continue
        content = file_digest(path) if len(digest) == SHA256 else _git_digest(path)
        if content != digest:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            problems.append(
                f"{where}: {name} has come with the digest {content[:12]}…, and by the Hub it is "
                f"{digest[:12]}…: something between here and there changes files. It was removed "
                f"from the cache. Run the same command again, or over another network."
            )
    if problems:
        raise LinesError(problems)


def _git_digest(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Unchecked:
    """A note in the cache of large files that may be there and were not held against a digest.

    It outlives a run that is killed between the two.
    """

    def __init__(self, files: HubFiles, cache_dir: str | None) -> None:
        folder = repo_folder_name(repo_id=files.repo, repo_type="model")
        cache = Path(cache_dir or constants.HF_HUB_CACHE)
        self._path = cache.expanduser() / folder / f"{files.commit}.unchecked"

    def names(self) -> set[str]:
        """Return the files that are noted."""
        try:
            return set(self._path.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return set()

    def note(self, names: Iterable[str]) -> None:
        """Add files that are going to be downloaded."""
        noted = self.names() | set(names)
        if noted:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("\n".join(sorted(noted)), encoding="utf-8")

    def done(self) -> None:
        """Forget them: all were checked."""
        self._path.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """Return a pattern that means this one name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
