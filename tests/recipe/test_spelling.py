"""Models that look broken, or are not there, for a reason that can be told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mergekit_lines.cli import main
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process


def refusal(base: object, tuned: object, folder: Path, **options: Any) -> str:
    """Return the text by which a merge of the two is refused."""
    document = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.5},
    }
    with pytest.raises(LinesError) as refused:
        in_process(document, folder / "out", **options)
    assert not (folder / "out").exists()
    return refused.value.message


def test_a_shells_home_is_none_in_a_recipe(
    llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` and `$NAME` are told as what they are, with the path that they mean."""
    monkeypatch.setenv("HOME", "/home/of/someone")
    monkeypatch.setenv("MODELS", "/data/models")
    assert "Write /home/of/someone/tuned." in refusal(llama_base, "~/tuned", tmp_path)
    assert "Write /data/models/tuned." in refusal(llama_base, "$MODELS/tuned", tmp_path)


@pytest.mark.parametrize(("name", "meaning"), [("a@v2", "revision"), ("a+b", "adapter")])
def test_folders_named_with_mergekits_marks(
    name: str, meaning: str, llama_base: Path, tmp_path: Path
) -> None:
    """A folder with `@` or `+` in its name is there, and mergekit reads something else."""
    shutil.copytree(llama_base, tmp_path / name)
    text = refusal(llama_base, tmp_path / name, tmp_path)
    assert f"{tmp_path / name}: mergekit reads" in text
    assert meaning in text and "Rename the folder" in text


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")],
)
def test_names_of_a_wrapped_model(
    prefix: str, wrapper: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Names that a wrapper has changed are called by the wrapper."""
    tuned = shutil.copytree(llama_a, tmp_path / "tuned")
    models.rewrite(tuned, lambda tensors: {f"{prefix}{n}": t for n, t in tensors.items()})
    text = refusal(llama_base, tuned, tmp_path)
    assert f"begins with {prefix!r}, which {wrapper}" in text
    assert "lacks" not in text


def test_single_files_of_a_wrapped_model(tmp_path: Path) -> None:
    """`edit` of two files names the wrapper once, and not every name that is lacking."""
    tensors = {f"layers.{index}.fc.weight": torch.ones(4) for index in range(3)}
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file(tensors, base)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, tuned)
    words = ["edit", str(tuned), "--base", str(base), "--gamma", "0.5"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out.safetensors")])
    assert result.exit_code == 1
    assert f"{tuned}: the name of every tensor begins with '_orig_mod.'" in result.output
    assert "lacks" not in result.output


def test_packed_weights_are_refused(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Bytes in place of weights, as a quantisation packs them, have no task vector."""
    tuned = shutil.copytree(llama_a, tmp_path / "tuned")
    models.edit_config(tuned, quantization_config={"quant_method": "bitsandbytes"})
    models.rewrite(tuned, lambda tensors: {n: t.to(torch.uint8) for n, t in tensors.items()})
    assert "a quantised checkpoint (bitsandbytes)" in refusal(llama_base, tuned, tmp_path)


def parameters(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, file)


def buffers(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save({name: torch.nn.Buffer(tensor) for name, tensor in tensors.items()}, file)


def old_form(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [parameters, buffers, old_form])
def test_what_lazy_unpickle_cannot_read(
    save: Callable[[dict[str, torch.Tensor], Path], None],
    llama_base: Path,
    llama_a: Path,
    tmp_path: Path,
) -> None:
    """The flag's refusal comes before the merge, with the file and two ways out."""
    tuned = shutil.copytree(llama_a, tmp_path / "tuned")
    save(models.read(tuned), tuned / "pytorch_model.bin")
    (tuned / "model.safetensors").unlink()
    text = refusal(llama_base, tuned, tmp_path, lazy_unpickle=True)
    assert f"model {tuned}: --lazy-unpickle cannot read pytorch_model.bin" in text
    assert "Drop the flag, or save the model as safetensors" in text
