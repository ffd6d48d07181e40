"""What OUT will not carry of the models is told before a merge as it is by the merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import models
from tests.e2e.runner import in_process
from tests.inspection.command import inspect, told, write


def test_other_templates_and_settings_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is the merge's own, and of a model with the base's files there is none."""
    base = models.llama(tmp_path / "base")
    chat = models.finetuned(base, tmp_path / "chat", seed=1)
    other = models.finetuned(base, tmp_path / "other", seed=2)
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    settings = json.loads((chat / "generation_config.json").read_text())
    (chat / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, 5]}))
    recipe = {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(chat)}, {"model": str(other)}],
        "parameters": {"alpha": 0.3, "beta": 0.5},
    }
    (inspection,) = told(write(tmp_path, recipe))
    (note,) = [note for note in inspection["notes"] if "OUT carries" in note]
    assert note.startswith(f"{chat}: ")
    assert "chat template, eos_token_id [2, 5]" in note
    in_process(recipe, tmp_path / "out", quiet=False)
    assert note in capsys.readouterr().err


def test_configs_that_compute_something_else_are_told(llama_base: Path, tmp_path: Path) -> None:
    """With key and values: as a note what the base's config decides, as a problem other heads."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=1)
    models.edit_config(tuned, rms_norm_eps=1e-2)
    recipe = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(tuned)}],
        "parameters": {"alpha": 0.3, "beta": 0.5},
    }
    (inspection,) = told(write(tmp_path, recipe))
    (note,) = [note for note in inspection["notes"] if "config.json" in note]
    assert "rms_norm_eps 0.01 where base_model says 1e-06" in note
    models.edit_config(tuned, num_key_value_heads=2, head_dim=16)
    result = inspect(write(tmp_path, recipe))
    assert result.exit_code == 1
    assert "head_dim 16 where base_model says 8" in result.stderr
