"""Sizes by headers: those of the tensors themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.options import MergeOptions

from mergekit_lines.plan.sizes import Sized, Sizes
from tests import models
from tests.plan.preparing import configuration, prepared


def sizes(base: Path, *tuned: Path, vocabulary: int | None = None, **more: Any) -> dict[str, Sized]:
    config, options = configuration(base, *tuned, **more), MergeOptions()
    with prepared(config, options) as plan:
        found = Sizes(plan.planned, plan.headers, config, options, vocabulary)
    return {sized.slot.name: sized for sized in found.tensors}


@pytest.mark.parametrize(
    ("more", "itemsize"),
    [({}, 4), ({"dtype": "float16"}, 2), ({"dtype": "float32", "out_dtype": "bfloat16"}, 2)],
)
def test_output(more: dict[str, str], itemsize: int, llama_base: Path, llama_a: Path) -> None:
    """Shapes are the base's, bytes those of the dtype that the recipe writes."""
    found, tensors = sizes(llama_base, llama_a, **more), models.read(llama_base)
    assert {name: sized.shape for name, sized in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    for name, sized in found.items():
        assert sized.entries == tensors[name].numel()
        assert sized.bytes == itemsize * tensors[name].numel()


def test_what_is_read(llama_base: Path, llama_a: Path, llama_b: Path) -> None:
    """Each input is read once, whole: its own bytes."""
    inputs = [models.read(path) for path in (llama_base, llama_a, llama_b)]
    for name, sized in sizes(llama_base, llama_a, llama_b).items():
        assert sorted(sized.read.values()) == sorted(each[name].nbytes for each in inputs)
        assert set(sized.inputs.values()) == {torch.float32}
        assert sized.whole == sum(each[name].nbytes for each in inputs)
        assert sized.temporaries == ()


def test_mixed_dtypes(llama_base: Path, llama_bf16_a: Path) -> None:
    """Without a dtype in the recipe the output has the one that holds both inputs'."""
    found = sizes(llama_base, llama_bf16_a)
    wanted = torch.promote_types(torch.float32, torch.bfloat16)
    assert {sized.dtype for sized in found.values()} == {wanted}
    total = sum(tensor.nbytes for tensor in models.read(llama_bf16_a).values())
    read = [
        value
        for sized in found.values()
        for model, value in sized.read.items()
        if str(model) == str(llama_bf16_a)
    ]
    assert sum(read) == total


def test_a_pickle_has_the_sizes_of_its_tensors(llama_base: Path, tmp_path: Path) -> None:
    """Where there is no header, shapes and dtypes come from the pickle, without its data."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=5)
    tensors = models.read(tuned)
    torch.save(tensors, tuned / "pytorch_model.bin")
    (tuned / "model.safetensors").unlink()
    for name, sized in sizes(llama_base, tuned).items():
        assert set(sized.read.values()) == {tensors[name].nbytes}
