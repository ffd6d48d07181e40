"""What OUT says of its own use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers

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
