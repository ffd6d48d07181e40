"""Reading a recipe: a file, a text or a mapping."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from mergekit_lines.checkpoint.bounded import RECIPE_BYTES, parse_documents, parse_yaml, read_text
from mergekit_lines.errors import LinesError, TextError, nearest, reason
from mergekit_lines.lines.schedule import plain


@dataclass(frozen=True)
class Document:
    """One recipe of a file, and which of the file's own outputs it merges."""

    name: str | None
    config: MergeConfiguration
    text: str
    needs: tuple[str, ...] = ()


def read_documents(path: Path) -> list[Document]:
    """Read a recipe file as mergekit's commands do.

    Raises:
        LinesError: it is no YAML, or a document is no recipe.
    """
    # Here: the command binds run_merge by name, and may not do so before it is ours.
    from mergekit.scripts.multimerge import load_config

    try:
        text = read_text(path, RECIPE_BYTES)
        entries: list[Any] = [entry for entry in parse_documents(text) if entry is not None]
        _check_mappings(path, entries)
        if len(entries) == 1:
            document = {key: value for key, value in entries[0].items() if key != "name"}
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
            for entry in entries
            for name in [entry.get("name")]
        ]
    except LinesError:
        raise
    except ValidationError as error:
        raise LinesError([f"{path}: {problem}" for problem in schema_problems(error)]) from error
    except Exception as error:
        raise LinesError(
            f"{path}: this recipe cannot be read ({reason(error)}). Mend the file."
        ) from error


def _check_mappings(path: Path, entries: list[Any]) -> None:
    for entry in entries:
        if not isinstance(entry, dict):
            raise LinesError(
                f"{path}: found {str(entry)[:40]!r}, wanted a recipe: merge_method, base_model, "
                f"models, parameters."
            )
        if "experts" in entry and "merge_method" not in entry:
            raise LinesError(
                f"{path}: found experts and no merge_method, wanted a merge: a mixture of experts "
                f"is made by mergekit's own command: mergekit-moe {path} OUT."
            )


def schema_problems(error: ValidationError) -> Iterator[str]:
    """Yield what mergekit's schema says of a recipe or an option, by place."""
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        yield f"{place}: {problem['msg']}." if place else f"{problem['msg']}."


def parsed(document: Any) -> tuple[str, Any]:
    """Return a recipe's text and mergekit's configuration, from what its YAML holds.

    Raises:
        LinesError: it is not what mergekit takes for a recipe.
    """
    try:
        config = MergeConfiguration.model_validate(document)
    except ValidationError as error:
        raise LinesError([f"recipe: {problem}" for problem in schema_problems(error)]) from None
    except (RuntimeError, TypeError) as error:  # mergekit's own check of models, slices, modules
        raise LinesError(f"recipe: {reason(error)}.") from None
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True), config


def read_recipe(recipe: Any) -> tuple[str, Any]:
    """Return a recipe's text and what it holds.

    Args:
        recipe: path of a YAML file, or a mapping.

    Raises:
        LinesError: it cannot be read, or is not YAML.
    """
    if isinstance(recipe, Mapping):
        document = _plain("recipe", recipe)
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True), document
    if not isinstance(recipe, (str, os.PathLike)):
        raise LinesError(
            f"recipe: found {type(recipe).__name__}, wanted the path of a YAML file or a mapping."
        )
    path = Path(recipe)
    try:
        text = read_text(path, RECIPE_BYTES)
    except (OSError, TextError) as error:
        shown = str(path).splitlines()[0][:80] if str(path) else "''"
        why = (isinstance(error, OSError) and error.strerror) or reason(error)
        raise LinesError(
            f"recipe {shown}: cannot be read ({why}), wanted the path "
            f"of a YAML file. For a recipe in Python pass a mapping, e.g. yaml.safe_load(text)."
        ) from None
    try:
        return text, parse_yaml(text)
    except TextError as error:
        raise LinesError(f"recipe {path}: {reason(error)}.") from None


def _plain(place: str, value: Any) -> Any:
    """Return mappings, sequences, paths and numbers as YAML has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{place}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{place}[{number}]", item) for number, item in enumerate(value)]
    value = plain(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise LinesError(
        f"{place}: found {value!r:.80} ({type(value).__name__}), wanted what a YAML file can "
        f"hold: text, a number, true or false, a list or a mapping."
    )


def one_document(text: str) -> dict[str, Any]:
    """Return the one recipe of a text that came from elsewhere, without its document's name.

    Raises:
        TextError: it is no YAML within the bounds, or no mapping.
    """
    document = parse_yaml(text)
    if not isinstance(document, dict):
        raise TextError(f"it holds {str(document)[:40]!r} in place of a recipe")
    return {key: value for key, value in document.items() if key != "name"}


def merge_options(options: Mapping[str, Any]) -> Any:
    """Return mergekit's ``MergeOptions``, with what its command does before a merge.

    Raises:
        LinesError: an option is unknown, or has a value that it cannot have.
    """
    from mergekit.options import MergeOptions

    fields = MergeOptions.model_fields
    unknown = [name for name in options if name not in fields]
    if unknown:
        raise LinesError(
            [
                f"option {name}: mergekit has no such option.{nearest(name, fields)}"
                for name in unknown
            ]
        )
    try:
        flags = MergeOptions(**options)
    except ValidationError as error:
        raise LinesError([f"option {problem}" for problem in schema_problems(error)]) from None
    if flags.num_threads is not None and flags.num_threads < 1:
        raise LinesError(f"option num_threads: found {flags.num_threads}, wanted 1 or more.")
    # What the command's global options do, but for the threads between operations: torch lets
    # them be set only once.
    if flags.num_threads is not None:
        torch.set_num_threads(flags.num_threads)
    if flags.verbosity:
        logging.basicConfig(level=logging.DEBUG if flags.verbosity > 1 else logging.INFO)
    return flags
