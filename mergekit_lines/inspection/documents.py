"""A recipe file: one document for a merge, or several for ``mergekit-multi``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit.options import MergeOptions

from mergekit_lines.errors import LinesError
from mergekit_lines.host.names import MERGED, METHODS
from mergekit_lines.inspection.findings import Inspection
from mergekit_lines.inspection.inspect import inspect_recipe
from mergekit_lines.recipe.checks import check_method, check_recipe
from mergekit_lines.recipe.reading import Document, read_documents


def inspect_file(
    path: Path,
    options: MergeOptions,
    out: Path | None = None,
    *,
    deep: bool = False,
    workers: int | None = None,
) -> list[Inspection]:
    """Inspect every document of a recipe file.

    Args:
        path: of the file.
        options: mergekit's flags.
        out: where the document without a name goes.
        deep: read the weights too.
        workers: among how many processes the merge would be shared.

    Raises:
        LinesError: the file cannot be read, or none of its recipes is one of ours.
    """
    documents = read_documents(path)
    if not documents:
        raise LinesError(
            f"{path}: found nothing, wanted a recipe: merge_method, base_model, models, parameters."
        )
    methods = [document.config.merge_method for document in documents]
    # One recipe is merged by mergekit-lines merge too; several are mergekit-multi's.
    ours = MERGED if len(documents) == 1 else METHODS
    if not set(methods) & set(ours):
        problems = [one for method in methods for one in check_method(method, path)]
        raise LinesError(
            [problem.under(str(path)) for problem in problems]
            or f"{path}: found {len(documents)} recipes of mergekit's own methods, which "
            f"mergekit-multi merges by mergekit's own code, wanted one of {', '.join(METHODS)} "
            f"among them. To look at one of these write it to a file of its own."
        )
    more = {"deep": deep, "workers": workers}
    return [_inspect(document, options, out, ours, **more) for document in documents]


def _inspect(
    document: Document,
    options: MergeOptions,
    out: Path | None,
    ours: Collection[str],
    **more: Any,
) -> Inspection:
    inspection = Inspection(document.name, document.config.merge_method)
    if document.config.merge_method not in ours:
        return replace(
            inspection, notes=("mergekit's own method: it has no coefficients by depth",)
        )
    place = out if document.name is None else None
    if not document.needs:
        return inspect_recipe(document.config, document.text, options, place, document.name, **more)
    outputs = ", ".join(document.needs)
    return replace(
        inspection,
        notes=(
            f"it merges {outputs}, which an earlier document of this file makes: only the recipe "
            f"itself was checked. Once that is merged, inspect this document alone with the path "
            f"in place of the name.",
        ),
        problems=tuple(check_recipe(document.config, place, options, document.text)),
    )
