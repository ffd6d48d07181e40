"""What a merge writes without the head of its class is loaded and pushed as the trunk it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergekit_lines.errors import LinesError
from mergekit_lines.hub.whole import merged_model
from tests import models
from tests.architectures import IMAGE, ROWS, Row
from tests.e2e.runner import in_process

ROW = {row.name: row for row in ROWS}
ROW["ViTForMaskedImageModeling"] = Row(
    "ViTForMaskedImageModeling", lambda: transformers.ViTConfig(**IMAGE), {"vit.encoder.layer": 3}
)
# Classes with a head, and what their files lack: the class under whose names they are stored
# says the rest.
HEADS: Mapping[str, tuple[str, ...]] = {
    "BertForMaskedLM": ("cls.",),
    "BertForSequenceClassification": ("classifier.",),
    "RobertaForSequenceClassification": ("classifier.",),
    "ViTForImageClassification": ("classifier.",),
    "ViTForMaskedImageModeling": ("decoder.",),
    "SwinForImageClassification": ("classifier.",),
    "ConvNextForImageClassification": ("classifier.",),
}
TRUNKS = {"MPNetModel": "MPNetForMaskedLM", "LlamaModel": "LlamaForCausalLM"}


def headless(name: str, folder: Path) -> Path:
    """Merge two models that lack the head of the class that their configs name, and return OUT."""
    kind = TRUNKS.get(name, name)
    row = ROW.get(name) or Row(name, ROW[kind].config, {"layers": 3})
    base = row.save(folder / "base")
    tuned = models.finetuned(base, folder / "a", seed=2)
    ends = HEADS.get(name, ())
    for one in (base, tuned):
        models.rewrite(one, lambda held: {n: t for n, t in held.items() if not n.startswith(ends)})
        models.edit_config(one, architectures=[kind])
    in_process({**RECIPE, "base_model": str(base), "models": [{"model": str(tuned)}]}, folder / "o")
    return folder / "o"


RECIPE: Mapping[str, Any] = {
    "merge_method": "lines",
    "parameters": {"alpha": 0.3, "beta": 0.5, "weight": 0.5},
}


@pytest.mark.parametrize("name", [*HEADS, *TRUNKS])
def test_the_card_loads_the_trunk_and_makes_nothing_up(name: str, tmp_path: Path) -> None:
    """Every parameter of what the card's lines load is a tensor of the files, bit for bit."""
    out = headless(name, tmp_path)
    held = models.read(out)
    text = (out / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/o", str(out))
    names: dict[str, Any] = {}
    exec(code, names)
    with_head = getattr(transformers, TRUNKS.get(name, name)).from_pretrained(out)
    inside = with_head.base_model.state_dict()  # by transformers' own renamings
    for parameter, value in names["model"].named_parameters():
        stored = held.get(parameter, inside.get(parameter))
        assert stored is not None and torch.equal(value, stored), parameter
    assert "pipeline_tag" not in text


@pytest.mark.parametrize("name", [*HEADS, *TRUNKS])
def test_a_trunk_is_pushed_as_one(name: str, tmp_path: Path) -> None:
    """What the merge took for a trunk is whole; a note names the head that it has not."""
    kind = TRUNKS.get(name, name)
    notes = merged_model(headless(name, tmp_path)).notes
    assert [note for note in notes if f"alone, and no head of {kind}" in note]


@pytest.mark.parametrize("name", ["BertForMaskedLM", "MPNetModel"])
def test_a_trunk_that_lacks_more_than_a_head_is_not_pushed(name: str, tmp_path: Path) -> None:
    """A block that is not there is no head; what to do is no merge of the same again."""
    out = headless(name, tmp_path)
    models.edit_config(out, num_hidden_layers=4)
    with pytest.raises(LinesError, match=r"would be random\. Put back the config\.json"):
        merged_model(out)


@pytest.mark.parametrize(
    "name", ["ViTForMaskedImageModeling", "LlavaForConditionalGeneration", "Wav2Vec2ForCTC"]
)
def test_the_card_of_a_class_that_no_task_knows_names_that_class(name: str, tmp_path: Path) -> None:
    """AutoModel would make the trunk of it, with a random pooler or without the head."""
    base = ROW[name].save(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    out = tmp_path / "o"
    in_process({**RECIPE, "base_model": str(base), "models": [{"model": str(tuned)}]}, out)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f'from transformers import {name}\n\nmodel = {name}.from_pretrained("path/to/o")' in text
