"""An output tensor that mergekit's layout names several times is planned and written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from tests import models
from tests.architectures import DECODER
from tests.e2e.runner import in_process
from tests.inspection.command import told, write

ALPHA, BETA = 0.3, 0.7


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Qwen2.5-VL with two vision blocks: its merger is named in each of mergekit's."""
    folder = tmp_path_factory.mktemp("repeats")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config={**DECODER, "rope_parameters": rope}, vision_config=vision
    )
    base = models.save("Qwen2_5_VLForConditionalGeneration", config, folder / "base", seed=3)
    return base, models.finetuned(base, folder / "tuned", seed=4)


def test_every_tensor_is_written_once(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    """OUT is whole for safetensors itself, with the base's names and the formula's values."""
    base, tuned = qwen
    document = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"alpha": ALPHA, "beta": BETA},
    }
    in_process(document, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    first, last = models.read(base), models.read(tuned)
    assert set(merged) == set(first)
    for name in (name for name in first if ".merger." in name):
        want = first[name].double() + ALPHA * (last[name].double() - first[name].double())
        assert models.max_error_ratio(merged[name], want) <= 1e-6, name


def test_every_tensor_is_counted_once(qwen: tuple[Path, Path], tmp_path: Path) -> None:
    """`inspect` tells as many tensors, entries and bytes as the base's file holds."""
    base, tuned = qwen
    document = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.3},
    }
    (inspection,) = told(write(tmp_path, document))
    tensors = models.read(base)
    assert inspection["totals"]["tensors"] == len(tensors)
    assert inspection["totals"]["parameters"] == sum(one.numel() for one in tensors.values())
    assert inspection["totals"]["output"] == sum(one.nbytes for one in tensors.values())
