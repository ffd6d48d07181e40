"""Shapes, dtypes and bytes of every output tensor and of what it is made from, by headers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference, dtype_from_name, get_auto_cls
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.headers import Headers, TensorHeader
from mergekit_lines.checkpoint.sources import DTYPES
from mergekit_lines.checkpoint.writer import NAMES, ShardLayout, Slot
from mergekit_lines.engine.pieces import cut
from mergekit_lines.engine.ranks import sampled_entries
from mergekit_lines.kernels.floors import looked_at
from mergekit_lines.lines.placed import LARV
from mergekit_lines.plan.layout import names_of
from mergekit_lines.plan.planned import PlannedTensor


def header_bytes(header: TensorHeader) -> int:
    """Return the bytes of a tensor's data."""
    return math.prod(header.shape) * DTYPES[header.dtype].itemsize


@dataclass(frozen=True)
class Sized:
    """One output tensor: where it stands, its shape and dtype, and its inputs' dtypes."""

    item: PlannedTensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    inputs: Mapping[ModelReference, torch.dtype]
    read: Mapping[ModelReference, int]  # bytes
    # Bytes allocated (or released) in preparing inputs: aligning, fusing.
    temporaries: tuple[int, ...]
    whole: int  # bytes of the other inputs, which a method without a kernel has read whole

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def sampled(self) -> Mapping[ModelReference, int]:
        """Bytes of each input that ``schedule: larv`` reads before the merge."""
        placed = self.item.placed
        if placed.words.shape != LARV or placed.depth is None or not self.entries:
            return {}
        entries = sampled_entries(self.shape)
        return {model: size * entries // self.entries for model, size in self.read.items()}

    @property
    def slot(self) -> Slot:
        """Its place in the output."""
        return Slot(self.item.weight.name, self.shape, self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes in the output."""
        return self.entries * self.dtype.itemsize

    def counted(self, model: ModelReference, device: str) -> float:
        """Return the bytes of a model's tensor that counting reads: in a look, and twice whole."""
        kernel, size = self.item.task.kernel(self.inputs), self.read.get(model, 0)
        if kernel is None or not self.entries:
            return 0.0
        bounds = cut(self.shape, kernel, torch.device(device))
        looked = sum(bounds[number][1] - bounds[number][0] for number in looked_at(len(bounds)))
        return size * (2 + looked / self.entries)


class Sizes:
    """What headers say of a plan; where there are none (pickles), what the config says.

    Args:
        planned: every output tensor.
        headers: by model.
        config: the recipe.
        options: mergekit's flags.
        vocabulary: rows of the output's embeddings, where `tokenizer` aligns them.
    """

    def __init__(
        self,
        planned: Sequence[PlannedTensor],
        headers: Mapping[ModelReference, Headers],
        config: MergeConfiguration,
        options: MergeOptions,
        vocabulary: int | None,
    ) -> None:
        self._headers = headers
        self._config = config
        self._options = options
        self._vocabulary = vocabulary
        self._pickles: dict[ModelReference, dict[str, TensorHeader]] = {}
        self.notes: list[str] = []
        self.tensors = [sized for item in planned for sized in self._sized(item)]

    def _sized(self, item: PlannedTensor) -> Iterator[Sized]:
        aligned = item.task.aligned
        inputs: dict[ModelReference, torch.dtype] = {}
        read: dict[ModelReference, int] = {}
        shape, whole, temporaries = None, 0, list[int]()
        for model, weight in item.task.inputs.items():
            index = LoaderCache().get(model).index.tensor_paths
            name = next((name for name in names_of(weight) if name in index), None)
            header = (self._headers[model].tensors or {}).get(name or "")
            pickled = self._pickled(model) if self._headers[model].tensors is None else {}
            header = header or pickled.get(name or "")
            header_or_config = header or self._declared(model, weight, converted=name is None)
            if header_or_config is None:
                continue
            inputs[model] = DTYPES[header_or_config.dtype]
            read[model] = header_bytes(header_or_config)
            size = read[model]
            if name is None:  # fused from several: stacked first, then joined
                temporaries += [size, size, -size]
            elif pickled:  # lazily: its bytes, then the tensor; else its shard is held
                temporaries += [size, size, -size] if self._options.lazy_unpickle else []
            elif aligned:
                temporaries.append(size)
            else:
                whole += size
            if shape is None or model == item.task.base_model:
                shape = header_or_config.shape
        if shape is None:
            return  # an optional tensor that no model holds
        axis = item.weight.vocabulary_axis
        if aligned and axis is not None and self._vocabulary is not None:
            if shape[axis] > self._vocabulary:
                self.notes.append(
                    f"{item.weight.name}: has {shape[axis]:,} rows in the base and "
                    f"{self._vocabulary:,} in the output, one per token; "
                    f"tokenizer.pad_to_multiple_of keeps padded rows"
                )
            shape = (*shape[:axis], self._vocabulary, *shape[axis + 1 :])
            widest = max(dtype.itemsize for dtype in inputs.values())
            so_far = sum(temporaries)
            temporaries += [widest * math.prod(shape)] * len(inputs) + [-so_far]
        dtype = _out_dtype(item, inputs)
        yield Sized(item, shape, dtype, inputs, read, tuple(temporaries), whole)

    def unpickled(self) -> int:
        """Return the bytes of pickled shards that are held, of every such model its largest."""
        if self._options.lazy_unpickle:
            return 0
        total = 0
        for model, headers in self._headers.items():
            if headers.tensors is None:
                index = LoaderCache().get(model).index
                files = {Path(index.base_path, name) for name in index.tensor_paths.values()}
                total += max((file.stat().st_size for file in files if file.exists()), default=0)
        return total

    def _pickled(self, model: ModelReference) -> Mapping[str, TensorHeader]:
        """Return the shapes and dtypes of a pickled checkpoint's tensors; none of a broken one."""
        if model not in self._pickles:
            self._pickles[model] = tensors = dict[str, TensorHeader]()
            index = LoaderCache().get(model).index
            for file in set(index.tensor_paths.values()):
                try:
                    state = torch.load(
                        Path(index.base_path, file), map_location="meta", weights_only=True
                    )
                except Exception:  # noqa: BLE001 - the merge itself tells what is wrong with it
                    state = {}
                for name, tensor in state.get("state_dict", state).items():
                    if isinstance(tensor, torch.Tensor) and tensor.dtype in NAMES:
                        tensors[name] = TensorHeader(NAMES[tensor.dtype], tuple(tensor.shape), file)
        return self._pickles[model]

    def _declared(
        self, model: ModelReference, weight: WeightInfo, *, converted: bool
    ) -> TensorHeader | None:
        """Return what the config makes of a tensor that has no header of this name."""
        if converted and weight.optional:
            return None
        parameter = self._meta.get(weight.name)
        if parameter is None:
            return None
        kinds = {header.dtype for header in (self._headers[model].tensors or {}).values()}
        floats = [kind for kind in ("F64", "F32", "BF16", "F16") if kind in kinds]
        dtype = floats[0] if floats else self._config_dtype(model)
        return TensorHeader(dtype, tuple(parameter.shape), "")

    def _config_dtype(self, model: ModelReference) -> str:
        config = model.config(trust_remote_code=self._options.trust_remote_code)
        dtype = getattr(config, "dtype", None) or torch.float32
        return next((name for name, kind in DTYPES.items() if kind == dtype), "F32")

    @cached_property
    def _meta(self) -> dict[str, torch.Tensor]:
        """The model that the config describes, without storage."""
        base = self._config.base_model
        if base is None:
            return {}
        config = base.config(trust_remote_code=self._options.trust_remote_code)
        try:
            with torch.device("meta"), no_init_weights():
                model = get_auto_cls(config.architectures[0]).from_config(
                    config, trust_remote_code=self._options.trust_remote_code
                )
        except Exception:  # noqa: BLE001 - remote code and transformers raise a dozen kinds
            return {}
        return dict(model.state_dict())


def _out_dtype(item: PlannedTensor, inputs: Mapping[ModelReference, torch.dtype]) -> torch.dtype:
    """Return the dtype that the method stores; integers stay what they are."""
    kinds = list(inputs.values())
    if not all(kind.is_floating_point for kind in kinds):
        return inputs.get(item.task.base_model, kinds[0])
    dtype = dtype_from_name(item.task.out_dtype) or dtype_from_name(item.task.dtype)
    if dtype is not None:
        return dtype
    promoted = kinds[0]
    for kind in kinds[1:]:
        promoted = torch.promote_types(promoted, kind)
    return promoted


def idle_workers(shards: Sequence[ShardLayout], workers: int) -> str | None:
    """Return what to do where the output has fewer shards than there are workers, or None."""
    count = len(shards)
    if count >= workers:
        return None
    size = sum(shard.size for shard in shards) // (4 * workers)
    return (
        f"the output has {count} shard{'s' * (count > 1)}, each of which one worker merges: "
        f"{workers - count} of {workers} workers have nothing to do. Give --out-shard-size "
        f"{max(1, size // 1_000_000)}M for several shards each"
    )
