"""Adapters written by PEFT, and the bases they were trained over."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
import transformers

from tests import models

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(base: Path) -> Any:
    (name,) = json.loads((base / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(base, dtype=torch.float32)


def adapter(
    base: Path,
    path: Path,
    *,
    model: Any = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    """Save an adapter of which every trained tensor is far from what PEFT began with."""
    with quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = peft.get_peft_model(model or load(base), peft.LoraConfig(**{"r": 4, **options}))
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        made.save_pretrained(str(path))
    if dtype != torch.float32:
        tensors = models.read(path)
        cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        safetensors.torch.save_file(cast, path / WEIGHTS)
    return path


def merged_by_peft(base: Path, path: Path) -> models.Tensors:
    """Return the tensors of PEFT's merge under the names that they have in a checkpoint."""
    with quietly():
        merged = peft.PeftModel.from_pretrained(load(base), str(path)).merge_and_unload()
        merged.save_pretrained(path / "merged")
    return models.read(path / "merged")


def load_config(base: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(base)


def shapes(base: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in models.read(base).items()}


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_config(path, **changes)


def tensors(edit: Callable[[models.Tensors], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        held = models.read(path)
        edit(held)
        safetensors.torch.save_file(held, path / WEIGHTS)

    return change


def edit_config(path: Path, **changes: Any) -> None:
    file = path / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
