"""``mergekit-lines inspect``: what it tells is what the recipe says and what the files hold.

Sizes are counted by hand (:mod:`tests.shaped`) or from the tensors themselves; coefficients are
those of the recipes' own table (:mod:`tests.test_recipes`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mergekit.architecture.conversion import can_convert_checkpoint_keys

from mergekit_lines.plan import renames
from tests import models as make
from tests import shaped
from tests.cases.case import Models
from tests.cases.checkpoints import with_adapter
from tests.cases.recipes import recipe
from tests.e2e import runner
from tests.inspection.command import inspect, told, write
from tests.test_recipes import (  # the fixtures are asked for by name
    BLOCKS,
    RECIPES,
    TABLE,
    Places,
    documents,
    edited,
    folders,
    places,
)

__all__ = ["folders", "places"]

# --- every recipe ------------------------------------------------------------------------


@pytest.mark.parametrize("file", TABLE)
def test_recipes(file: str, places: Places, tmp_path: Path) -> None:
    """Each ready recipe shows the coefficients of its table and every entry of its base."""
    expected = TABLE[file]
    *before, document = documents(file)
    stand_ins = {step["name"]: places["./fine-tuned"] for step in before}
    document = edited(document, {**places, **stand_ins})
    (found,) = told(write(tmp_path, document))
    assert found["wraps"] == ([expected.wrap] if expected.wrap else [])
    (container,) = found["containers"]
    assert container["name"] == expected.container
    for place, block in enumerate(container["blocks"]):
        (coefficient,) = block["coefficients"]
        name = f"{expected.container}.{place}.weight"
        assert coefficient["value"] == pytest.approx(expected.coefficient(name))
        assert coefficient["plus_alpha"] == expected.eq2
        assert block["index"] == place + 1
    assert len(container["blocks"]) == BLOCKS
    assert all(
        entry["coefficient"] == {"value": expected.outside, "plus_alpha": expected.eq2}
        or entry["coefficient"]["value"] == pytest.approx(expected.outside)
        for entry in found["outside"]
    )
    base = make.read(document["base_model"])
    assert found["totals"]["parameters"] == sum(tensor.numel() for tensor in base.values())
    names = {entry["name"] for entry in found["outside"]}
    assert names == {name for name in base if not name.startswith(f"{expected.container}.")}


@pytest.mark.parametrize("file", [name for name in TABLE if len(documents(name)) > 1])
def test_recipes_of_several_documents(file: str, places: Places, tmp_path: Path) -> None:
    """Of a mergekit-multi file each document is told; one that merges another's output waits."""
    steps = documents(file)
    names = {step["name"]: step["name"] for step in steps[:-1]}
    path = write(tmp_path, *[edited(step, {**places, **names}) for step in steps])
    first, last = told(path)
    assert "mergekit's own" in first["notes"][0]
    assert first["name"] in last["notes"][0] and "earlier document" in last["notes"][0]
    assert last["totals"] is None


def test_recipes_as_they_are() -> None:
    """A recipe whose models are not there names each of them, and exits with status 1."""
    result = inspect(RECIPES / "task-arithmetic.yml")
    assert result.exit_code == 1
    assert all(f"model ./{name}" in result.stderr for name in ("math", "code", "chat"))


# --- sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [shaped.LLAMA, shaped.MIXTRAL], ids=["llama", "mixtral"])
def test_published_sizes(published: shaped.Published, tmp_path: Path) -> None:
    """LLaMA-2-7B and Mixtral-8x7B come to their published counts; no weight is read."""
    folders = [
        shaped.write(tmp_path / name, published.config, published.shapes, published.dtype)
        for name in ("base", "tuned")
    ]
    document = {
        "merge_method": "lines_postprocess",
        "base_model": folders[0],
        "models": [{"model": folders[1]}],
        "parameters": {"gamma": 0.25},
    }
    begun = time.process_time()
    (found,) = told(write(tmp_path, document), "--out-shard-size", "2B")
    assert time.process_time() - begun < 30  # seconds of computing: one, or minutes of reading
    totals = found["totals"]
    assert totals["parameters"] == published.parameters
    assert totals["output"] == totals["disk"] == 2 * published.parameters
    assert totals["read"] == 2 * totals["output"]
    ((name, blocks),) = [(entry["name"], entry["blocks"]) for entry in found["containers"]]
    assert (name, len(blocks)) == ("model.layers", 32)
    for index, block in enumerate(blocks):
        assert block["parameters"] == published.per_block
        assert block["bytes"] == 2 * published.per_block
        assert block["tensors"] == published.tensors_per_block
        # gamma to 1 over 31 steps.
        wanted = 0.25 + 0.75 * index / 31
        assert block["coefficients"][0]["value"] == pytest.approx(wanted, rel=1e-12)
    outside = {entry["name"]: entry["parameters"] for entry in found["outside"]}
    assert outside == {
        "lm_head.weight": 32000 * 4096,
        "model.embed_tokens.weight": 32000 * 4096,
        "model.norm.weight": 4096,
    }
    # Whatever was read of the shards is in the page cache: their headers, and what the kernel
    # reads ahead.
    shards = [shard for folder in folders for shard in folder.glob("*.safetensors")]
    read = sum(shaped.resident_bytes(shard) for shard in shards)
    assert sum(shard.stat().st_size for shard in shards) > 4 * published.parameters
    assert read < len(shards) * 1_000_000


