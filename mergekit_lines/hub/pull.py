"""The recipe of a model on the Hub, and what it would take to run it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.remote import RemoteHeaders, remote_headers
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.hub.failures import reading
from mergekit_lines.hub.origins import Origins, is_local
from mergekit_lines.hub.whole import RECIPE, REPORT
from mergekit_lines.inspection import inspect_recipe
from mergekit_lines.planner import models_in_order
from mergekit_lines.plugin import METHODS
from mergekit_lines.sizes import header_bytes

MOST = 1 << 20  # bytes of a recipe at most


@dataclass(frozen=True)
class Need:
    """A model that a recipe wants: where it is, and its bytes to download."""

    name: str
    where: str
    download: int = 0


@dataclass(frozen=True)
class Pulled:
    """A recipe from the Hub.

    Attributes:
        text: as a file.
        commit: of the model that it was taken from.
        method: its merge_method.
        needs: its models.
        problems: for which a merge would be refused here.
        notes: what else is known of it.
    """

    text: str
    commit: str
    method: str
    needs: tuple[Need, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def pull_recipe(repo: str, *, pin: bool = False) -> Pulled:
    """Fetch the recipe of a merged model and look at what it wants; no weight is downloaded.

    Args:
        repo: the model's name on the Hub, with ``@revision`` where it is not the newest.
        pin: name the commits that were merged, as far as the model's report knows them.

    Raises:
        LinesError: the Hub does not give the model, or it has no recipe that can be read.
    """
    name, _, revision = repo.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise LinesError(
            f"{repo}: found no name of a model on the Hub, wanted USER/NAME, or USER/NAME@REVISION."
        ) from None
    where = f"model {repo}"
    try:
        commit = HfApi().model_info(name, revision=revision or None).sha or "main"
        path = Path(hf_hub_download(name, RECIPE, revision=commit))
    except RemoteEntryNotFoundError:
        raise LinesError(
            f"{where}: found no {RECIPE}, which mergekit writes beside what it merges. Ask its "
            f"owner for the recipe."
        ) from None
    except Exception as error:
        raise LinesError(reading(where, error, folder=False)) from error
    text, config = _read(where, path)
    report = _report(name, commit)
    notes = []
    origins = Origins(config, report.get("inputs", {}), Path.cwd())
    if pin:
        pinned = origins.pinned(text)
        if pinned == text:
            notes.append("--pin: the model's report names no commits; the recipe is as it was")
        text = pinned
        config = MergeConfiguration.model_validate(_document(text))
    alpha = report.get("alpha", {})
    if "models" in alpha:
        notes.append(f"α was found to be {alpha['value']!r}, for `alpha: auto`")
    needs, problems = _look(config, text)
    return Pulled(text, commit, config.merge_method, needs, problems, tuple(notes))


def _read(where: str, path: Path) -> tuple[str, MergeConfiguration]:
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"{path.stat().st_size:,} bytes")  # noqa: TRY301
        text = path.read_text(encoding="utf-8")
        return text, MergeConfiguration.model_validate(_document(text))
    except Exception as error:
        raise LinesError(
            f"{where}: its {RECIPE} cannot be read ({reason(error)}), wanted one recipe of this "
            f"release of mergekit. Ask its owner for another."
        ) from error


def _document(text: str) -> dict[str, Any]:
    return {key: value for key, value in yaml.safe_load(text).items() if key != "name"}


def _report(name: str, commit: str) -> dict[str, Any]:
    """Return the report beside the recipe; mergekit's own merges have none."""
    try:
        path = Path(hf_hub_download(name, REPORT, revision=commit))
        content = json.loads(path.read_text(encoding="utf-8"))
    except Exception:  # noqa: BLE001 - it only adds to what is told
        return {}
    return content if isinstance(content, dict) else {}


def _look(config: MergeConfiguration, text: str) -> tuple[tuple[Need, ...], tuple[str, ...]]:
    """Return what a recipe needs, and for which problems it would be refused here."""
    if config.merge_method in METHODS:
        told = inspect_recipe(config, text, MergeOptions(quiet=True))
        problems = list(told.problems)
    else:
        problems = []
    needs = []
    for model in models_in_order(config):
        for need, problem in _needs(model):
            needs.append(need)
            if problem and config.merge_method not in METHODS:
                problems.append(problem)
    return tuple({need.name: need for need in needs}.values()), tuple(dict.fromkeys(problems))


def _needs(model: ModelReference) -> Iterator[tuple[Need, str | None]]:
    for part in (model.model, model.lora):
        if part is None:
            continue
        name = f"{part}"
        if Path(part.path).is_dir():
            yield Need(name, "a folder here"), None
        elif is_local(part.path):
            yield (
                Need(name, "a folder of whoever merged: put your own path in its place"),
                f"model {name}: there is no such folder. Put the path of your own copy there.",
            )
        elif part is model.lora:
            yield Need(name, "on the Hub, an adapter"), None
        else:
            yield _on_hub(name, part)


def _on_hub(name: str, part: Any) -> tuple[Need, str | None]:
    headers = remote_headers(part.path, part.revision)
    if headers.problems:
        return Need(name, "not to be had"), headers.problems[0]
    if not isinstance(headers, RemoteHeaders):
        return Need(name, "in the local cache"), None
    size = sum(map(header_bytes, (headers.tensors or {}).values()))
    return Need(name, "on the Hub", size), None
