"""A recipe whose model stands mostly in lists outside the blocks is refused without `blocks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergekit_lines.cli import main
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process


@pytest.fixture
def stacks(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of a model whose lists hold one matrix an item: no names of blocks."""
    generator = torch.Generator().manual_seed(5)
    base = {f"features.{i}": torch.randn(12, 12, generator=generator) for i in range(4)}
    base |= {f"gates.{i}": torch.randn(9, 9, generator=generator) for i in range(3)}
    base |= {"head.weight": torch.randn(40, 40, generator=generator)}
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file(base, paths[0])
    save_file(
        {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}, paths[1]
    )
    return paths


def test_merge_and_inspect_refuse_alike(stacks: tuple[Path, Path], tmp_path: Path) -> None:
    """Both name the lists outside; with `blocks` the one that is named is scaled by depth."""
    base, tuned = stacks
    document: dict[str, Any] = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.5},
    }
    wanted = "(blocks: none; outside: features, gates)"
    with pytest.raises(LinesError) as refused:
        in_process(document, tmp_path / "refused")
    assert wanted in refused.value.message
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 1
    (inspection,) = json.loads(result.stdout)["documents"]
    assert any(wanted in problem for problem in inspection["problems"])

    document["parameters"]["blocks"] = "features"
    in_process(document, tmp_path / "out")
    merged = models.read(tmp_path / "out")
    start, end = load_file(base), load_file(tuned)
    for name, coefficient in (("features.3", 1.0), ("features.0", 0.5), ("gates.2", 0.5)):
        want = start[name].double() + coefficient * (end[name].double() - start[name].double())
        assert models.max_error_ratio(merged[name], want) <= 1e-6, name


def test_projectors_beside_blocks_are_no_lost_depth(tmp_path: Path) -> None:
    """Convolutions before an encoder, larger than its blocks, have no depth of their own."""
    config = transformers.Wav2Vec2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        conv_dim=(192, 192),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    base = models.save("Wav2Vec2ForCTC", config, tmp_path / "base", seed=1)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=2)
    document = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.5},
    }
    in_process(document, tmp_path / "out")
    merged, start, end = (models.read(folder) for folder in (tmp_path / "out", base, tuned))
    for name, coefficient in (
        ("wav2vec2.encoder.layers.3.attention.q_proj.weight", 1.0),
        ("wav2vec2.encoder.layers.0.attention.q_proj.weight", 0.5),
        ("wav2vec2.feature_extractor.conv_layers.1.conv.weight", 0.5),
    ):
        want = start[name].double() + coefficient * (end[name].double() - start[name].double())
        assert models.max_error_ratio(merged[name], want) <= 1e-6, name
