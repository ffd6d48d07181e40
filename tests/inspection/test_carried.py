"""What OUT will not carry of the models is told before a merge as it is by the merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import models
from tests.e2e.runner import in_process
from tests.inspection.command import told, write


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
