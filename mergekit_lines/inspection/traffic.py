"""What a run downloads, reads and writes, model by model."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from pathlib import Path

from mergekit.common import ModelReference, dtype_from_name
from mergekit.options import MergeOptions
from safetensors import safe_open

from mergekit_lines.checkpoint.headers import Headers
from mergekit_lines.checkpoint.remote.headers import RemoteHeaders
from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.inspection.findings import Input
from mergekit_lines.plan.prepare import Prepared
from mergekit_lines.plan.sizes import Sized, header_bytes


def inputs(
    tensors: Sequence[Sized], calibrated: Set[str], prepared: Prepared, options: MergeOptions
) -> tuple[Input, ...]:
    """Return what becomes of every model; ``calibrated`` are the tensors that Eq. 2 reads whole."""
    headers, copied = prepared.headers, prepared.copied
    result = []
    bases = {str(model) for model in headers}
    tied = tied_names(prepared.out_config, [one.item.weight.name for one in tensors])
    for model, model_headers in headers.items():
        scale = _copy_scale(model_headers, options) if model in copied else 1.0
        sizes = {one.item.weight.name: int(one.read.get(model, 0) * scale) for one in tensors}
        merge, again = sum(sizes.values()), sum(sizes[name] for name in calibrated & sizes.keys())
        cut = [one for one in tensors if one.item.cut and one.item.weight.name not in tied]
        counted = int(sum(one.counted(model, options.device or "cpu") for one in cut) * scale)
        again += int(sum(one.sampled.get(model, 0) for one in tensors) * scale)
        checkpoint = sum(header_bytes(header) for header in (model_headers.tensors or {}).values())
        checkpoint = checkpoint or merge  # a pickle: what the config says of it
        adapter = _adapter_bytes(model)
        if model.lora is not None and model not in copied:
            # Read over the base, piece by piece: a base that is an input is read anyway.
            base = str(ModelReference(model=model.model))
            merge, again, counted = (0, 0, 0) if base in bases else (merge, again, counted)
            bases.add(base)
            merge += adapter
            again += adapter if calibrated else 0
            counted += 2 * adapter if cut else 0
        loaded = checkpoint + adapter if model in copied else 0
        result.append(
            Input(
                model=str(model),
                checkpoint=checkpoint,
                download=checkpoint if isinstance(model_headers, RemoteHeaders) else 0,
                merge=merge,
                calibration=again,
                cuts=counted,
                adapter=adapter,
                copy=int(checkpoint * scale) if model in copied else 0,
                read=merge + again + counted + loaded,
            )
        )
    return tuple(result)


def _copy_scale(headers: Headers, options: MergeOptions) -> float:
    """Return how much larger a checkpoint is in the dtype that adapters are merged in."""
    dtype = dtype_from_name(options.lora_merge_dtype)
    tensors = list((headers.tensors or {}).values())
    entries = sum(math.prod(header.shape) for header in tensors)
    if dtype is None or not entries:
        return 1.0
    return dtype.itemsize * entries / sum(header_bytes(header) for header in tensors)


def _adapter_bytes(model: ModelReference) -> int:
    if model.lora is None:
        return 0
    files = [Path(model.lora.path, f"adapter_model.{end}") for end in ("safetensors", "bin")]
    return next((file.stat().st_size for file in files if file.exists()), 0)


def adapted_bytes(model: ModelReference, headers: Headers, options: MergeOptions) -> int:
    """Return the bytes of the layers that an adapter changes; all, where it has no header here.

    The others stay mapped from the base's files, but for another ``--lora-merge-dtype``.
    """
    tensors = headers.tensors or {}
    whole = int(sum(map(header_bytes, tensors.values())) * _copy_scale(headers, options))
    file = Path(model.lora.path if model.lora else "", "adapter_model.safetensors")
    if model.lora is None or not file.exists() or options.lora_merge_dtype:
        return whole if model.lora else 0
    with safe_open(file, framework="pt") as adapter:
        layers = {
            name.removeprefix("base_model.model.").partition(".lora_")[0]
            for name in adapter.keys()  # noqa: SIM118 - a shard is no mapping
        }
    weights = [tensors[f"{layer}.weight"] for layer in layers if f"{layer}.weight" in tensors]
    return sum(map(header_bytes, weights))
