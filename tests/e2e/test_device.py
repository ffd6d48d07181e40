"""The way over a GPU, on a card that is none: its tensors lie in memory and only say otherwise.

What a real card would refuse is refused here, too: an operation on tensors of two places, and
reading a tensor of the card as if it were in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mergekit_lines.engine import pieces as merging
from tests import models
from tests.e2e.runner import STUCK, in_process

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.copy_}
IN_MEMORY = {torch.Tensor.numpy, torch.Tensor.data_ptr}
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"density": 0.3},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.8, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.8, "gamma": 0.05},
    "consensus_ta": {},
    "consensus_ties": {"density": 0.3, "trim": "model"},
}


class Card(TorchFunctionMode):
    """Marks the tensors that would be on the card, and tells their device accordingly."""

    pinned = 0
    moved = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return CUDA if _on_card(args[0]) else func(*args, **kwargs)
        held = [one for one in _tensors([args, list(kwargs.values())]) if one.dim()]
        there = any(_on_card(one) for one in _tensors([args, list(kwargs.values())]))
        assert not (there and func in IN_MEMORY), f"{func} of a tensor on the card"
        if len({_on_card(one) for one in held}) > 1 and func not in MOVES:
            raise RuntimeError(f"{func}: tensors of two devices")
        if func is torch.Tensor.copy_:
            there = _on_card(args[0])
        if kwargs.pop("pin_memory", False):
            Card.pinned += 1
        place = next((one for one in args if isinstance(one, torch.device)), kwargs.get("device"))
        if func is torch.Tensor.cpu or (place is not None and torch.device(place).type == "cpu"):
            return func(*args, **kwargs).clone()
        if place is not None and torch.device(place).type == "cuda":
            args = [CPU if isinstance(one, torch.device) else one for one in args]
            kwargs |= {"device": CPU} if "device" in kwargs else {}
            there = True
            Card.moved += func is torch.Tensor.to
            result = func(*args, **kwargs)
            # What `to` gives is a copy: the buffer that it came from may be filled again.
            result = result.clone() if func is torch.Tensor.to else result
        else:
            result = func(*args, **kwargs)
        for one in _tensors([result]):
            one.__dict__["_on_card"] = there
        return result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _on_card(tensor: torch.Tensor) -> bool:
    return bool(tensor.__dict__.get("_on_card", False))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card that the merge's threads see, too."""
    one_thread = torch.set_num_threads
    main = threading.main_thread()

    def begun(threads: int) -> None:
        one_thread(threads)
        if threading.current_thread() is not main:
            Card().__enter__()

    monkeypatch.setattr(torch, "set_num_threads", begun)
    for name in ("PIECE", "DEVICE_PIECE"):
        monkeypatch.setattr(merging, name, 1 << 10)
    monkeypatch.setattr(Card, "pinned", 0)
    monkeypatch.setattr(Card, "moved", 0)
    return Card()


def recipe(wrap: str, *sources: Path) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": sources[0],
        "models": [{"model": source} for source in sources[1:]],
        "parameters": {"wrap": wrap, "beta": 0.5, **METHODS[wrap]},
    }


@pytest.mark.parametrize("wrap", METHODS)
def test_a_card_gives_the_bytes_of_the_cpu(
    wrap: str,
    card: Card,
    llama_bf16_base: Path,
    llama_bf16_a: Path,
    llama_bf16_b: Path,
    tmp_path: Path,
) -> None:
    """Every kernel, Eq. 2 before it: all arithmetic is on the card, over pinned memory."""
    given = recipe(wrap, llama_bf16_base, llama_bf16_a, llama_bf16_b)
    want = in_process(given, tmp_path / "cpu", num_threads=2)
    assert not Card.moved
    with card:
        got = in_process(given, tmp_path / "card", device="cuda")
    assert Card.pinned and Card.moved > 3 * len(models.read(got))
    assert models.weights_digest(got) == models.weights_digest(want)


def test_one_piece_is_read_while_another_is_computed(
    card: Card,
    llama_bf16_base: Path,
    llama_bf16_a: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads meet inside the reading of one tensor; else the barrier breaks."""
    monkeypatch.setattr(merging, "MEMORY", 1)  # that of the CPU's pieces limits no card
    meeting, load = threading.Barrier(2, timeout=STUCK), merging.TensorPieces.load
    met: list[int] = []

    def both(self: merging.TensorPieces, index: int, model: int | None = None) -> Any:
        if index < 2 and len(self.bounds) > 1 and not met:
            meeting.wait()
            met.append(index)
        return load(self, index, model)

    monkeypatch.setattr(merging.TensorPieces, "load", both)
    given = recipe("task_arithmetic", llama_bf16_base, llama_bf16_a)
    with card:
        in_process(given, tmp_path / "card", device="cuda")
    assert met
