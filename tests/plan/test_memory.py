"""Memory is estimated by the limits that the merge itself keeps to."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mergekit_lines.checkpoint.sources import HeldTensor
from mergekit_lines.engine import pieces
from mergekit_lines.engine.workers import Workers
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.sparsity import Sparsity
from mergekit_lines.plan.memory import working_bytes

MIB = 1 << 20
WHOLE = Sparsity("none")


def plan_of(
    shape: tuple[int, ...], models: int, *, cut: bool = False, sparsity: Sparsity = WHOLE
) -> Any:
    """What headers say of one fp32 tensor of a sum of models."""
    merge = Merge((sparsity,) * models, (1.0,) * models)
    task = SimpleNamespace(failures=lambda _: nullcontext(), kernel=lambda _: merge)
    item = SimpleNamespace(task=task, cut=cut)
    entries = torch.Size(shape).numel()
    inputs = dict.fromkeys(range(models + 1), torch.float32)
    tensor = SimpleNamespace(item=item, inputs=inputs, shape=shape, entries=entries, temporaries=())
    return SimpleNamespace(tensors=[tensor], unpickled=lambda: 0)


@pytest.mark.parametrize("models", [2, 8])
def test_a_gpu_holds_two_of_its_own_pieces(models: int) -> None:
    """Two threads hold a piece of 2**22 fp32 entries each, of every model and seven more."""
    planned = plan_of((8192, 4096), models)
    estimated = working_bytes(planned, set(), torch.device("cuda"), None)
    assert estimated == 2 * (16 * MIB) * (models + 7)


def test_counters_of_a_cut_are_counted() -> None:
    """trim: model takes 2**20 counters of 8 bytes for each model, and three times as many once."""
    plain, cut = (plan_of((64, 1024), 5, cut=cut) for cut in (False, True))
    device = torch.device("cpu")
    more = working_bytes(cut, set(), device, 1) - working_bytes(plain, set(), device, 1)
    assert more == (5 + 3) * 8 * MIB


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("models", [2, 12])
def test_what_is_estimated_is_what_is_held(
    device: str, models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many threads work on pieces at once as the estimate counts, at the same limits."""
    monkeypatch.setattr(pieces, "PIECE", 1 << 10)
    monkeypatch.setattr(pieces, "DEVICE_PIECE", 1 << 10)
    # Of two models' pieces three fit, of twelve models' one; a card has room for all.
    monkeypatch.setattr(pieces, "MEMORY", 4 * 1024 * 9 * 3)
    monkeypatch.setattr(pieces, "DEVICE_MEMORY", 1 << 30)
    threads = 4 if device == "cpu" else 2
    held = HeldTensor(torch.zeros(64, 1024))
    planned = plan_of((64, 1024), models)
    merge = planned.tensors[0].item.task.kernel(None)
    workers = Workers(threads)
    tensor = pieces.TensorPieces(held, [held] * models, None, torch.device(device), workers, merge)
    working: set[int] = set()
    tensor.map(lambda _: working.add(threading.get_ident()) or threading.Event().wait(0.002))
    workers.close()
    estimated = working_bytes(planned, set(), torch.device(device), threads)
    counted = {("cpu", 2): 3, ("cpu", 12): 1, ("cuda", 2): 2, ("cuda", 12): 2}[device, models]
    assert estimated == counted * 4 * 1024 * (models + 7)
    assert len(working) <= counted


@pytest.mark.parametrize(("device", "searches"), [("cpu", 1), ("cuda", 0)])
@pytest.mark.parametrize("models", [2, 5])
@pytest.mark.parametrize("sparsity", [Sparsity("magnitude", 0.5), Sparsity("floor", 0.5)])
def test_what_compiled_searches_gather_is_counted(
    sparsity: Sparsity, models: int, device: str, searches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled kernels gather a piece's magnitudes near each threshold; they are no GPU's."""
    planned = plan_of((64, 1024), models, sparsity=sparsity)
    found = {}
    for kernels in ("torch", "compiled"):
        monkeypatch.setenv("MERGEKIT_LINES_KERNELS", kernels)
        found[kernels] = working_bytes(planned, set(), torch.device(device), 1)
    assert found["compiled"] - found["torch"] == searches * 64 * 1024 * 4 * models
