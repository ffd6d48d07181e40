"""Files that make a model usable beside its weights, and go with what is merged from it.

Every small file of a model's folder does that is no weight and that a merge does not write itself
(:func:`mergekit_lines.files.travels`); of folders, those that sentence-transformers' modules.json
names come whole, with weights of their own. Links that lead out of the folder, pipes and pointers
of git-lfs are refused; what is too large stays and is told.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.bounded import TEXT_BYTES, check_regular, read_json
from mergekit_lines.checkpoint.stand_ins import outward_links, pointer_problem
from mergekit_lines.errors import LinesError, TextError, reason, some
from mergekit_lines.files import (
    FOLDERS,
    FOLDERS_TOGETHER,
    MODULES,
    MOST_FILES,
    is_module_folder,
    module_folders,
    travels,
    within_bounds,
)
from mergekit_lines.report.usage import (
    CONFIG,
    GENERATION,
    PROCESSORS,
    content_of,
    entry,
    write_json,
)

# What belongs together, and is taken from one model: tokens of one vocabulary, the parts of a
# processor, the steps behind a transformer.
TOKENIZER, TEMPLATES, PROCESSOR, STEPS = "tokenizer", "templates", "processor", "steps"
SETTINGS, GENERATE, OTHER = "settings", "generate", "other"
_KINDS = (
    (TEMPLATES, re.compile(r"chat_template\..*|additional_chat_templates")),
    (SETTINGS, re.compile(re.escape(GENERATION))),
    (GENERATE, re.compile(r"custom_generate")),
    (PROCESSOR, PROCESSORS),
    (STEPS, re.compile(r"modules\.json|(config_)?sentence_.*\.json|router_config\.json")),
    (
        TOKENIZER,
        re.compile(
            r"(.*_)?tokenizer(_|\.).*|special_tokens_map\.json|added_tokens\.json|.*vocab.*"
            r"|merges.*\.txt|.*\.(model|spm|tiktoken|codes|bpe|tokenizer)|tekken.*|dict\.txt|encoder\.json"
        ),
    ),
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx")
_WITHOUT_FILES = (".Normalize",)  # modules of which there is nothing to be saved
_CLASS = re.compile(r"(?:(?P<repo>[\w./-]+)--)?(?P<module>[A-Za-z_]\w*)\.[A-Za-z_]\w*")


@dataclass(frozen=True)
class Companion:
    """A file that travels, or a folder that is to be there.

    Attributes:
        name: relative to the model's folder, here and there.
        path: where it is.
        kind: what it belongs to.
    """

    name: str
    path: Path
    kind: str

    def copy(self, out: Path) -> None:
        """Copy it into a merged model's folder, in the place of what is there."""
        target = out / self.name
        if self.path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a read-only file can be replaced and not written
            shutil.copyfile(self.path, target)


def companions(folder: Path) -> tuple[list[Companion], list[str]]:
    """Return what travels of a model's folder, and what is to be told of the rest.

    Raises:
        LinesError: a file of the modules may not or cannot be copied.
    """
    if folder.is_file():  # the model is this file alone
        return [], []
    notes: list[str] = []
    problems: list[str] = []
    sizes = {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if travels(path.name) and path.is_file()
    }
    names = within_bounds(sizes)
    if left := sizes.keys() - set(names):
        notes.append(
            f"{folder}: {some(left, 3)} stay behind: of the files beside the weights those of at "
            f"most 64 MiB are carried, 256 MiB and {MOST_FILES:,} of them together"
        )
    odd = [path.name for path in folder.iterdir() if path.is_file() and _is_odd(path.name)]
    if odd:
        notes.append(
            f"{folder}: {some(odd, 3)} stay behind: of the files beside the weights those are "
            f"carried whose names are of letters that can be shown, without a backslash"
        )
    files = [Companion(name, folder / name, kind_of(name)) for name in names]
    modules = _module_folders(folder, names, notes, problems)
    folders = {**modules, **{one: folder / one for one in FOLDERS if (folder / one).is_dir()}}
    below: list[Companion] = []
    for name, path in folders.items():
        kind = STEPS if name in modules else kind_of(name)
        below += [Companion(name, path, kind)]
        below += [
            Companion(f"{name}/{file.relative_to(path).as_posix()}", file, kind)
            for file in _files_below(path, problems)
        ]
    problems += _transformers(folder, modules)
    problems += _unreadable([*files, *below])
    if not problems:
        problems += _unbounded(folder, below)
    if problems:
        raise LinesError(problems)
    weights = [one.name for one in below if one.name.endswith(_WEIGHTS)]
    if weights:
        notes.append(
            f"{folder}: {some(weights, 3)} are carried as they are: what is merged is the "
            f"transformer before them"
        )
    return files + below, notes


def kind_of(name: str) -> str:
    """Return what a file belongs to, by its name."""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(name)), OTHER)


