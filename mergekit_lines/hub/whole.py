"""Whether a folder is a whole model that its report tells of: nothing else is pushed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from transformers import AutoConfig

from mergekit_lines.checkpoint.bounded import read_config, read_json
from mergekit_lines.checkpoint.headers import TensorHeader, read_headers, weight_files
from mergekit_lines.checkpoint.loading import tried_loading, trunk_without_head
from mergekit_lines.checkpoint.stand_ins import outward_links
from mergekit_lines.checkpoint.writer import WRITING
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.files import REPORT, index_beside, names_no_class
from mergekit_lines.host.process import silent
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.reading import one_document
from mergekit_lines.report.file import read_report
from mergekit_lines.report.fingerprints import changed_files
from mergekit_lines.report.library import TOKENIZERS, TRANSFORMERS, library

AGAIN = "Merge again, or push the folder that the merge wrote."
# Of weights that are as the merge wrote them.
AS_MERGED = (
    "Put back the config.json that the merge wrote; where it is that, merge models that fit theirs."
)


@dataclass(frozen=True)
class MergedModel:
    """A merged model in its folder.

    Attributes:
        folder: where it is.
        report: what ``lines_report.json`` holds.
        config: the recipe.
        files: what belongs to it, relative to the folder, weights first.
        notes: what its owner may want to know.
    """

    folder: Path
    report: dict[str, Any]
    config: MergeConfiguration
    files: tuple[str, ...]
    notes: tuple[str, ...]


def merged_model(folder: Path) -> MergedModel:
    """Return a merged model that is whole, loadable, and the one its report tells of.

    Raises:
        LinesError: it is not, with everything that is wrong.
    """
    if not folder.is_dir():
        raise LinesError(f"OUT {folder}: there is no such folder, wanted a merged model.")
    report = _report(folder)
    config = _recipe(folder, report)
    notes: list[str] = []
    files = all(model.model.path.endswith(".safetensors") for model in models_in_order(config))
    problems = list(_problems(folder, report, notes, no_config=files))
    if problems:
        raise LinesError(problems)
    has_tokenizer = any((folder / name).exists() for name in TOKENIZERS)
    if library(folder) == TRANSFORMERS and not has_tokenizer:
        notes.append("it has no tokenizer: whoever loads it has to find one")
    return MergedModel(folder, report, config, tuple(_files(folder, report)), tuple(notes))


def _report(folder: Path) -> dict[str, Any]:
    if not (folder / REPORT).exists():
        raise LinesError(
            f"{folder}: found no {REPORT}, wanted the folder of a merge by `merge_method: lines` "
            f"or `lines_postprocess`. {AGAIN}"
        )
    content = read_report(folder)
    if not content.get("output", {}).get("shards"):
        raise LinesError(
            f"{folder / REPORT}: does not tell of the output's shards, wanted a report of this "
            f"release. {AGAIN}"
        )
    return content


def _recipe(folder: Path, report: dict[str, Any]) -> MergeConfiguration:
    try:
        return MergeConfiguration.model_validate(one_document(report["recipe"]))
    except (ValueError, RuntimeError, TypeError) as error:
        raise LinesError(
            f"{folder / REPORT}: its recipe cannot be read ({reason(error)}). {AGAIN}"
        ) from error


def _problems(
    folder: Path, report: dict[str, Any], notes: list[str], *, no_config: bool
) -> Iterator[str]:
    shards = report["output"]["shards"]
    index = index_beside(next(iter(shards)))
    yield from outward_links(folder, below=True)
    for problem in changed_files(folder, shards):
        yield f"{folder}: {problem}. {AGAIN}"
    if strange := set(weight_files(folder)) - set(shards) - {index}:
        yield (
            f"{folder}: found {some(strange, 3)} beside the merged weights, which the report does "
            f"not tell of. Move them elsewhere."
        )
    if len(shards) > 1 and not (folder / index).exists():
        yield f"{folder}: found no {index}, without which nothing loads its {len(shards)} shards."
        return
    headers = read_headers(folder)
    yield from headers.problems
    count = report["output"].get("tensors")
    if headers.tensors is not None and count not in (None, len(headers.tensors)):
        yield (
            f"{folder}: its index names {len(headers.tensors)} tensors, by the report it has "
            f"{count}. {AGAIN}"
        )
    if headers.tensors is not None and not headers.problems:
        if no_config and not (folder / "config.json").exists():
            notes.append("it has no config.json: whoever loads it has to know its architecture")
        elif names_no_class(folder):
            notes.append("its config.json names no class of transformers to try the weights with")
        else:
            yield from _misfits(folder, headers.tensors, notes)


def _misfits(folder: Path, tensors: Mapping[str, TensorHeader], notes: list[str]) -> Iterator[str]:
    """Tell which weights transformers would make up: it is shown every tensor, without bytes."""
    if _own_code(folder):
        notes.append("it comes with code of its own, which a push does not run to try the weights")
        return
    try:
        read_config(folder / "config.json")
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - transformers raises a dozen kinds
        yield f"{folder}/config.json: transformers refuses it ({reason(error)}). {AGAIN}"
        return
    try:
        with silent():
            loading = tried_loading(config, tensors)
            trunk = trunk_without_head(config, tensors) if loading.missing else None
    except Exception as error:  # noqa: BLE001 - likewise; it says nothing about the weights
        notes.append(f"whether transformers loads it could not be tried ({reason(error)})")
        return
    if trunk is not None:  # as its inputs are: the merge took them for it too
        notes.append(
            f"its files hold the {trunk} alone, and no head of {config.architectures[0]}, which "
            f"its config.json names"
        )
    elif loading.options:
        notes.append("its files hold no pooler: it is loaded with add_pooling_layer=False")
    elif missing := loading.missing:
        yield (
            f"{folder}: by its config.json the model has {len(missing)} tensors that are not there "
            f"({some(missing, 3)}); loaded, they would be random. {AS_MERGED}"
        )
    if shapes := loading.mismatched:
        yield (
            f"{folder}: {len(shapes)} tensors have another shape than by its config.json "
            f"({some(shapes, 3)}). {AS_MERGED}"
        )


def _own_code(folder: Path) -> bool:
    """Tell whether a model comes with code of its own."""
    try:
        return "auto_map" in read_json(folder / "config.json")
    except (OSError, ValueError):
        return False


def _files(folder: Path, report: dict[str, Any]) -> Iterator[str]:
    shards = list(report["output"]["shards"])
    yield from shards
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/")) or "__pycache__" in name
        if path.is_file() and not hidden and name not in shards and not name.endswith(WRITING):
            yield name
