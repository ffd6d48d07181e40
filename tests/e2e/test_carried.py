"""What a merged model carries beside its weights: tokenizer, templates, settings, code, dtype.

The oracle is what was written into the inputs' own files, and transformers, which loads OUT.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests import models
from tests.e2e.runner import in_process
from tests.e2e.test_traps import recipe

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_json(path: Path, **changes: Any) -> None:
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **changes}))


def chat(folder: Path) -> Path:
    """Make a chat model of a fine-tuned one: its template, its end tokens, its settings."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    write_json(folder / "generation_config.json", eos_token_id=[2, 5], temperature=0.6)
    write_json(folder / "config.json", eos_token_id=[2, 5])
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a chat model that was fine-tuned from it."""
    base = models.llama(tmp_path / "base")
    write_json(base / "generation_config.json", eos_token_id=2)
    return base, chat(models.finetuned(base, tmp_path / "chat", seed=1))


def edit(base: Path, model: Path | str, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(model)}],
        "parameters": {"gamma": 0.3},
        **more,
    }


def eos(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_an_edited_model_stays_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """lines_postprocess takes template, end tokens and settings from the model that is edited."""
    out = in_process(edit(*pair), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 5]
    assert GenerationConfig.from_pretrained(out).temperature == 0.6
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 5]


def test_an_adapter_brings_its_tokenizer(
    pair: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    """Of BASE+ADAPTER the adapter's folder comes first, where a tokenizer was saved in it."""
    base = pair[0]
    own = tmp_path / "adapter"
    shutil.copytree(adapter, own)
    out = in_process(edit(base, f"{base}+{own}"), tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    for file in base.glob("*token*"):
        shutil.copy(file, own)
    (own / "chat_template.jinja").write_text(TEMPLATE)
    out = in_process(edit(base, f"{base}+{own}"), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert eos(out) == 2


def test_an_edited_model_without_a_tokenizer_gets_its_bases(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the settings are those of the edited model all the same."""
    base, model = pair
    for file in (*model.glob("*token*"), model / "chat_template.jinja"):
        file.unlink()
    with caplog.at_level(logging.INFO):
        out = in_process(edit(base, model), tmp_path / "out")
    assert f"{model} holds no tokenizer: that of {base} is carried" in caplog.text
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert eos(out) == [2, 5]


def test_a_merge_carries_its_base_and_tells_what_differs(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A merge has the base's files; where template or settings of a model differ is told."""
    base, model = pair
    other = models.finetuned(base, tmp_path / "other", seed=2)
    with caplog.at_level(logging.INFO):
        out = in_process(recipe(base, model, other), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert eos(out) == 2
    (line,) = [entry for entry in caplog.messages if "OUT carries" in entry]
    assert line.startswith(f"{model}: OUT carries the tokenizer and settings of {base}")
    assert "chat template, eos_token_id [2, 5], temperature 0.6" in line


@pytest.mark.parametrize(
    "more",
    [
        {"tokenizer": {"source": "union"}},
        {"tokenizer_source": "base"},
        {"chat_template": TEMPLATE},
    ],
    ids=["union", "base", "template"],
)
def test_generation_settings_are_never_lost(
    more: dict[str, Any], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whatever `tokenizer` and `chat_template` say, OUT has generation settings."""
    out = in_process({**recipe(*pair), **more}, tmp_path / "out")
    assert eos(out) == 2


def test_a_model_named_by_tokenizer_gives_its_settings(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """`tokenizer: {source: MODEL}` carries that model's settings with its tokenizer."""
    more = {"tokenizer": {"source": str(pair[1])}}
    out = in_process({**recipe(*pair), **more}, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert eos(out) == [2, 5]


CONFIGURATION = """
from transformers import LlamaConfig
class XConfig(LlamaConfig):
    model_type = "xmodel"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_x import XConfig
from .parts_x import MARK
class XForCausalLM(LlamaForCausalLM):
    config_class = XConfig
    mark = MARK
"""


def test_code_that_auto_map_names_is_carried(tmp_path: Path) -> None:
    """The modules come along with what they import; loading needs trust_remote_code as before."""
    base = models.llama(tmp_path / "base")
    (base / "configuration_x.py").write_text(CONFIGURATION)
    (base / "modeling_x.py").write_text(MODELING)
    (base / "parts_x.py").write_text("MARK = 7\n")
    (base / "setup.py").write_text("raise SystemExit\n")
    classes = {
        "AutoConfig": "configuration_x.XConfig",
        "AutoModelForCausalLM": "modeling_x.XForCausalLM",
    }
    changes = {"auto_map": classes, "model_type": "xmodel", "architectures": ["XForCausalLM"]}
    write_json(base / "config.json", **changes)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    out = in_process(edit(base, tuned), tmp_path / "out", trust_remote_code=True)
    modules = {path.name for path in out.glob("*.py")}
    assert modules == {"configuration_x.py", "modeling_x.py", "parts_x.py"}
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert (type(model).__name__, model.mark) == ("XForCausalLM", 7)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)


@pytest.mark.parametrize(
    "name", ["../secret.X", "/etc/passwd.X", "modeling_x", "a.b.C", 7, "absent.X"]
)
def test_what_is_no_module_of_the_folder_is_not_carried(name: Any, tmp_path: Path) -> None:
    """Paths, other kinds and absent files in an auto_map copy nothing."""
    from mergekit_lines.report.companions import carry_code

    source, out = tmp_path / "source", tmp_path / "out"
    (tmp_path / "secret.py").write_text("secret")
    for folder in (source, out):
        folder.mkdir()
        write_json(folder / "config.json", auto_map={"AutoConfig": name})
    carry_code(out, {"config.json": source})
    assert [path.name for path in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize("more", [{}, {"dtype": "float16"}, {"out_dtype": "bfloat16"}])
def test_config_states_the_dtype_of_the_file(more: dict[str, str], tmp_path: Path) -> None:
    """config.json says what the shards hold, where the inputs differ from it and one another."""
    base = models.llama(tmp_path / "base")
    write_json(base / "config.json", dtype="float16")  # and its weights are fp32
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1, dtype=torch.bfloat16)
    out = in_process({**edit(base, tuned), **more}, tmp_path / "out")
    with safe_open(out / "model.safetensors", framework="pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert [json.loads((out / "config.json").read_text())["dtype"]] == [names[s] for s in stored]
