"""A card says by which library the merged model is loaded, and with which lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lines.report.library import library, loading_code, task_of

MODULES: Any = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.X"}]
FLUX = {"_class_name": "FluxTransformer2DModel"}


@pytest.mark.parametrize(
    ("config", "modules", "name", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, None, "transformers", "text-generation"),
        ({"model_type": "llama"}, None, "transformers", None),
        (
            {"architectures": ["MPNetForMaskedLM"]},
            MODULES,
            "sentence-transformers",
            "sentence-similarity",
        ),
        (FLUX, None, "diffusers", None),
        ({"_class_name": "x); import os #"}, None, None, None),
        ({"_class_name": ["A"]}, None, None, None),
        ({"architecture": "vit_tiny"}, None, None, None),
        (["LlamaForCausalLM"], None, None, None),
        (None, None, None, None),
        ({"architectures": ["BertModel"]}, {"0": "x"}, "transformers", None),
    ],
)
def test_the_library_is_told_by_the_files(
    config: Any, modules: Any, name: str | None, task: str | None, tmp_path: Path
) -> None:
    """The Hub's names; what a file does not say plainly is said of no library."""
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if modules is not None:
        (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert library(tmp_path) == name
    assert task_of(tmp_path) == task


@pytest.mark.parametrize(
    ("config", "modules", "code"),
    [
        (
            {"architectures": ["BertModel"]},
            MODULES,
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("o/m", revision="v1")',
        ),
        (
            FLUX,
            None,
            "from diffusers import FluxTransformer2DModel\n\n"
            'model = FluxTransformer2DModel.from_pretrained("o/m", revision="v1")',
        ),
        (
            {},
            None,
            "from pathlib import Path\n\nfrom huggingface_hub import snapshot_download\n"
            "from safetensors.torch import load_file\n\ntensors = {}\n"
            'for file in Path(snapshot_download("o/m", revision="v1")).glob("*.safetensors"):\n'
            "    tensors |= load_file(file)",
        ),
    ],
)
def test_the_lines_that_load_from_the_hub(
    config: Any, modules: Any, code: str, tmp_path: Path
) -> None:
    """Each library's own way, from the branch that was pushed to."""
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert loading_code(tmp_path, "o/m", "v1", on_hub=True) == code


def test_the_lines_for_tensors_run(tmp_path: Path) -> None:
    """What no library knows is loaded by its tensors, from one file or several."""
    for number in range(2):
        save_file(
            {f"{number}": torch.full((2,), float(number))}, tmp_path / f"{number}.safetensors"
        )
    names: dict[str, Any] = {}
    exec(loading_code(tmp_path, str(tmp_path), None, on_hub=False), names)
    assert {name: tensor[0].item() for name, tensor in names["tensors"].items()} == {"0": 0, "1": 1}
