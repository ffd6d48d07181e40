"""A Ray of two nodes, and the models that its merges are of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import models
from tests.cluster.server import ClusterServer, refused


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    """Commands beside a Ray of two nodes, in a network of their own."""
    if why := refused():
        pytest.skip(f"no network namespace can be had here, where Ray would be alone: {why}")
    with ClusterServer(tmp_path_factory.mktemp("cluster")) as server:
        yield server


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tuned models and two adapters, in bf16."""
    folder = tmp_path_factory.mktemp("inputs")
    base = models.llama(
        folder / "base", dtype=torch.bfloat16, seed=1, hidden=96, vocab=2000, layers=6
    )
    for number, tuned in enumerate("ab"):
        models.finetuned(base, folder / tuned, seed=number, scale=0.05)
        models.lora(base, folder / f"adapter_{tuned}", seed=number)
    return folder
