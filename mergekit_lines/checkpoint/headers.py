"""What a checkpoint folder holds, from its indexes and shard headers; no weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from mergekit_lines.checkpoint.bounded import INDEX_BYTES, check_regular, read_json
from mergekit_lines.errors import reason, some
from mergekit_lines.files import (
    DIFFUSERS,
    DIFFUSERS_INDEX,
    DIFFUSERS_WEIGHTS,
    INDEX,
    STEM,
    WEIGHTS,
    weights_stem,
)

# What mergekit can load and torch can promote. fp8, fp4 and packed formats are none of it.
FLOATS = {"F64", "F32", "F16", "BF16"}
BUFFERS = {"I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"}
# What trained models are wrapped in puts before the names of their tensors.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_forward_module.": "Lightning",
}
PICKLED = "pytorch_model.bin"
SAFE_FORMS = (WEIGHTS, INDEX, DIFFUSERS_WEIGHTS, DIFFUSERS_INDEX)
FORMS = (*SAFE_FORMS, PICKLED, f"{PICKLED}.index.json")  # in which weights are taken
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


@dataclass(frozen=True)
class TensorHeader:
    """A tensor's header: its dtype as safetensors names it, its shape, and its file."""

    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass
class Headers:
    """The tensors of a checkpoint folder by name, and what is wrong with the folder.

    A pickled checkpoint (``.bin``) has names only from its index and no headers:
    ``tensors`` is then None.
    """

    tensors: dict[str, TensorHeader] | None = None
    problems: list[str] = field(default_factory=list)


def prefixed_names(names: Collection[str]) -> str | None:
    """Return what a wrapper of the trained model has done to all names, as a sentence, or None."""
    for prefix, wrapper in WRAPPERS.items():
        if names and all(name.startswith(prefix) for name in names):
            return (
                f"the name of every tensor begins with {prefix!r}, which {wrapper} puts before "
                f"the model's own. Save the model inside, e.g. with "
                f"`accelerator.unwrap_model(model).save_pretrained(...)`, or take {prefix!r} out "
                f"of the names."
            )
    return None


