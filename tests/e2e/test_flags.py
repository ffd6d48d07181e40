"""Every flag of mergekit does what the table of recipes/README.md says of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from mergekit.options import MergeOptions

from tests import models
from tests.e2e.runner import ForkServer, mergekit_yaml, recipe_text
from tests.readmes import RECIPES, section


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """--num-threads is global to the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def table() -> dict[str, str]:
    """The table of flags: field of MergeOptions -> what becomes of it."""
    rows = {}
    for line in section(RECIPES, "mergekit's flags").splitlines():
        if not line.startswith("| `-"):
            continue
        flags, status = [cell.strip() for cell in line.strip("|").split("|")][:2]
        for flag in re.findall(r"`(-[\w-]+)", flags):
            name = flag.lstrip("-").removeprefix("no-").replace("-", "_")
            rows[{"v": "verbosity", "j": "num_threads"}.get(name, name)] = status
    return rows


def test_every_flag_has_a_row() -> None:
    """The table names all of mergekit's merge options, and no others."""
    assert set(table()) == set(MergeOptions.model_fields)
    assert set(table().values()) == {"honoured", "ignored with a notice", "refused", *UNUSED}


class Command:
    """The stock command's own parser and ``run_merge``, on one recipe."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "recipe.yml").write_text(recipe_text(recipe), encoding="utf-8")

    def __call__(self, name: str, *flags: str) -> Result:
        from mergekit.scripts.run_yaml import main

        arguments = [str(self.folder / "recipe.yml"), str(self.folder / name), *flags]
        result = CliRunner().invoke(main, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def digest(self, name: str, *flags: str) -> dict[str, str]:
        result = self(name, *flags)
        assert result.exit_code == 0, result.output
        return models.digest(self.folder / name)


@pytest.fixture
def command(llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path) -> Command:
    """A recipe with draws, so that threads, seeds and writers would show."""
    return Command(
        tmp_path,
        {
            "merge_method": "lines",
            "base_model": llama_base,
            "models": [{"model": llama_a}, {"model": llama_b}],
            "parameters": {"wrap": "dare_ties", "density": 0.5, "beta": 0.5, "alpha": 0.5},
        },
    )


# What the table says of flags of mergekit's own reader, writer and adapters.
UNUSED = ("without effect", "where peft has to merge")
# Flags that change how a merge runs, and none of its bytes.
SAME_BYTES = (
    ("allow_crimes", "--allow-crimes"),
    ("low_cpu_memory", "--low-cpu-memory"),
    ("read_to_gpu", "--read-to-gpu"),
    ("device", "--device", "cpu"),
    ("clone_tensors", "--clone-tensors"),
    ("async_write", "--async-write"),
    ("write_threads", "--async-write", "--write-threads", "2"),
    ("lazy_unpickle", "--lazy-unpickle"),
    ("transformers_cache", "--transformers-cache", "unused"),
    ("lora_merge_dtype", "--lora-merge-dtype", "float32"),
    ("trust_remote_code", "--trust-remote-code"),
    ("verbosity", "-v"),
    ("quiet", "--quiet"),
    ("random_seed", "--random-seed", "0"),
)


def test_flags_that_change_no_byte(command: Command) -> None:
    """Devices, threads, caches and verbosity are honoured and leave every file as it was."""
    plain = command.digest("plain")
    # The card's title is the name of the folder.
    del plain["README.md"]
    for field, *flags in SAME_BYTES:
        assert table()[field] in ("honoured", *UNUSED)
        got = command.digest(field, *flags)
        del got["README.md"]
        assert got == plain, field


def test_num_threads(command: Command, server: ForkServer) -> None:
    """--num-threads is honoured and changes no byte."""
    assert table()["num_threads"] == "honoured"
    recipe = (command.folder / "recipe.yml").read_text(encoding="utf-8")
    # In a process of its own: torch sets its pools only once.
    one = ("threads", "--num-threads", "1")
    mergekit_yaml(recipe, *one, cwd=command.folder, server=server).succeeded()
    want, got = command.digest("plain"), models.digest(command.folder / "threads")
    assert got["model.safetensors"] == want["model.safetensors"]


def test_quiet_and_verbose(command: Command) -> None:
    """--quiet silences what the merge says of itself; without it α and λ are told."""
    assert "[lines]" not in command("quiet", "--quiet").output
    said = command("loud").output
    assert "[lines] model.layers: 4 blocks, coefficient 0.5 to 1" in said


def test_multi_gpu_is_ignored_with_a_notice(command: Command) -> None:
    """--multi-gpu runs on one device and says so."""
    assert table()["multi_gpu"] == "ignored with a notice"
    result = command("out", "--multi-gpu")
    assert result.exit_code == 0
    assert "--multi-gpu is ignored" in result.output


@pytest.mark.parametrize("flag", ["--cuda", "--gpu-rich"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(flag: str, command: Command) -> None:
    """A CUDA flag on a machine without one ends with a sentence."""
    result = command("out", flag)
    assert result.exit_code == 1
    assert "sees no CUDA device" in result.output
    assert "Traceback" not in result.output
    assert not (command.folder / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_honoured(command: Command) -> None:
    """On CUDA the merge of a deterministic recipe agrees with the CPU's to 1e-6."""
    text = (command.folder / "recipe.yml").read_text(encoding="utf-8")
    (command.folder / "recipe.yml").write_text(text.replace("dare_ties", "ties"))
    command.digest("cpu", "--device", "cpu")
    command.digest("cuda", "--cuda")
    want, got = (models.read(command.folder / name) for name in ("cpu", "cuda"))
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert models.max_error_ratio(got[name], tensor) <= 1e-6, name


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("safe_serialization", "--no-safe-serialization"),
        ("unsafe_truncate_embeddings", "--unsafe-truncate-embeddings"),
    ],
)
def test_refused_flags(field: str, flag: str, command: Command) -> None:
    """A refused flag ends with its own name and a remedy."""
    assert table()[field] == "refused"
    result = command("out", flag)
    assert result.exit_code == 1
    assert flag in result.output
    assert not (command.folder / "out").exists()


