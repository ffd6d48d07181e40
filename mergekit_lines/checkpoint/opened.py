"""The recipe's models, opened: every input tensor as a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.io import LazyTensorLoader
from mergekit.io.tasks import LoadTensor

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.checkpoint.headers import TensorHeader, read_headers
from mergekit_lines.checkpoint.remote.downloads import adapter_snapshot
from mergekit_lines.checkpoint.sources import (
    HeldTensor,
    Shard,
    ShardTensor,
    Source,
    changed,
    state_of,
)
from mergekit_lines.errors import LinesError, some


@dataclass
class OpenedModel:
    """One model's folder, and the adapter over it where it is read as one."""

    folder: Path
    loader: LazyTensorLoader
    tensors: Mapping[str, TensorHeader] | None  # None: pickled
    adapter: Adapter | None = None
    copied_from: tuple[Path, ...] = ()  # what the whole copy of an adapted model was made from

    def resolve(self, weight: WeightInfo) -> str | None:
        """Return the name under which the checkpoint holds ``weight``."""
        names = (weight.name, *(weight.aliases or ()), *(weight.tied_names or ()))
        return next((name for name in names if name in self.loader.index.tensor_paths), None)


@dataclass
class OpenedModels:
    """The models of a recipe; shards that several of them share are opened once."""

    models: dict[ModelReference, OpenedModel] = field(default_factory=dict)
    shards: dict[Path, Shard] = field(default_factory=dict)
    resolved: dict[Path, Path] = field(default_factory=dict)  # by the path that was asked for
    adapters: list[Shard] = field(default_factory=list)  # of one file perhaps several times
    states: dict[Path, tuple[int, ...]] = field(default_factory=dict)  # of all other files

    def add(
        self,
        model: ModelReference,
        loader: LazyTensorLoader,
        adapter: Adapter | None,
        copied_from: tuple[Path, ...] = (),
    ) -> None:
        """Open a model that is on this machine.

        Args:
            model: the model.
            loader: mergekit's, of its folder.
            adapter: read over the folder's tensors.
            copied_from: the files of base and adapter, where the folder is a copy of this run.

        Raises:
            LinesError: a shard cannot be opened, or is not whole.
        """
        folder, own = Path(loader.index.base_path), Path(model.model.path)
        headers = read_headers(own if own.is_file() else folder)
        if headers.problems:
            raise LinesError(headers.problems)
        opened = OpenedModel(folder, loader, headers.tensors, adapter, copied_from)
        self.models[model] = opened
        if adapter is not None and adapter.shard is not None:
            self.adapters.append(adapter.shard)
        for file in {header.file for header in (headers.tensors or {}).values()}:
            self._shard(folder / file)
        for path in self._files(opened):
            if path.resolve() not in self.shards:
                self.states[path] = state_of(path.stat())

    def check_adapters(self, gathers: Sequence[Any]) -> None:
        """Refuse an adapter of layers that mergekit fuses: their tensors are never asked for.

        Args:
            gathers: the inputs of every output tensor, as mergekit's planner gives them.

        Raises:
            LinesError: names the tensors.
        """
        taken: dict[ModelReference, set[str | None]] = {}
        for gather in gathers:
            for model, weight in getattr(gather, "gather_tensors", gather).weight_info.items():
                name = self.models[model].resolve(weight)
                if name is not None or not weight.optional:
                    taken.setdefault(model, set()).add(name)
        for model, opened in self.models.items():
            names = taken.get(model, set())
            lost = [
                name
                for name in (opened.adapter.changes if opened.adapter else ())
                if name not in names
            ]
            if lost and None in names:
                raise LinesError(
                    f"model {model}: its adapter changes {some(lost, 3)}, which mergekit fuses on "
                    f"loading, wanted layers that are merged as they are stored. Merge the adapter "
                    f"into its base with peft first."
                )

    def _shard(self, path: Path) -> Shard:
        # Asked for every tensor of every setting; links are followed once.
        resolved = self.resolved.get(path)
        if resolved is None:
            resolved = self.resolved[path] = path.resolve()
        if resolved not in self.shards:
            self.shards[resolved] = Shard(resolved)
        return self.shards[resolved]

    def source(self, model: ModelReference, weight: WeightInfo) -> Source | None:
        """Return the tensor that mergekit takes for ``weight``, or None where it is optional.

        Raises:
            LinesError: the tensor is needed and not there.
        """
        opened = self.models[model]
        name = opened.resolve(weight)
        if name is None:
            return self._converted(model, weight)
        stored = self.stored(model, weight)
        if stored is None:
            return HeldTensor(opened.loader.get_tensor(name).contiguous())
        return opened.adapter.source(name, stored) if opened.adapter else stored

    def stored(self, model: ModelReference, weight: WeightInfo) -> ShardTensor | None:
        """Return the tensor as its shard holds it, before an adapter; None where none does."""
        opened = self.models[model]
        name = opened.resolve(weight)
        if name is None or opened.tensors is None:
            return None
        return self._shard(opened.folder / opened.tensors[name].file).tensor(name)

    def _converted(self, model: ModelReference, weight: WeightInfo) -> Source | None:
        """Let mergekit convert the tensor from others, as it does for fused experts."""
        task = LoadTensor(model=model, tensor=weight.name, aliases=weight.aliases, optional=True)
        tensor = task.execute()
        if tensor is not None:
            return HeldTensor(tensor.contiguous())
        if weight.optional:
            return None
        raise LinesError(
            f"model {model}: lacks the tensor {weight.name}, wanted one of the same architecture "
            f"as the others, and whole."
        )

    def describe(self) -> dict[str, Any]:
        """Return what tells this input from a changed one: files, sizes, times, digests."""
        return {str(model): self._describe(opened) for model, opened in self.models.items()}

    @staticmethod
    def _files(opened: OpenedModel) -> list[Path]:
        """Return the files that a model's tensors hang on."""
        if opened.copied_from:
            return list(opened.copied_from)
        names = {header.file for header in (opened.tensors or {}).values()}
        names = names or set(opened.loader.index.tensor_paths.values())  # pickled
        paths = [opened.folder / name for name in sorted(names)]
        return paths + (opened.adapter.fingerprint_files if opened.adapter else [])

    def _describe(self, opened: OpenedModel) -> dict[str, Any]:
        files: dict[str, dict[str, Any]] = {}
        for path in self._files(opened):
            files[str(path)] = describe_file(path, self.shards.get(path.resolve()))
        return files

    @property
    def copies(self) -> bool:
        """Whether a model with an adapter is read from a whole copy."""
        return any(opened.copied_from for opened in self.models.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read from shards so far."""
        return sum(shard.bytes_read for shard in (*self.shards.values(), *self.adapters))

    def check_unchanged(self) -> None:
        """Refuse inputs that changed since they were opened.

        Raises:
            LinesError: names the file.
        """
        for shard in (*self.shards.values(), *self.adapters):
            shard.check_unchanged()
        for path, state in self.states.items():
            if not path.exists() or state_of(path.stat()) != state:
                raise changed(path)

    def close(self) -> None:
        """Close the shards."""
        for shard in (*self.shards.values(), *self.adapters):
            shard.close()
        self.shards.clear()
        self.adapters.clear()


def describe_file(path: Path, shard: Shard | None) -> dict[str, Any]:
    """Return what tells a file of an input from a changed one.

    Args:
        path: of the file.
        shard: the same, where it is open: what was opened is what is merged, whatever has the
            name by now.
    """
    stat = os.fstat(shard.descriptor) if shard else path.stat()
    facts = {
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,  # whoever rewrites a file can put its mtime back
    }
    return {**facts, "header_sha256": shard.digest} if shard else facts


def adapter_folder(model: ModelReference) -> Path:
    """Return the folder of a model's adapter, downloading it from the Hub where it is there."""
    lora: Any = model.lora
    folder = Path(lora.path)
    if folder.is_dir():
        return folder
    return adapter_snapshot(lora.path, lora.revision)
