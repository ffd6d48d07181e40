"""A recipe file: one document for ``mergekit-yaml``, or several for ``mergekit-multi``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mergekit.merge_methods import registry
from mergekit.options import MergeOptions

from mergekit_lines.errors import LinesError, nearest
from mergekit_lines.host.names import METHODS
from mergekit_lines.inspection.findings import Inspection
from mergekit_lines.inspection.inspect import inspect_recipe
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.reading import Document, read_documents


def inspect_file(
    path: Path, options: MergeOptions, out: Path | None = None, *, deep: bool = False
) -> list[Inspection]:
    """Inspect every document of a recipe file.

    Args:
        path: of the file.
        options: mergekit's flags.
        out: where the document without a name goes.
        deep: read the weights too.

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
        registered = {method.spec.name for method in registry.registered_methods()}
        for name in (name for name in methods if name not in registered):
            raise LinesError(
                f"{path}: found merge_method {name}, which nobody has registered."
                f"{nearest(name, registered)}"
            )
        raise LinesError(
            f"{path}: found merge_method {', '.join(dict.fromkeys(methods))}, which is mergekit's "
            f"own, wanted {' or '.join(METHODS)}: only these have coefficients to show. To scale "
            f"that merge by depth write `merge_method: lines` and `wrap: {methods[-1]}`."
        )
    return [_inspect(document, options, out, deep=deep) for document in documents]


def _inspect(
    document: Document, options: MergeOptions, out: Path | None, *, deep: bool
) -> Inspection:
    inspection = Inspection(document.name, document.config.merge_method)
    if document.config.merge_method not in METHODS:
        return replace(
            inspection, notes=("mergekit's own method: it has no coefficients by depth",)
        )
    place = out if document.name is None else None
    if not document.needs:
        return inspect_recipe(
            document.config, document.text, options, place, document.name, deep=deep
        )
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
