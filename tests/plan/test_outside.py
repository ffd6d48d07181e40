"""A recipe whose model stands mostly in lists outside the blocks is refused without `blocks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner

from mergekit_lines.cli import main
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose convolutions before its four blocks are larger than these."""
    folder = tmp_path_factory.mktemp("speech")
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
    base = models.save("Wav2Vec2ForCTC", config, folder / "base", seed=1)
    return base, models.finetuned(base, folder / "tuned", seed=2)


def test_merge_and_inspect_refuse_alike(speech: tuple[Path, Path], tmp_path: Path) -> None:
    """Both name the list outside; with `blocks` the encoder alone is scaled by depth."""
    base, tuned = speech
    document: dict[str, Any] = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.5},
    }
    wanted = "(blocks: wav2vec2.encoder.layers; outside: wav2vec2.feature_extractor.conv_layers)"
    with pytest.raises(LinesError) as refused:
        in_process(document, tmp_path / "refused")
    assert wanted in refused.value.message
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 1
    (inspection,) = json.loads(result.stdout)["documents"]
    assert any(wanted in problem for problem in inspection["problems"])
    assert [len(entry["blocks"]) for entry in inspection["containers"]] == [4]

    document["parameters"]["blocks"] = "encoder.layers"
    in_process(document, tmp_path / "out")
    merged, start, end = (models.read(folder) for folder in (tmp_path / "out", base, tuned))
    for name, coefficient in (
        ("wav2vec2.encoder.layers.3.attention.q_proj.weight", 1.0),
        ("wav2vec2.feature_extractor.conv_layers.1.conv.weight", 0.5),
    ):
        want = start[name].double() + coefficient * (end[name].double() - start[name].double())
        assert models.max_error_ratio(merged[name], want) <= 1e-6, name