def test_out_shard_size(command: Command) -> None:
    """--out-shard-size cuts the output into shards that load."""
    from transformers import AutoModelForCausalLM

    command.digest("out", "--out-shard-size", "50k")
    assert len(list((command.folder / "out").glob("*.safetensors"))) > 2
    AutoModelForCausalLM.from_pretrained(command.folder / "out")


def test_no_copy_tokenizer(command: Command) -> None:
    """--no-copy-tokenizer leaves the tokenizer out."""
    assert "tokenizer.json" in command.digest("with")
    assert "tokenizer.json" not in command.digest("without", "--no-copy-tokenizer")


def test_no_write_model_card(command: Command) -> None:
    """--no-write-model-card leaves out the card and the recipe, as mergekit does."""
    assert {"README.md", "mergekit_config.yml"} <= set(command.digest("with"))
    without = set(command.digest("without", "--no-write-model-card"))
    assert not {"README.md", "mergekit_config.yml"} & without
    assert "lines_report.json" in without


def test_lora_merge_cache_is_a_place_and_never_reused(
    llama_base: Path, adapter: Path, tmp_path: Path
) -> None:
    """A retrained adapter under the same path is merged anew, with or without a cache folder."""
    mine = tmp_path / "adapter"
    models.lora(llama_base, mine, seed=4)
    command = Command(
        tmp_path,
        {
            "merge_method": "lines_postprocess",
            "base_model": llama_base,
            "models": [{"model": f"{llama_base}+{mine}"}],
            "parameters": {"gamma": 0.5},
        },
    )
    cache = tmp_path / "cache"
    first = command.digest("first", "--lora-merge-cache", str(cache))
    models.lora(llama_base, mine, seed=5)
    second = command.digest("second", "--lora-merge-cache", str(cache))
    without = command.digest("without")
    assert first["model.safetensors"] != second["model.safetensors"]
    assert second["model.safetensors"] == without["model.safetensors"]
    assert not cache.exists()


def test_pickled_inputs_with_and_without_lazy_unpickle(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """A .bin checkpoint merges like its safetensors twin."""
    recipe: dict[str, Any] = {
        "merge_method": "lines",
        "base_model": llama_base,
        "models": [{"model": llama_a}],
        "parameters": {"beta": 0.5},
    }
    want = Command(tmp_path, recipe).digest("plain")["model.safetensors"]
    pickled = tmp_path / "pickled"
    shutil.copytree(llama_a, pickled)
    torch.save(models.read(llama_a), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    recipe["models"] = [{"model": pickled}]
    command = Command(tmp_path, recipe)
    assert command.digest("eager")["model.safetensors"] == want
    assert command.digest("lazy", "--lazy-unpickle")["model.safetensors"] == want
