"""The recipe of a model on the Hub, and what it would take to run it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RemoteEntryNotFoundError
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.bounded import RECIPE_BYTES, TEXT_BYTES, read_json, read_text
from mergekit_lines.checkpoint.remote.downloads import fetch
from mergekit_lines.checkpoint.remote.failures import reading
from mergekit_lines.checkpoint.remote.headers import (
    HubFiles,
    HubHeaders,
    files_of,
    missing,
    remote_headers,
)
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.errors import LinesError, nearest, reason
from mergekit_lines.files import COMMIT, RECIPE, REPORT
from mergekit_lines.host.names import METHODS, OF_MERGEKIT
from mergekit_lines.inspection.inspect import inspect_recipe
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.options import merging_command
from mergekit_lines.recipe.reading import one_document
from mergekit_lines.report.flags import are_safe, safe_flags
from mergekit_lines.report.origins import Origins, is_local, is_repo_id

_ADAPTER = re.compile(r"adapter_(config\.json|model\..+)")


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
        command: that merges it as it was, without its arguments.
        flags: mergekit's, that the merge's bytes hang on.
        needs: its models.
        problems: for which a merge would be refused here.
        notes: what else is known of it.
    """

    text: str
    commit: str
    method: str
    command: tuple[str, ...]
    flags: tuple[str, ...]
    needs: tuple[Need, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@hub_session()
def pull_recipe(repo: str, *, pin: bool = False) -> Pulled:
    """Fetch the recipe of a merged model and look at what it wants; no weight is downloaded.

    Args:
        repo: the model's name on the Hub, with ``@revision`` where it is not the newest.
        pin: name the commits that were merged, as far as the model's report knows them.

    Raises:
        LinesError: the Hub does not give the model, or it has no recipe that can be read.
    """
    name, _, revision = repo.partition("@")
    if not is_repo_id(name):
        raise LinesError(
            f"{repo}: found no name of a model on the Hub, wanted USER/NAME, or USER/NAME@REVISION."
        )
    where = f"model {repo}"
    with _read_failures(where):
        files = files_of(name, revision or None)
    path = _fetched(where, files, RECIPE, most=RECIPE_BYTES)
    if path is None:
        raise LinesError(
            f"{where}: found no {RECIPE}, which mergekit writes beside what it merges. Ask its "
            f"owner for the recipe."
        )
    text, config = _read(where, path)
    report = _report(where, files)
    notes = []
    if pin:
        origins = Origins(config, report.inputs, Path.cwd())
        text = origins.pinned(text)
        config = MergeConfiguration.model_validate(one_document(text))
        loose = [f"{part}" for part in _parts(config) if not COMMIT.fullmatch(part.revision or "")]
        if loose:
            notes.append(f"--pin: no commit is known for {', '.join(loose)}")
    if not report.only_flags:
        notes.append(
            "its report names flags that no merge writes there: they are left out of the command"
        )
    if report.alpha is not None:
        notes.append(f"α was found to be {report.alpha!r}, for `alpha: auto`")
    ours = (*METHODS, *(OF_MERGEKIT if report.is_there else ()))
    method = config.merge_method
    needs, problems = _look(config, text, ours)
    return Pulled(
        text,
        files.commit or "main",
        method,
        tuple(merging_command(method)) if method in ours else ("mergekit-yaml",),
        report.flags,
        needs,
        problems,
        tuple(notes),
    )


@contextmanager
def _read_failures(where: str) -> Iterator[None]:
    try:
        yield
    except LinesError:
        raise
    except Exception as error:
        raise LinesError(reading(where, error, folder=False)) from error


def _fetched(where: str, files: HubFiles, name: str, most: int = TEXT_BYTES) -> Path | None:
    """Return a small file beside a model's weights, or None where the model has none."""
    with _read_failures(where):
        try:
            return fetch(where, files, name, most=most)
        except RemoteEntryNotFoundError:
            return None


def _read(where: str, path: Path) -> tuple[str, MergeConfiguration]:
    try:
        text = read_text(path, RECIPE_BYTES)
        return text, MergeConfiguration.model_validate(one_document(text))
    except Exception as error:
        raise LinesError(
            f"{where}: its {RECIPE} cannot be read ({reason(error)}), wanted one recipe of this "
            f"release of mergekit. Ask its owner for another."
        ) from error


@dataclass(frozen=True)
class HubReport:
    """What a report on the Hub says, as far as it says it as ours do: anyone may write one.

    Attributes:
        inputs: by model, with the commit of each.
        flags: of mergekit-yaml, none but those that a merge writes there.
        only_flags: whether it names no others.
        alpha: that was found for ``alpha: auto``.
        is_there: whether there is one: mergekit's own merges have none.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    only_flags: bool = True
    alpha: float | None = None
    is_there: bool = False


def _report(where: str, files: HubFiles) -> HubReport:
    """Return what the report beside the recipe says; mergekit's own merges have none."""
    path = _fetched(where, files, REPORT)
    try:
        content = _mapping(None if path is None else read_json(path))
    except (OSError, ValueError):
        content = {}
    inputs = {
        key: {**_mapping(facts), "adapter": _mapping(_mapping(facts).get("adapter"))}
        for key, facts in _mapping(content.get("inputs")).items()
    }
    flags = content.get("flags")
    alpha = _mapping(content.get("alpha"))
    value = alpha.get("value")
    one = "models" in alpha and "blocks" not in alpha  # by Eq. 2, for the whole model
    by_eq2 = one and isinstance(value, float) and math.isfinite(value)
    alpha_of_eq2 = value if by_eq2 else None
    return HubReport(inputs, safe_flags(flags), are_safe(flags), alpha_of_eq2, bool(content))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parts(config: MergeConfiguration) -> list[ModelPath]:
    """Return the models and adapters of a recipe that are on the Hub."""
    models = models_in_order(config)
    parts = [part for model in models for part in (model.model, model.lora) if part is not None]
    return [part for part in dict.fromkeys(parts) if not is_local(part.path)]


def _look(
    config: MergeConfiguration, text: str, ours: Collection[str]
) -> tuple[tuple[Need, ...], tuple[str, ...]]:
    """Return what a recipe needs, and for which problems it would be refused here."""
    if config.merge_method in ours:
        inspection = inspect_recipe(config, text, MergeOptions(quiet=True))
        problems = list(map(str, inspection.problems))
    else:
        problems = list(_unknown(config.merge_method))
    needs = []
    for model in models_in_order(config):
        for need, problem in _needs(model):
            needs.append(need)
            if problem and config.merge_method not in ours:
                problems.append(problem)
    return tuple({need.name: need for need in needs}.values()), tuple(dict.fromkeys(problems))


def _unknown(method: str) -> Iterator[str]:
    methods = {registered.spec.name for registered in registered_methods()}
    if method not in methods:
        yield (
            f"merge_method {method}: mergekit {version('mergekit')} does not have it."
            f"{nearest(method, methods)} Merge with the release that was used."
        )


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
            yield _adapter(name, part)
        else:
            yield _on_hub(name, part)


def _on_hub(name: str, part: ModelPath) -> tuple[Need, str | None]:
    headers = remote_headers(part.path, part.revision)
    if headers.problems or not isinstance(headers, HubHeaders):
        return Need(name, "not to be had"), headers.problems[0]
    return _need(name, headers), None


def _need(name: str, files: HubFiles, kind: str = "") -> Need:
    size = sum(missing(files).values())
    return Need(name, f"{'on the Hub' if size else 'in the local cache'}{kind}", size)


def _adapter(name: str, part: ModelPath) -> tuple[Need, str | None]:
    try:
        files = files_of(part.path, part.revision)
    except Exception as error:  # noqa: BLE001 - the Hub's clients raise a dozen kinds
        return Need(name, "not to be had"), reading(f"adapter {name}", error)
    sizes = {file: size for file, size in files.files.items() if _ADAPTER.fullmatch(file)}
    if "adapter_config.json" not in sizes or len(sizes) == 1:
        return (
            Need(name, "not to be had"),
            f"adapter {name}: found no adapter_config.json with weights beside it on the Hub, "
            f"wanted a PEFT adapter. Check the name.",
        )
    return _need(name, replace(files, files=sizes), ", an adapter"), None
