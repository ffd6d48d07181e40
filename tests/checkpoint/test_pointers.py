"""git-lfs pointers in place of files are called by their name, with the way to the files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.sources import Shard
from mergekit_lines.checkpoint.stand_ins import is_pointer, pointers
from mergekit_lines.errors import LinesError
from mergekit_lines.plan.inputs import check_models
from tests import models
from tests.report.test_card import parsed, recipe


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"]
)
def test_a_pointer_in_a_model(llama_base: Path, tmp_path: Path, name: str) -> None:
    """Weights or a file of the tokenizer: one problem, and nothing of what follows from it."""
    folder = shutil.copytree(llama_base, tmp_path / "cloned")
    (folder / name).write_text(models.POINTER)
    (problem,) = map(
        str, check_models(parsed(recipe(str(folder), str(llama_base))), MergeOptions())
    )
    assert f"{folder}: {name} is a git-lfs pointer" in problem
    assert "Run `git lfs pull` in it" in problem


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_pointer_in_an_adapter(llama_base: Path, tmp_path: Path, name: str) -> None:
    """The weights of an adapter, whatever their format."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / name).write_text(models.POINTER)
    config = parsed(recipe(str(llama_base), f"{llama_base}+{tmp_path}"))
    (problem,) = map(str, check_models(config, MergeOptions()))
    assert f"{tmp_path}: {name} is a git-lfs pointer" in problem


def test_several_pointers_are_one_problem(tmp_path: Path) -> None:
    """A whole clone without git-lfs is told in one sentence."""
    for name in ("model-1.safetensors", "model-2.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(models.POINTER)
    (problem,) = pointers(tmp_path)
    assert "model-1.safetensors, model-2.safetensors, tokenizer.json are git-lfs p" in problem


def test_a_pointer_that_is_opened_as_a_shard(tmp_path: Path) -> None:
    """A single file, as `edit` and mergekit-pytorch are given, says it too."""
    (tmp_path / "a.safetensors").write_text(models.POINTER)
    with pytest.raises(LinesError, match=r"a\.safetensors: is a git-lfs pointer.*git lfs pull"):
        Shard(tmp_path / "a.safetensors")


def test_what_is_no_pointer(tmp_path: Path) -> None:
    """A text that only speaks of one, a pipe, an empty file, a folder."""
    (tmp_path / "a.txt").write_text("# " + models.POINTER)
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").mkdir()
    os.mkfifo(tmp_path / "d.txt")
    (tmp_path / "e.txt").write_text(models.POINTER + "x" * 2000)
    assert not any(map(is_pointer, tmp_path.iterdir()))
    assert pointers(tmp_path) == []
