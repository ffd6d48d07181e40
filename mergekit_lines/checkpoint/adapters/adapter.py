"""PEFT adapters over a checkpoint, added to its tensors as they are read; nothing is written.

What PEFT does on merging is done here in the precision of the reader's buffers: LoRA with all
its scalings, DoRA, layers and biases saved whole, trained rows of an embedding. An adapter of
another kind has a ``reason`` and no changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mergekit_lines.checkpoint.adapters.changes import Change
from mergekit_lines.checkpoint.adapters.config import LoraConfig, read_config
from mergekit_lines.checkpoint.adapters.layers import AdapterPlan, Shapes, Unsupported
from mergekit_lines.checkpoint.adapters.tied import check_left_to_peft
from mergekit_lines.checkpoint.sources import HeldTensor, Shard, Source
from mergekit_lines.errors import LinesError
from mergekit_lines.errors import reason as cause

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Adapter:
    """An adapter of PEFT over one base checkpoint.

    Attributes:
        folder: the adapter's folder.
        reason: why :meth:`source` cannot compute what PEFT would merge, or None.
        changes: what is done to the base's tensors, by name, in this order; empty with a
            ``reason``.
        fingerprint_files: the files that the merged tensors hang on.
        shard: the adapter's weights if they are a safetensors file; it stays open.
    """

    folder: Path
    reason: str | None
    changes: Mapping[str, list[Change]]
    fingerprint_files: list[Path]
    shard: Shard | None

    @classmethod
    def open(
        cls,
        folder: Path,
        base_names: Shapes | None,
        *,
        base_config: Any = None,
    ) -> Adapter:
        """Read an adapter's config and headers, and find the tensors that it changes.

        Args:
            folder: where PEFT saved the adapter.
            base_names: the base checkpoint's tensors: shapes by name; None where they are
                pickled, over which PEFT has to merge.
            base_config: the base's transformers config, by which tensors are tied and are
                renamed on loading.

        Raises:
            LinesError: files that are missing, cut or malformed; tensors that the base has no
                place for, or of other shapes than its own; half an update; a change of a tied
                tensor.
        """
        config = read_config(folder)
        file, tensors, shard = _read_weights(folder, config)
        try:
            changes, why = _changes(file, config, tensors, base_names, base_config)
            if why is not None:
                check_left_to_peft(file, tensors, base_config, tying=config.tying)
        except BaseException:
            if shard:
                shard.close()
            raise
        return cls(folder, why, changes, [config.file, file], shard)

    def close(self) -> None:
        """Close the adapter's weights."""
        if self.shard is not None:
            self.shard.close()

    def source(self, name: str, base: Source) -> Source:
        """Return the base's tensor with this adapter, or ``base`` itself if it is left alone.

        Args:
            name: the tensor's name in the base checkpoint.
            base: the tensor, of the shape that ``base_names`` gave; perhaps another adapter's.
        """
        for change in self.changes.get(name, []):
            base = change.over(base)
        return base


def _changes(
    file: Path,
    config: LoraConfig,
    tensors: Mapping[str, Source],
    base_names: Shapes | None,
    base_config: Any,
) -> tuple[Mapping[str, list[Change]], str | None]:
    """Return an adapter's changes, or none and why PEFT has to merge it."""
    if config.reason is not None or base_names is None:
        return {}, config.reason or "its base is pickled"
    try:
        return AdapterPlan(file, config, base_names, base_config).changes(tensors), None
    except Unsupported as unsupported:
        return {}, str(unsupported)


def _read_weights(
    folder: Path, config: LoraConfig
) -> tuple[Path, Mapping[str, Source], Shard | None]:
    """Return the adapter's weight file, its tensors, and the open safetensors file."""
    file, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if file.exists():
        shard = Shard(file)
        try:
            with safe_open(file, framework="pt") as header:
                tensors = {name: shard.tensor(name) for name in header.keys()}  # noqa: SIM118
            _check_floats(tensors)
        except (SafetensorError, KeyError, TypeError) as error:
            shard.close()
            raise _unreadable(file, error) from error
        return file, tensors, shard
    if pickled.exists():
        try:
            loaded: Any = torch.load(pickled, map_location="cpu", weights_only=True)
            held = {name: HeldTensor(one) for name, one in loaded.items()}
            _check_floats(held)
        except Exception as error:
            raise _unreadable(pickled, error) from error
        return pickled, held, None
    raise LinesError(
        f"{folder}: found {config.file.name} and no weights, wanted {file.name} or {pickled.name}. "
        f"Download the adapter again."
    )


def _check_floats(tensors: Mapping[str, Source]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} is of {tensor.dtype}")


def _unreadable(file: Path, error: Exception) -> LinesError:
    return LinesError(
        f"{file}: cannot be read ({cause(error)}), wanted a whole file of tensors in fp16, bf16, "
        f"fp32 or fp64. Download it again."
    )
