"""A recipe file: one document for ``mergekit-yaml``, or several for ``mergekit-multi``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import load_config
from pydantic import ValidationError

from mergekit_lines.errors import LinesError, reason
from mergekit_lines.findings import Inspection
from mergekit_lines.inspection import inspect_recipe
from mergekit_lines.parameters import schema_problems
from mergekit_lines.plugin import METHODS
from mergekit_lines.preflight import check_recipe


@dataclass(frozen=True)
class Document:
    """One recipe of a file, and which of the file's own outputs it merges."""

    name: str | None
    config: MergeConfiguration
    source: str
    needs: tuple[str, ...] = ()


def inspect_file(path: Path, options: MergeOptions, out: Path | None = None) -> list[Inspection]:
    """Inspect every document of a recipe file; ``out`` is where the one without a name goes.

    Raises:
        LinesError: the file cannot be read, or none of its recipes is one of ours.
    """
    documents = read_documents(path)
    if not documents:
        raise LinesError(
            f"{path}: found nothing, wanted a recipe: merge_method, base_model, models, parameters."
        )
    methods = [document.config.merge_method for document in documents]
    if not set(methods) & set(METHODS):
        raise LinesError(
            f"{path}: found merge_method {', '.join(dict.fromkeys(methods))}, which is mergekit's "
            f"own, wanted {' or '.join(METHODS)}: only these have coefficients to show. To scale "
            f"that merge by depth write `merge_method: lines` and `wrap: {methods[-1]}`."
        )
    return [_inspect(document, options, out) for document in documents]


def read_documents(path: Path) -> list[Document]:
    """Read a recipe file as mergekit's commands do.

    Raises:
        LinesError: it is no YAML, or a document is no recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found: list[Any] = [entry for entry in yaml.safe_load_all(text) if entry is not None]
        _check_mappings(path, found)
        if len(found) == 1:
            document = {key: value for key, value in found[0].items() if key != "name"}
            return [Document(None, MergeConfiguration.model_validate(document), text)]
        configs, needs = load_config(text, "INTERMEDIATE_DIR")
        return [
            Document(
                name,
                # As mergekit-multi does: with paths in the place of its documents' names.
                MergeConfiguration.model_validate(yaml.safe_load(configs[name].to_yaml())),
                yaml.safe_dump(entry, sort_keys=False),
                tuple(sorted(needs[name])),
            )
            for entry in found
            for name in [entry.get("name")]
        ]
    except LinesError:
        raise
    except ValidationError as error:
        raise LinesError([f"{path}: {problem}" for problem in schema_problems(error)]) from error
    except Exception as error:
        raise LinesError(
            f"{path}: mergekit cannot read this recipe ({reason(error)}). Mend the file."
        ) from error


def _check_mappings(path: Path, found: list[Any]) -> None:
    for entry in found:
        if not isinstance(entry, dict):
            raise LinesError(
                f"{path}: found {str(entry)[:40]!r}, wanted a recipe: merge_method, base_model, "
                f"models, parameters."
            )


def _inspect(document: Document, options: MergeOptions, out: Path | None) -> Inspection:
    told = Inspection(document.name, document.config.merge_method)
    if document.config.merge_method not in METHODS:
        return replace(told, notes=("mergekit's own method: it has no coefficients by depth",))
    place = out if document.name is None else None
    if not document.needs:
        return inspect_recipe(document.config, document.source, options, place, document.name)
    outputs = ", ".join(document.needs)
    return replace(
        told,
        notes=(
            f"it merges {outputs}, which an earlier document of this file makes: only the recipe "
            f"itself was checked. Once that is merged, inspect this document alone with the path "
            f"in place of the name.",
        ),
        problems=tuple(check_recipe(document.config, place, options, document.source)),
    )