def test_output_bytes_are_those_of_the_merge(sound: Models, tmp_path: Path) -> None:
    """With other dtypes, another vocabulary and fused experts the output told is the one made."""
    mixtral = make.mixtral(tmp_path / "mixtral", seed=1)
    fused = {
        "base_model": mixtral,
        "models": [{"model": make.finetuned(mixtral, tmp_path / "t", seed=2)}],
    }
    more = make.llama(tmp_path / "more", seed=5, vocab=130, tokens=("alpha", "beta"))
    for name, changes in {
        "rounded": {"out_dtype": "bfloat16"},
        "union": {"models": [{"model": more}], "tokenizer": {"source": "union"}},
        "fused": fused,
        "padded": {"tokenizer": {"source": "base", "pad_to_multiple_of": 100}},
    }.items():
        document = recipe(sound, **changes)
        (found,) = told(write(tmp_path, document))
        out = runner.in_process(document, tmp_path / name)
        made = make.read(out)
        assert found["totals"]["output"] == sum(tensor.nbytes for tensor in made.values())
        assert found["totals"]["tensors"] == len(made)
        told_of = {entry["name"]: entry["bytes"] for entry in found["outside"]}
        assert told_of == {tensor: made[tensor].nbytes for tensor in told_of}


def test_what_is_read(sound: Models, tmp_path: Path) -> None:
    """Weights are read once; twice for Eq. 2 without a closed form, which alone gives no λ."""
    size = sum(tensor.nbytes for tensor in make.read(sound.base).values())
    closed = {"alpha": "auto", "beta": 0.3}
    (found,) = told(write(tmp_path, recipe(sound, parameters=closed)))
    assert found["totals"]["read"] == 3 * size
    assert found["alpha"] == pytest.approx(1 / 2)  # 1/(N·|w|·|λ|) of two models
    (found,) = told(write(tmp_path, recipe(sound, parameters={**closed, "wrap": "ties"})))
    assert found["totals"]["read"] == 6 * size
    assert found["alpha"] is None
    last = found["containers"][0]["blocks"][-1]["coefficients"]
    assert last == [{"value": pytest.approx(0.3), "plus_alpha": True}]


def test_adapter(sound: Models, tmp_path: Path) -> None:
    """BASE+ADAPTER takes no room on disk, and is read over its base, which is read once."""
    size = sum(tensor.nbytes for tensor in make.read(sound.base).values())
    small = (sound.adapter / "adapter_model.safetensors").stat().st_size
    (found,) = told(write(tmp_path, with_adapter(lambda path: None)(tmp_path, sound)))
    assert found["totals"]["disk"] == size
    assert [model["read"] for model in found["inputs"]] == [size, small, size]


def test_adapter_that_peft_merges(sound: Models, tmp_path: Path) -> None:
    """An adapter that cannot be read over its base takes room for a merged copy, read again."""

    def other_kind(path: Path) -> None:
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))

    size = sum(tensor.nbytes for tensor in make.read(sound.base).values())
    small = (sound.adapter / "adapter_model.safetensors").stat().st_size
    (found,) = told(write(tmp_path, with_adapter(other_kind)(tmp_path, sound)))
    assert found["totals"]["disk"] == 2 * size
    assert [model["read"] for model in found["inputs"]] == [size, 2 * size + small, size]


