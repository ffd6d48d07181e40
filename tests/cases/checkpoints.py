"""Builders of models: sound copies, and faults in their files and tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import models as make
from tests.cases.case import HEAD, UP, Build, Models, Recipe
from tests.cases.recipes import entry, recipe
from tests.models import INDEX, Tensors


def copy(source: Path, target: Path) -> Path:
    """Copy a checkpoint folder."""
    return Path(shutil.copytree(source, target))


def model(edit: Callable[[Path], object], **changes: Any) -> Build:
    """Build the sound recipe with a copy of its first model, ``broken``, that ``edit`` breaks."""

    def build(folder: Path, models: Models) -> Recipe:
        broken = copy(models.a, folder / "broken")
        edit(broken)
        return recipe(models, **{"models": [entry(broken), entry(models.b)], **changes})

    return build


def base(edit: Callable[[Path], object], **changes: Any) -> Build:
    """Build the sound recipe with a copy of its base, ``broken``, that ``edit`` breaks."""

    def build(folder: Path, models: Models) -> Recipe:
        broken = copy(models.base, folder / "broken")
        edit(broken)
        return recipe(models, **{"base_model": str(broken), **changes})

    return build


def other(write: Callable[[Path], object], **changes: Any) -> Build:
    """Build the sound recipe with another model, ``broken``, in place of the first."""

    def build(folder: Path, models: Models) -> Recipe:
        write(folder / "broken")
        return recipe(models, **{"models": [entry(folder / "broken"), entry(models.b)], **changes})

    return build


def sharded(edit: Callable[[Path], object]) -> Build:
    """Build the sound recipe with a model of several shards, ``broken``, that ``edit`` breaks."""

    def write(path: Path) -> None:
        make.llama(path, seed=5, max_shard_size="40KB")
        assert len(shards(path)) > 2
        edit(path)

    return other(write)


def vit_without(name: str) -> Build:
    """Build the sound recipe with two ViTs, the second of which lacks a tensor."""

    def build(folder: Path, models: Models) -> Recipe:
        origin = make.vit(folder / "origin", seed=1)
        tuned = make.finetuned(origin, folder / "tuned", seed=2)

        def dropped(tensors: make.Tensors) -> None:
            del tensors[name]

        make.rewrite(tuned, dropped)
        return recipe(models, base_model=str(origin), models=[entry(tuned)])

    return build


def shards(path: Path) -> list[Path]:
    """Return the weight files of a checkpoint."""
    return sorted(path.glob("*.safetensors"))


def edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return an edit of a checkpoint's index."""

    def edit(path: Path) -> None:
        index = json.loads((path / INDEX).read_text())
        change(index)
        (path / INDEX).write_text(json.dumps(index))

    return edit


def set_tensors(
    new: Callable[[torch.Tensor], torch.Tensor], *endings: str
) -> Callable[[Path], object]:
    """Return an edit of all tensors whose names end in one of ``endings``."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name.endswith(endings):
                tensors[name] = new(tensor)

    return lambda path: make.rewrite(path, change)


def to_integers(path: Path) -> None:
    """Store one matrix in int32."""
    set_tensors(lambda tensor: (90 * tensor).int(), UP)(path)


def set_entry(name: str, value: float) -> Callable[[Path], object]:
    """Return an edit of the last entry of one tensor."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = value

    return lambda path: make.rewrite(path, change)


def without(name: str) -> Callable[[Path], object]:
    """Return an edit that removes one tensor."""
    return lambda path: make.rewrite(
        path, lambda tensors: {k: v for k, v in tensors.items() if k != name}
    )


def with_tensor(name: str) -> Callable[[Path], object]:
    """Return an edit that adds one tensor."""
    return lambda path: make.rewrite(path, lambda tensors: {**tensors, name: torch.ones(4, 4)})


def config(**changes: Any) -> Callable[[Path], object]:
    """Return an edit of config.json."""
    return lambda path: make.edit_config(path, **changes)