def _module_folders(
    folder: Path, names: list[str], notes: list[str], problems: list[str]
) -> dict[str, Path]:
    """Return the folders that modules.json names, as far as they are there."""
    if MODULES not in names:
        return {}
    try:
        classes = module_folders(read_json(folder / MODULES))
    except (OSError, TextError) as error:
        problems.append(
            f"{folder / MODULES}: cannot be read ({reason(error)}), wanted sentence-transformers' "
            f"list of modules. Download it again, or take it out of the folder."
        )
        return {}
    for path in classes:
        if not is_module_folder(path):
            problems.append(
                f"{folder / MODULES}: names the folder {path!r}, wanted one of a plain name below "
                f"the model's own. Do not use this model."
            )
    folders = {path: folder / path for path in classes if is_module_folder(path)}
    notes += [
        f"{folder}: {MODULES} names {path}, which is not there"
        for path in folders
        if not folders[path].is_dir() and not classes[path].endswith(_WITHOUT_FILES)
    ]
    return {path: place for path, place in folders.items() if place.is_dir()}


def _is_odd(name: str) -> bool:
    """Tell whether a file would travel by another name."""
    plain = "".join(one for one in name if one.isprintable() and one != "\\")
    return plain != name and travels(plain or "x")


def _transformers(folder: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield modules that are transformers themselves: their weights are not what is merged."""
    for name, path in modules.items():
        config = content_of(path / CONFIG)
        of_transformers = isinstance(config, dict) and "architectures" in config
        if of_transformers and any(one.name.endswith(_WEIGHTS) for one in path.iterdir()):
            yield (
                f"{folder / MODULES}: {name} holds a transformer of its own, which would be "
                f"carried as it is and not merged, wanted one beside {MODULES}. Name {path} as "
                f"the model, and put what comes of it in its place."
            )


def _files_below(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Yield the files in a folder and below it, but for hidden ones and what Python leaves."""
    if links := outward_links(folder, below=True):
        problems += links
        return
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(one for one in folders if one.isprintable() and _is_shown(one))
        for path in (Path(place, one) for one in folders):
            if path.is_symlink():
                problems.append(f"{path}: is a link to a folder, wanted the folder itself.")
        for path in (Path(place, name) for name in sorted(files)):
            if not _is_shown(path.name) or not path.exists():
                continue
            if not path.name.isprintable():
                problems.append(f"{path}: wanted a name of letters that can be shown. Rename it.")
                continue
            try:
                check_regular(path)
            except TextError as error:
                problems.append(f"{path}: {error}. Do not use this model.")
                continue
            if pointer := pointer_problem(path):
                problems.append(pointer)
            yield path


def _raise(error: OSError) -> None:
    raise error


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _unreadable(files: list[Companion]) -> Iterator[str]:
    for one in files:
        if not os.access(one.path, os.R_OK):
            yield (
                f"{one.path}: may not be read, and belongs to what is merged. Give yourself the "
                f"right (`chmod u+r`), or take it out of the folder."
            )


def _unbounded(folder: Path, files: list[Companion]) -> Iterator[str]:
    size = sum(one.path.stat().st_size for one in files if one.path.is_file())
    if size > FOLDERS_TOGETHER or len(files) > MOST_FILES:
        yield (
            f"{folder}: the folders that {MODULES} names, and {' and '.join(FOLDERS)}, hold "
            f"{len(files):,} files of {size:,} bytes, wanted at most {MOST_FILES:,} of "
            f"{FOLDERS_TOGETHER:,}. Take out what is not the model's, or {MODULES} itself."
        )


def carry_code(folder: Path, sources: Mapping[str, Path]) -> None:
    """Copy the code that ``auto_map`` or modules.json names, with what it imports from beside it.

    Loading them still needs the user's ``trust_remote_code``. A module that is not in its
    model's folder stays where it was: on the Hub, under the name that transformers gave it.

    Args:
        folder: the merged model.
        sources: by file that may name code, the folder that it came from.
    """
    for name, source in sources.items():
        classes = _classes(source / name)
        modules = {file for one in _texts(classes) if (file := _module(one, source)) is not None}
        if not modules:
            continue
        for file in sorted(modules | _imported(modules)):
            if not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
        config = content_of(folder / name)
        if isinstance(config, dict) and config.get("auto_map") != classes:
            write_json(folder / name, {**config, "auto_map": classes})


def _classes(file: Path) -> Any:
    """Return where a file names classes in code of the model's own."""
    if file.name != MODULES:
        return entry(file, "auto_map")
    modules = content_of(file)
    listed = modules if isinstance(modules, list) else []
    return [one.get("type") for one in listed if isinstance(one, dict)]


def _module(name: str, source: Path) -> Path | None:
    match = _CLASS.fullmatch(name)
    file = source / f"{match['module']}.py" if match and not match["repo"] else None
    small = file is not None and file.is_file() and file.stat().st_size <= TEXT_BYTES
    return file if small else None


def _imported(modules: set[Path]) -> set[Path]:
    """Return the modules beside these that they import, by transformers' own reading of them."""
    from transformers.dynamic_module_utils import get_relative_import_files

    files = {Path(name) for module in modules for name in get_relative_import_files(module)}
    # It names what stands in a folder below as well, and what may not be there at all.
    return {file for file in files if file.parent in {m.parent for m in modules} and file.is_file()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
