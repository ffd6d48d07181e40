"""A live model is used as what a merge of the same recipe makes: by its tokenizer and settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from mergekit_lines import LiveModel
from tests import models
from tests.e2e.runner import in_process

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def as_chat(folder: Path) -> Path:
    """Give a model's folder a chat template and end tokens of its own."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [2, 5]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("method", ["lines_postprocess", "lines", "tokenizer", "adapter"])
def test_it_is_used_as_its_merge(
    method: str, llama_base: Path, llama_a: Path, adapter: Path, tmp_path: Path
) -> None:
    """Template and end tokens are those that OUT has: the edited model's, the base's, the named."""
    chat = as_chat(shutil.copytree(llama_a, tmp_path / "chat"))
    name, parameters = str(chat), {"alpha": 0.3, "beta": 0.5}
    if method == "adapter":
        own = shutil.copytree(adapter, tmp_path / "adapter")
        for file in [*llama_base.glob("*token*"), llama_base / "generation_config.json"]:
            shutil.copy(file, own)
        name = f"{llama_base}+{as_chat(own)}"
    recipe: dict[str, Any] = {
        "merge_method": "lines" if method in ("lines", "tokenizer") else "lines_postprocess",
        "base_model": str(llama_base),
        "models": [{"model": name}],
        "parameters": parameters,
    }
    if method == "tokenizer":
        recipe["tokenizer"] = {"source": name}
    out = in_process(recipe, tmp_path / "out")
    with LiveModel(recipe, quiet=True) as live:
        template, end = live.tokenizer.chat_template, live.model.generation_config.eos_token_id
        inputs = live.describe_inputs()
    assert template == transformers.AutoTokenizer.from_pretrained(out).chat_template
    assert end == transformers.GenerationConfig.from_pretrained(out).eos_token_id
    assert (template, end) == ((None, 2) if method == "lines" else (TEMPLATE, [2, 5]))
    assert ("texts that are carried" in inputs) == (method != "lines")
    assert models.read(out).keys()


def test_a_processor_is_that_of_the_output(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A vision transformer has its image processor; a language model has none."""
    base = models.vit(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 12}}
    for folder in (base, tuned):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    words = {"alpha": 0.3, "beta": 0.5}
    for one, other, size in ((base, tuned, 12), (llama_base, llama_a, None)):
        recipe = {
            "merge_method": "lines",
            "base_model": str(one),
            "models": [{"model": str(other)}],
            "parameters": words,
        }
        with LiveModel(recipe, quiet=True) as live:
            own = live.processor
        assert (own and own.size["height"]) == size
