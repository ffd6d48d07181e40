"""What a checkpoint folder holds, from its indexes and shard headers; no weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from mergekit_lines.checkpoint.bounded import INDEX_BYTES, check_regular, read_json
from mergekit_lines.errors import reason, some
from mergekit_lines.files import INDEX, WEIGHTS

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


def wrapped_names(names: Collection[str]) -> str | None:
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
    """Read the headers of every shard that mergekit would load from ``folder``."""
    single, index = folder / WEIGHTS, folder / INDEX
    pickled = [folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"]
    if single.exists() and index.exists():
        return Headers(
            problems=[
                f"{folder}: found both model.safetensors and model.safetensors.index.json, of "
                f"which mergekit reads the second and transformers the first. Remove the stale one."
            ]
        )
    if index.exists():
        return _read_indexed(folder, index)
    if single.exists():
        headers = Headers()
        headers.tensors = read_shard(folder, single.name, headers.problems)
        return headers
    if any(path.exists() for path in pickled):
        return Headers()
    return Headers(
        problems=[
            f"{folder}: found no model.safetensors, no pytorch_model.bin and no index of either, "
            f"wanted a checkpoint in one of these forms. Check the path in the recipe."
        ]
    )


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
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
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
            twice = [name for name in held if name in tensors]
            if twice:
                others = {tensors[name].file for name in twice}
                headers.problems.append(
                    f"{folder}: {some(twice, 2)} stand both in {shard} and in {some(others, 2)}, "
                    f"wanted every tensor once. Download the shards again."
                )
            tensors |= held
    if not headers.problems:
        absent = [name for name in weight_map if name not in tensors]
        if absent:
            headers.problems.append(
                f"{index}: names {len(absent)} tensors that no shard holds: {some(absent)}. "
                f"Index and shards are of different models; download both again."
            )
    # mergekit finds tensors through the index alone.
    headers.tensors = {name: tensors[name] for name in weight_map if name in tensors}
    return headers


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