def packed(settings: Any) -> Callable[[Path], object]:
    """Bytes in the place of weights, as a quantisation leaves them, and its settings."""

    def edit(path: Path) -> None:
        make.edit_config(path, quantization_config=settings)
        make.rewrite(path, lambda tensors: {k: v.to(torch.uint8) for k, v in tensors.items()})

    return edit


def text(file: str, content: str) -> Callable[[Path], object]:
    """Return an edit that gives one file another content."""
    return lambda path: (path / file).write_text(content)


def remove(file: str) -> Callable[[Path], object]:
    """Return an edit that removes one file."""
    return lambda path: (path / file).unlink()


def truncate(path: Path) -> None:
    """Cut off the last tenth of the last weight file."""
    file = shards(path)[-1]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 9 // 10])


def break_header(path: Path) -> None:
    """Overwrite the first bytes of the weight file's JSON header."""
    (file,) = shards(path)
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(bytes(content))


def pickled_garbage(path: Path) -> None:
    """Put a broken pickled checkpoint in the place of the weights."""
    shards(path)[0].unlink()
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not an archive")


def lone_shard_beside_index(path: Path) -> None:
    """Add a ``model.safetensors`` to a sharded checkpoint."""
    shutil.copy(shards(path)[0], path / "model.safetensors")


def zero_rows(size: int) -> Callable[[Path], object]:
    """Return an edit that gives both embeddings ``size`` rows, and the config too."""

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(size, tensor.shape[1])
        rows[: min(size, len(tensor))] = tensor[:size]
        return rows

    def edit(path: Path) -> None:
        set_tensors(resized, "embed_tokens.weight", HEAD)(path)
        make.edit_config(path, vocab_size=size)

    return edit


def with_adapter(edit: Callable[[Path], object], **changes: Any) -> Build:
    """Build a recipe with BASE+ADAPTER, the adapter a copy ``broken`` that ``edit`` breaks."""

    def build(folder: Path, models: Models) -> Recipe:
        broken = copy(models.adapter, folder / "broken")
        edit(broken)
        return recipe(
            models, **{"models": [entry(f"{models.base}+{broken}"), entry(models.b)], **changes}
        )

    return build


def integers_everywhere(folder: Path, models: Models) -> Recipe:
    """Build a recipe whose models all hold one matrix in int32."""
    bad = base(to_integers)(folder, models)
    tuned = copy(models.a, folder / "tuned")
    to_integers(tuned)
    return {**bad, "models": [entry(tuned)]}


def foreign_adapter(folder: Path, models: Models) -> Recipe:
    """Build a recipe with an adapter of a model of another width."""
    origin = make.llama(folder / "origin", hidden=64)
    broken = make.lora(origin, folder / "broken", seed=1)
    return recipe(models, models=[entry(f"{models.base}+{broken}"), entry(models.b)])


def alike(folder: Path, models: Models) -> Recipe:
    """Build a recipe whose models are the base under other names, with ``alpha: auto``."""
    twins = [entry(copy(models.base, folder / name)) for name in ("broken", "twin")]
    return recipe(models, models=twins, parameters={"wrap": "ties", "beta": 0.3})


def linked_twin(folder: Path, models: Models) -> Recipe:
    """Build a recipe that lists one model by its path and by a link."""
    (folder / "link").symlink_to(models.a)
    return recipe(models, models=[entry(models.a), entry(folder / "link")])


def adapter_cache_is_a_file(folder: Path, models: Models) -> Recipe:
    """Build a sound recipe with an adapter beside a file ``cache``."""
    (folder / "cache").write_text("x")
    return with_adapter(lambda path: None)(folder, models)


def typo(folder: Path, models: Models) -> Recipe:
    """Build a recipe that names a folder with one letter wrong."""
    copy(models.a, folder / "my-tuned-model")
    return recipe(models, models=[entry(folder / "my-tunde-model"), entry(models.b)])
