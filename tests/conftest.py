"""Fixtures every test may use: tiny LLaMA checkpoints, made once a run. Read, never write."""

from __future__ import annotations

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests import models
from tests.models import once

if TYPE_CHECKING:
    from tests.e2e.runner import ForkServer
    from tests.e2e.torture import Torturer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are slowed by torch's pool, the more so where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the run's checkpoints; the workers of pytest-xdist share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "checkpoints").mkdir(exist_ok=True)
    return folder / "checkpoints"


@pytest.fixture(scope="session", autouse=True)
def kernels_cache(checkpoints: Path) -> None:
    """What tests compile is kept for all of the run, and out of the user's own cache."""
    os.environ.setdefault("NUMBA_CACHE_DIR", str(checkpoints / "kernels"))


@pytest.fixture(scope="session")
def llama_base(checkpoints: Path) -> Path:
    """A LLaMA of four blocks in fp32, with its tokenizer."""
    return once(checkpoints / "llama_base", lambda path: models.llama(path, seed=1))


@pytest.fixture(scope="session")
def llama_a(checkpoints: Path, llama_base: Path) -> Path:
    """``llama_base`` fine-tuned (fp32)."""
    return once(checkpoints / "llama_a", lambda path: models.finetuned(llama_base, path, seed=2))


@pytest.fixture(scope="session")
def llama_b(checkpoints: Path, llama_base: Path) -> Path:
    """``llama_base`` fine-tuned otherwise (fp32)."""
    return once(checkpoints / "llama_b", lambda path: models.finetuned(llama_base, path, seed=3))


@pytest.fixture(scope="session")
def llama_bf16_base(checkpoints: Path) -> Path:
    """A LLaMA of four blocks in bf16, with its tokenizer."""
    return once(
        checkpoints / "llama_bf16_base",
        lambda path: models.llama(path, seed=1, dtype=torch.bfloat16),
    )


@pytest.fixture(scope="session")
def llama_bf16_a(checkpoints: Path, llama_bf16_base: Path) -> Path:
    """``llama_bf16_base`` fine-tuned (bf16)."""
    # Enough noise that most entries move by more than one bf16 step.
    return once(
        checkpoints / "llama_bf16_a",
        lambda path: models.finetuned(llama_bf16_base, path, seed=2, scale=0.05),
    )


@pytest.fixture(scope="session")
def llama_bf16_b(checkpoints: Path, llama_bf16_base: Path) -> Path:
    """``llama_bf16_base`` fine-tuned otherwise (bf16)."""
    return once(
        checkpoints / "llama_bf16_b",
        lambda path: models.finetuned(llama_bf16_base, path, seed=3, scale=0.05),
    )


@pytest.fixture(scope="session")
def adapter(checkpoints: Path, llama_base: Path) -> Path:
    """A LoRA adapter of ``llama_base`` on q_proj and v_proj."""
    return once(checkpoints / "adapter", lambda path: models.lora(llama_base, path, seed=4))


@pytest.fixture(scope="session")
def torturer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torturer]:
    """One start of mergekit for all commands; each is a fork of its own, and may be tortured."""
    from tests.e2e.torture import Torturer

    with Torturer(tmp_path_factory.mktemp("torturer")) as started:
        yield started


@pytest.fixture(scope="session")
def server(torturer: Torturer) -> ForkServer:
    """Runs commands whose start is not what a test is about, see :class:`ForkServer`."""
    return torturer
