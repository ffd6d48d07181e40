"""The anonymous memory of a merge: bounded by its largest tensor, whatever the recipe."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import models
from tests.e2e.runner import in_process

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(
    not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="the system does not tell"
)
WRAPS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
}
LARGEST = 4 * 16_000 * 256  # bytes of the embedding in fp32


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and eight fine-tuned models, most of each one large embedding."""
    folder = tmp_path_factory.mktemp("memory")
    base = models.llama(
        folder / "base", hidden=256, vocab=16_000, layers=2, dtype=torch.bfloat16, tokenizer=False
    )
    tuned = [
        models.finetuned(base, folder / f"tuned{number}", seed=number, scale=0.05)
        for number in range(8)
    ]
    return [base, *tuned]


def anonymous() -> int:
    return int(STATUS.read_text().partition("RssAnon:")[2].split()[0]) * 1024


def peak_of(recipe: dict[str, Any], out: Path, shard_size: int) -> int:
    """Return the most anonymous memory of a merge beyond what the process had before."""
    before = peak = anonymous()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        in_process(recipe, out, out_shard_size=shard_size, num_threads=1)
    finally:
        ended.set()
        watcher.join()
    return peak - before


@pytest.mark.parametrize("wrap", WRAPS)
def test_memory_hangs_on_the_largest_tensor_alone(
    wrap: str, sources: list[Path], tmp_path: Path
) -> None:
    """Eight models take hardly more than two, a shard of everything no more than many."""

    def recipe(count: int) -> dict[str, Any]:
        return {
            "merge_method": "lines",
            "base_model": sources[0],
            "models": [{"model": source} for source in sources[1 : count + 1]],
            "parameters": {"wrap": wrap, "alpha": 0.4, "beta": 0.5, **WRAPS[wrap]},
        }

    in_process(recipe(1), tmp_path / "before", num_threads=1)  # what is kept for the next merge
    peaks = {
        (count, size): peak_of(recipe(count), tmp_path / f"{count}-{size}", size)
        for count, size in ((2, 10**9), (8, 10**9), (8, 10**6))
    }
    # On one thread: a second has pieces of its own, which with DELLA's masks come within a few
    # per cent of the bound. All inputs of the embedding in fp32 would be 9 times its size, and a
    # shard held 0.5.
    assert max(peaks.values()) < 4 * LARGEST, peaks
