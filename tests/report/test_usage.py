"""What OUT says of its own use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergekit_lines.report.usage import differences
from tests import models
from tests.e2e.runner import in_process


def test_a_config_without_a_dtype_is_given_one(
    llama_bf16_base: Path, llama_bf16_a: Path, tmp_path: Path
) -> None:
    """A base whose config says none: what reads OUT would take fp32 or fp16 for granted."""
    base = shutil.copytree(llama_bf16_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config))
    recipe = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(llama_bf16_a)}],
        "parameters": {"gamma": 0.5},
    }
    out = in_process(recipe, tmp_path / "out")
    assert {tensor.dtype for tensor in models.read(out).values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert transformers.AutoConfig.from_pretrained(out).dtype == torch.bfloat16


PLAIN = {"image_mean": [0.5, 0.5, 0.5], "size": {"height": 224, "width": 224}, "do_resize": True}


@pytest.mark.parametrize(
    ("ours", "theirs", "unlike"),
    [
        (
            {"preprocessor_config.json": PLAIN},
            {"preprocessor_config.json": {**PLAIN, "size": {"height": 384, "width": 224}}},
            ["size.height 384"],
        ),
        # As releases of transformers write the same.
        (
            {"preprocessor_config.json": {**PLAIN, "image_processor_type": "ViTImageProcessor"}},
            {
                "processor_config.json": {
                    "image_processor": {
                        **PLAIN,
                        "image_processor_type": "ViTImageProcessorFast",
                        "data_format": "channels_first",
                        "do_convert_rgb": None,
                    },
                    "processor_class": "CLIPProcessor",
                }
            },
            [],
        ),
        ({}, {"preprocessor_config.json": PLAIN}, ["processor"]),
        ({"preprocessor_config.json": PLAIN}, {}, []),
        ({}, {"processor_config.json": ["x"], "preprocessor_config.json": 3}, []),
        (
            {"preprocessor_config.json": PLAIN, "video_preprocessor_config.json": {"fps": 2}},
            {"preprocessor_config.json": PLAIN, "video_preprocessor_config.json": {"fps": 4}},
            ["video_processor.fps 4"],
        ),
        (
            {"preprocessor_config.json": {"image_mean": [0.0]}},
            {"preprocessor_config.json": {"image_mean": [0.123456789] * 20}},
            ["image_mean [" + "0.123456789, " * 4 + "0.1234…"],
        ),
    ],
)
def test_a_processor_that_differs_is_named(
    ours: dict[str, Any], theirs: dict[str, Any], unlike: list[str], tmp_path: Path
) -> None:
    """By the keys that both say, whichever release wrote them, and by the other's values."""
    for name, files in (("ours", ours), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(json.dumps(content))
    assert differences(tmp_path / "ours", tmp_path / "theirs") == unlike
