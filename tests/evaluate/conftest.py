"""A tiny LLaMA in memory with its tokenizer, and a folder of user code to work in."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lines.evaluate import Evaluator, Settings, parse_evaluators
from tests import models


@pytest.fixture(scope="session")
def sharp(checkpoints: Path) -> Path:
    """A LLaMA whose logits are far apart: what it generates hangs on the prompt."""

    def sharpen(tensors: models.Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                tensors[name] = 12 * tensor

    def make(path: Path) -> Path:
        return models.rewrite(models.llama(path, seed=7, layers=2), sharpen)

    return models.once(checkpoints / "sharp", make)


@pytest.fixture(scope="session")
def model(sharp: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer(sharp: Path) -> Any:
    return AutoTokenizer.from_pretrained(sharp)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Work in an empty folder; the fixture writes files there, and forgets their modules."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    yield write
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def one(spec: str, split: str = "validation", **settings: Any) -> Evaluator:
    (evaluator,) = parse_evaluators([spec], split, Settings(**settings))
    return evaluator