def plain_dtypes(folder: Path) -> list[str]:
    """Return the floating-point dtypes of a checkpoint that holds no packed weights, or none."""
    dtypes = {header.dtype for header in (read_headers(folder).tensors or {}).values()}
    return sorted(dtypes & FLOATS) if dtypes <= FLOATS | {"BOOL", "I64"} else []


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files and indexes in a folder."""
    return sorted({path.name for pattern in WEIGHT_FILES for path in folder.glob(pattern)})


def read_headers(folder: Path) -> Headers:
    """Read the headers of every shard that mergekit would load from ``folder``.

    A safetensors file is a checkpoint of itself: timm's and open_clip's come so.
    """
    if folder.is_file():
        headers = Headers()
        headers.tensors = read_shard(folder.parent, folder.name, headers.problems)
        return headers
    names = {path.name for path in folder.glob("*") if path.exists()}
    if problem := unfit_forms(f"{folder}", names):
        return Headers(problems=[problem])
    form = safe_form(names)
    if form is not None and form.endswith(".json"):
        return _read_indexed(folder, folder / form)
    headers = Headers()
    if form is not None:
        headers.tensors = read_shard(folder, form, headers.problems)
    return headers


def safe_form(names: Collection[str]) -> str | None:
    """Return the file or index by which safetensors among these files are read, or None."""
    return next((form for form in SAFE_FORMS if form in names), None)


def stem_of(place: Path) -> str:
    """Return what the names of a model's weight files begin with, a folder or a file.

    diffusers loads weights by names of its own; whatever else is called as transformers' are.
    """
    if place.is_file():
        return weights_stem(place.name) or STEM
    held = any((place / form).exists() for form in (DIFFUSERS_WEIGHTS, DIFFUSERS_INDEX))
    return DIFFUSERS if held else STEM


def unfit_forms(where: str, names: Collection[str], *, on_hub: bool = False) -> str | None:
    """Return why the weights among these files are in none of the forms or in two, or None."""
    at, stale, check = "", "Remove the stale one", "path"
    if on_hub:
        at, stale, check = " on the Hub", "Download the model and remove the stale one", "name"
    if WEIGHTS in names and INDEX in names:
        return (
            f"{where}: found both {WEIGHTS} and {INDEX}{at}, of which mergekit reads the second "
            f"and transformers the first. {stale}."
        )
    safe = [form for form in SAFE_FORMS if form in names]
    if len(safe) > 1:
        return (
            f"{where}: found {some(safe, 4)}{at}, wanted weights in one of these forms: which of "
            f"them is the model, no two libraries agree on. {stale}."
        )
    if not any(form in names for form in FORMS):
        if others := sorted(name for name in names if name.startswith(f"{DIFFUSERS}.")):
            return (
                f"{where}: of diffusers' weights found {some(others, 2)}{at}, wanted "
                f"{DIFFUSERS_WEIGHTS} or its index. Save the model with save_pretrained and no "
                f"variant."
            )
        return (
            f"{where}: found no {WEIGHTS}, no {PICKLED} and no index of either{at}, wanted a "
            f"checkpoint in one of these forms. Check the {check} in the recipe."
        )
    return None


def is_file_name(name: object) -> bool:
    """Tell whether a name is that of a file in the folder itself, wherever it is read."""
    if not isinstance(name, str) or name in ("", "..") or "\\" in name:
        return False
    return PurePosixPath(name).name == name


def _read_indexed(folder: Path, index: Path) -> Headers:
    try:
        weight_map = read_json(index, INDEX_BYTES)["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Headers(
            problems=[
                f"{index}: this index cannot be read ({reason(error)}), wanted a "
                f"JSON object with a weight_map. Download it again."
            ]
        )
    headers = Headers()
    tensors: dict[str, TensorHeader] = {}
    for shard in shards:
        if not is_file_name(shard):
            headers.problems.append(
                f"{index}: found shard {shard!r}, wanted the name of a file beside the index. "
                f"Do not use this checkpoint: its index points outside its folder."
            )
        elif not (folder / shard).is_file():
            lost = [name for name, file in weight_map.items() if file == shard]
            headers.problems.append(
                f"{folder}: the index names {shard} (with {len(lost)} tensors: {some(lost, 2)}), "
                f"which is not there. Download the missing shard."
            )
        else:
            held = read_shard(folder, shard, headers.problems)
            if twice := [name for name in held if name in tensors]:
                others = {tensors[name].file for name in twice}
                headers.problems.append(
                    f"{folder}: {some(twice, 2)} stand both in {shard} and in {some(others, 2)}, "
                    f"wanted every tensor once. Download the shards again."
                )
            tensors |= held
    take_indexed(headers, weight_map, tensors, f"{index}:", "download both again")
    return headers


def take_indexed(
    headers: Headers,
    names: Collection[str],
    tensors: Mapping[str, TensorHeader],
    index: str,
    remedy: str,
) -> None:
    """Give headers the tensors that an index names: mergekit finds them through it alone.

    Those that no shard holds are a problem, where no other explains it.
    """
    absent = [name for name in names if name not in tensors]
    if absent and not headers.problems:
        headers.problems.append(
            f"{index} names {len(absent)} tensors that no shard holds: {some(absent)}. "
            f"Index and shards are of different models; {remedy}."
        )
    headers.tensors = {name: tensors[name] for name in names if name in tensors}


def read_shard(folder: Path, file: str, problems: list[str]) -> dict[str, TensorHeader]:
    """Return the headers of one shard's tensors; what is wrong with it joins ``problems``."""
    tensors = {}
    try:
        check_regular(folder / file)
        with safe_open(folder / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a shard is no mapping
                piece = shard.get_slice(name)
                shape = tuple(piece.get_shape())
                tensors[name] = TensorHeader(piece.get_dtype(), shape, file)
    except (SafetensorError, OSError, ValueError) as error:
        problems.append(
            f"{folder / file}: not a whole safetensors file ({error}). Download it again."
        )
    return tensors


def header_digest(path: Path) -> str:
    """Return the SHA-256 of a safetensors file's header, the eight bytes of its length left out."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # A broken length must not ask for more memory than the file has bytes.
        return hashlib.sha256(file.read(min(length, path.stat().st_size))).hexdigest()