def test_pickled_checkpoint(sound: Models, tmp_path: Path) -> None:
    """A pickled checkpoint has no headers: its sizes are told from its config."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(make.read(sound.a), pickled / "pytorch_model.bin")
    (pickled / "config.json").write_bytes((sound.a / "config.json").read_bytes())
    (found,) = told(write(tmp_path, recipe(sound, models=[{"model": pickled}])))
    size = sum(tensor.nbytes for tensor in make.read(sound.a).values())
    assert [model["checkpoint"] for model in found["inputs"]] == [size, size]


def test_few_names_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What mergekit can fuse of an old layout is asked block by block: an index is long.

    An expert that is missing in one block is found all the same.
    """
    asked: list[int] = []

    def counting(kind: str, names: set[str], name: str) -> bool:
        asked.append(len(names))
        return bool(can_convert_checkpoint_keys(kind, names, name))

    monkeypatch.setattr(renames, "can_convert_checkpoint_keys", counting)
    config = shaped.MIXTRAL_8X7B | {"hidden_size": 64, "intermediate_size": 16, "vocab_size": 32}
    shapes = shaped.Published(config, "BF16", 0, 0, 0).shapes
    base = shaped.write(tmp_path / "base", config, shapes)
    tuned = shaped.write(tmp_path / "tuned", config, shapes)
    document = {
        "merge_method": "lines_postprocess",
        "base_model": base,
        "models": [{"model": tuned}],
        "parameters": {"gamma": 0.25},
    }
    told(write(tmp_path, document))
    assert asked
    assert max(asked) <= 8 * 3 + 7  # of a block
    del shapes["model.layers.7.block_sparse_moe.experts.3.w1.weight"]
    broken = shaped.write(tmp_path / "broken", config, shapes)
    result = inspect(write(tmp_path, document | {"models": [{"model": broken}]}))
    assert result.exit_code == 1
    assert "lacks tensors" in result.stderr and "model.layers.7." in result.stderr


# --- memory ------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_memory_is_that_of_real_runs(tmp_path: Path) -> None:
    """The peak told is within 20% of the anonymous memory of ``mergekit-yaml`` at its peak.

    Of a wrap that wants whole tensors, of experts that mergekit fuses where a recipe has slices,
    and of a pickled model:
    the merge's own part is large each time.
    """
    small = {"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 8}
    dense = shaped.LLAMA_7B | small | {"hidden_size": 768, "intermediate_size": 2048}
    dense |= {"vocab_size": 48000}
    experts = shaped.MIXTRAL_8X7B | small | {"hidden_size": 1024, "intermediate_size": 3584}
    folders = {
        name: shaped.write(tmp_path / name, config, shaped.Published(config, "", 0, 0, 0).shapes, d)
        for name, config, d in [
            ("base", dense, "BF16"),
            ("tuned", dense, "BF16"),
            ("experts", experts, "BF16"),
            ("more-experts", experts, "BF16"),
            ("other-experts", experts, "BF16"),
            ("wide", dense, "F32"),
            ("wide-tuned", dense, "F32"),
        ]
    }
    pickled = folders["wide-tuned"]
    torch.save(make.read(pickled), pickled / "pytorch_model.bin")
    for file in (*pickled.glob("*.safetensors"), pickled / make.INDEX):
        file.unlink()
    alone = {"alpha": 0.3, "beta": 0.3}
    runs = {
        "whole": (["base", "tuned"], alone | {"wrap": "linear"}),
        "fused": (["experts", "more-experts", "other-experts"], alone),
        "pickled": (["wide", "wide-tuned"], alone),
    }
    documents = [
        {
            "name": f"step-{name}",
            "merge_method": "lines",
            "base_model": folders[base],
            "models": [{"model": folders[other]} for other in others],
            "parameters": parameters,
        }
        for name, ((base, *others), parameters) in runs.items()
    ]
    sources = [{"model": entry["model"], "layer_range": [0, 1]} for entry in documents[1]["models"]]
    sources.insert(0, {"model": documents[1]["base_model"], "layer_range": [0, 1]})
    documents[1] = {k: v for k, v in documents[1].items() if k != "models"}
    documents[1]["slices"] = [{"sources": sources}]
    path = write(tmp_path, *documents)
    command = ["mergekit-lines", "inspect", path, "--json"]
    inspected = json.loads(runner.run(command, tmp_path).succeeded().stdout)["documents"]
    for document, found in zip(documents, inspected, strict=True):
        single = write(tmp_path, {key: document[key] for key in document if key != "name"})
        peak = peak_of(["mergekit-yaml", single.name, document["name"]], tmp_path)
        memory = found["totals"]["memory"]
        assert memory["total"] == pytest.approx(peak, rel=0.2), document["name"]
        assert 2 * memory["tensor"] > memory["process"], document["name"]


def peak_of(command: list[str], cwd: Path) -> int:
    """Run a command and return the most anonymous memory that it had."""
    command[0] = str(runner.BIN / command[0])
    peak = 0
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=runner.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            text = status.read_text().partition("RssAnon:")[2]
            peak = max(peak, int((text.split() or ["0"])[0]) * 1024)
            time.sleep(0.003)
    assert process.returncode == 0
    return peak
