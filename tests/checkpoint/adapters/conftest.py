"""Fixtures of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def bases(folder: Path) -> Callable[[str], Path]:
    """Bases of one or two blocks by name, made when they are asked for."""
    makers: dict[str, Callable[[Path], Path]] = {
        "llama": lambda path: models.llama(path, layers=2, tokenizer=False),
        "bf16": lambda path: models.llama(path, layers=1, tokenizer=False, dtype=torch.bfloat16),
        "tied": lambda path: models.llama(path, layers=1, tokenizer=False, tied=True),
        "qwen2": lambda path: models.qwen2(path, layers=1, tied=False),
        "gpt2": lambda path: models.gpt2(path, layers=2),
        "vit": lambda path: models.vit(path, layers=1),
        "whisper": lambda path: models.whisper(path, encoder_layers=1, decoder_layers=1),
        "mixtral": lambda path: models.mixtral(path, layers=1),
    }

    def get(name: str) -> Path:
        path = folder / "bases" / name
        return path if path.exists() else makers[name](path)

    return get
