"""``mergekit-lines inspect``: what it tells is what the recipe says and what the files hold.

Sizes are counted by hand (:mod:`tests.shaped`) or from the tensors themselves; coefficients are
those of the recipes' own table (:mod:`tests.test_recipes`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from mergekit.architecture.conversion import can_convert_checkpoint_keys

import mergekit_lines
from mergekit_lines.cli import main
from mergekit_lines.inspection import plot, tables
from mergekit_lines.inspection.findings import Block, Coefficient, Container, Inspection, Outside
from mergekit_lines.plan import fit
from tests import models as make
from tests import shaped
from tests.cases.case import Models
from tests.cases.checkpoints import with_adapter
from tests.cases.recipes import recipe
from tests.e2e import runner
from tests.hub import Hub
from tests.test_recipes import (  # the fixtures are asked for by name
    BLOCKS,
    FILES,
    RECIPES,
    TABLE,
    Places,
    documents,
    edited,
    folders,
    places,
)

__all__ = ["folders", "places"]


@pytest.fixture(scope="module")
def sound(llama_base: Path, llama_a: Path, llama_b: Path, adapter: Path) -> Models:
    """The session's checkpoints."""
    return Models(llama_base, llama_a, llama_b, adapter)


def inspect(path: Path, *flags: str) -> Result:
    """Run the command in this process; its stdout is no terminal."""
    return CliRunner().invoke(main, ["inspect", str(path), *flags])


def write(folder: Path, *recipes: runner.Recipe) -> Path:
    path = folder / "recipe.yml"
    path.write_text("---\n".join(map(runner.recipe_text, recipes)), encoding="utf-8")
    return path


def told(path: Path, *flags: str) -> list[dict[str, Any]]:
    """Return the documents of ``--json``; nothing else is on stdout, and the status is 0."""
    result = inspect(path, "--json", *flags)
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["documents"]
    return found


# --- every recipe ------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
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
        x = place / (BLOCKS - 1)
        assert coefficient["value"] == pytest.approx(
            expected.first + (expected.last - expected.first) * x
        )
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


@pytest.mark.parametrize("file", [name for name in FILES if len(documents(name)) > 1])
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
    assert time.process_time() - begun < 3  # seconds of computing; imports were before
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

    monkeypatch.setattr(fit, "can_convert_checkpoint_keys", counting)
    config = shaped.MIXTRAL_8X7B | {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 32}
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

    Of a wrap that wants whole tensors, of experts that mergekit fuses, and of a pickled model:
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


# --- what is shown -----------------------------------------------------------------------

DOCUMENT = {
    "name": None,
    "merge_method": "lines",
    "wraps": ["task_arithmetic"],
    "seed": 0,
    "alpha": 0.3,
    "alpha_source": "the recipe",
    "notes": [],
    "problems": [],
}
BLOCK = {"index", "coefficients", "tensors", "parameters", "bytes"}
INPUT = {"model", "checkpoint", "download", "merge", "calibration", "adapter", "copy", "read"}
TOTALS = {"tensors", "parameters", "output", "read", "download", "disk", "memory"}
MEMORY = {"process", "tensor", "loaded", "total", "device"}


def test_json_keeps_its_form(sound: Models, tmp_path: Path) -> None:
    """The JSON object has these keys and no others: programs rely on them; see FORMAT."""
    result = inspect(write(tmp_path, recipe(sound)), "--json")
    content = json.loads(result.stdout)
    (document,) = content.pop("documents")
    assert content == {
        "format": 1,
        "mergekit_lines": mergekit_lines.__version__,
        "recipe": str(tmp_path / "recipe.yml"),
    }
    lists = {key: document.pop(key) for key in ("containers", "outside", "inputs", "totals")}
    assert document == DOCUMENT
    (container,) = lists["containers"]
    assert set(container) == {"name", "blocks"}
    assert all(set(block) == BLOCK for block in container["blocks"])
    assert all(set(value) == {"value", "plus_alpha"} for value in block_values(container))
    assert all(
        set(tensor) == {"name", "coefficient", "parameters", "bytes"} for tensor in lists["outside"]
    )
    assert all(set(model) == INPUT for model in lists["inputs"])
    assert set(lists["totals"]) == TOTALS
    assert set(lists["totals"]["memory"]) == MEMORY


def block_values(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for block in container["blocks"] for value in block["coefficients"]]


def test_json_stays_json_where_the_recipe_is_refused(sound: Models, tmp_path: Path) -> None:
    """With problems stdout holds the object all the same, the message is on stderr, status 1."""
    path = write(tmp_path, recipe(sound, dtpye="float32", parameters={"beat": 0.3}))
    result = inspect(path, "--json")
    assert result.exit_code == 1
    (document,) = json.loads(result.stdout)["documents"]
    assert len(document["problems"]) == 2
    assert result.stderr.startswith("Error: [lines] 2 problems")
    # The blocks and their sizes do not hang on the parameters.
    assert len(document["containers"][0]["blocks"]) == BLOCKS
    assert not block_values(document["containers"][0])


def test_a_pipe_gets_whole_lines(sound: Models, tmp_path: Path) -> None:
    """In a pipe no name is cut or folded however long, and there is no escape sequence."""
    long = tmp_path / ("a-model-with-a-long-name-" * 8)
    make.finetuned(sound.base, long, seed=7)
    result = inspect(write(tmp_path, recipe(sound, models=[{"model": long}])))
    assert result.exit_code == 0, result.stderr
    assert any(line.startswith(str(long)) for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout and "…" not in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    for index, value in enumerate(("0.3", "0.4", "0.5", "0.6"), 1):
        assert [str(index), value, "9", "9,280", "37,120"] in rows


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("plain", [True, False])
def test_a_terminal(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal folds long names and no number; NO_COLOR leaves all escapes out."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    name = "a_tensor_with_a_name_" * 5
    outside = (Outside(name, Coefficient(0.3), 10**10, 2 * 10**10),)
    tables.show([Inspection(None, "lines", outside=outside)], "recipe.yml")
    text = terminal.getvalue()
    assert ("\x1b" not in text) == plain
    numbers = ["0.3", "1", "10,000,000,000", "20,000,000,000"]
    assert any(line.split()[1:] == numbers for line in text.splitlines())
    assert name in "".join(line.split(" ")[0] for line in text.splitlines())


def test_an_encoding_without_greek(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdout cannot write a letter, as on Windows in a pipe, its name is written."""
    written = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(written, encoding="ascii", write_through=True))
    tables.show([Inspection("two", "lines", alpha=0.5, alpha_source="é")], "recipe.yml")
    assert written.getvalue().splitlines()[:3] == [
        b"recipe.yml - two",
        b"merge_method lines, seed 0",
        b"alpha = 0.5: ?",
    ]


def test_several_coefficients_in_a_block(sound: Models, tmp_path: Path) -> None:
    """Where filters give a block several coefficients, all of them are shown."""
    beta = [{"filter": "mlp", "value": 0.9}, {"value": 0.3}]
    (found,) = told(write(tmp_path, recipe(sound, parameters={"alpha": 0.3, "beta": beta})))
    last = found["containers"][0]["blocks"][-1]
    assert [value["value"] for value in last["coefficients"]] == pytest.approx([0.6, 1.2])


def test_another_method(sound: Models, tmp_path: Path) -> None:
    """A recipe of mergekit's own has nothing to show: status 1, and how to make it one of ours."""
    result = inspect(write(tmp_path, recipe(sound, merge_method="ties", parameters={})))
    assert result.exit_code == 1
    assert "ties" in result.stderr and "wrap: ties" in result.stderr
    assert result.stdout == ""


def test_document_named_as_the_wrap(sound: Models, tmp_path: Path) -> None:
    """What mergekit-multi would put in the place of a wrap's name is told."""
    first = {"name": "ties", **recipe(sound)}
    second = recipe(
        sound,
        models=[{"model": "ties"}],
        parameters={"wrap": "ties", "alpha": 0.3, "beta": 0.3},
    )
    result = inspect(write(tmp_path, first, second))
    assert result.exit_code == 1
    assert all(word in result.stderr for word in ("wrap", "ties", "document"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "recipe"),
        ("- 1", "recipe"),
        ("merge_method: [", "recipe"),
        ("merge_method: lines\nmodels: 3", "models: Input should be a valid list."),
        ("some words", "found 'some words', wanted a recipe"),
        ("a: 1\n---\nwords", "found 'words', wanted a recipe"),
    ],
)
def test_no_recipe(text: str, wanted: str, tmp_path: Path) -> None:
    """A file that mergekit cannot read as a recipe is one sentence and status 1."""
    path = tmp_path / "bad.yml"
    path.write_text(text)
    result = inspect(path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: [lines] {path}") and wanted in result.stderr


@pytest.mark.parametrize(
    "flags",
    [("absent.yml",), (), ("RECIPE", "--plot", "a.pdf"), ("RECIPE", "--out-shard-size", "x")],
)
def test_usage(flags: tuple[str, ...], sound: Models, tmp_path: Path) -> None:
    """Wrong usage ends with status 2."""
    path = str(write(tmp_path, recipe(sound)))
    words = [path if flag == "RECIPE" else flag for flag in flags]
    assert CliRunner().invoke(main, ["inspect", *words]).exit_code == 2


def test_disk_that_is_too_small(
    sound: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --out a disk that lacks the room is a problem, in the words of the merge."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "new" / "out"
    path = write(tmp_path, recipe(sound))
    result = inspect(path, "--out", str(out))
    with pytest.raises(mergekit_lines.LinesError, match="which has 1,000 free") as refused:
        mergekit_lines.merge(path, out, quiet=True)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {refused.value.format_message()}\n"
    assert not (tmp_path / "new").exists()
    told(path)


# --- the picture -------------------------------------------------------------------------


def container(name: str, *values: Coefficient) -> Container:
    return Container(name, tuple(Block(n, (v,), 1, 1, 1) for n, v in enumerate(values, 1)))


def test_plot(sound: Models, tmp_path: Path) -> None:
    """--plot writes a PNG of the recipe's coefficients."""
    picture = tmp_path / "picture.png"
    result = inspect(write(tmp_path, recipe(sound)), "--plot", str(picture))
    assert result.exit_code == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_plot_draws_every_coefficient() -> None:
    """Each container is a line of its coefficients, each coefficient outside a mark."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    outside = (
        Outside("head", Coefficient(0.3), 1, 1),
        Outside("norm", Coefficient(0.3), 1, 1),
        Outside("embed", Coefficient(1.0), 1, 1),
    )
    containers = (
        container("encoder.block", Coefficient(0.3), Coefficient(0.4)),
        container("decoder.block", Coefficient(0.3), Coefficient(0.5), Coefficient(0.7)),
    )
    plot._panel(axes, Inspection(None, "lines", containers=containers, outside=outside))
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines["encoder.block"] == [0.3, 0.4]
    assert lines["decoder.block"] == [0.3, 0.5, 0.7]
    marks = [list(line.get_ydata()) for line in axes.get_lines() if line.get_marker() == "X"]
    assert marks == [[0.3], [1.0]]
    assert {"outside: λ = 0.3 (2 tensors)", "outside: λ = 1 (1 tensor)"} <= set(lines)


def test_plot_of_what_lies_on_itself() -> None:
    """Of two like towers the one below shows; a constant has some room; the last block a number."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    towers = [container(name, *[Coefficient(0.5)] * 30) for name in ("text", "vision")]
    plot._panel(axes, Inspection(None, "lines", containers=tuple(towers)))
    above, below = (line for line in axes.get_lines() if line.get_label() in ("text", "vision"))
    assert below.get_zorder() < above.get_zorder()
    assert below.get_linewidth() > above.get_linewidth() + 1
    assert below.get_markersize() > above.get_markersize() + 1
    low, high = axes.get_ylim()
    assert (low, high) == pytest.approx((0.4, 0.6))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["1", "4", "8", "12", "16", "20", "24", "30"]


ALPHA = Coefficient(0.0, plus_alpha=True)


@pytest.mark.parametrize(
    ("inside", "outside", "drawn", "named"),
    [
        ((ALPHA, Coefficient(0.3)), Coefficient(0.5), [0.0], {"λ = 0.3 too", "λ = 0.5 (1 tensor)"}),
        ((Coefficient(0.3), Coefficient(0.6)), ALPHA, [0.3, 0.6], {"λ = α (1 tensor)"}),
    ],
)
def test_plot_mixes_no_axes(
    inside: tuple[Coefficient, ...], outside: Coefficient, drawn: list[float], named: set[str]
) -> None:
    """λ and λ − α do not share an axis: where filters give both, one of them is only named."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    containers = (Container("layers", (Block(1, inside, 1, 1, 1),)),)
    told = Inspection(None, "lines", containers=containers, outside=(Outside("o", outside, 1, 1),))
    plot._panel(axes, told)
    assert [y for line in axes.get_lines() for y in line.get_ydata()] == drawn
    labels = {line.get_label().partition(": ")[2] for line in axes.get_lines()}
    assert labels == {"", *named}
    assert axes.get_ylabel().startswith("λ − α" if inside[0].plus_alpha else "coefficient λ")


def test_plot_of_odd_models(tmp_path: Path) -> None:
    """No blocks, thousands of them, odd names and many marks are drawn."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    outside = tuple(Outside(f"t{n}", Coefficient(n / 10), 1, 1) for n in range(12))
    plot._panel(axes, Inspection(None, "lines", outside=outside))
    assert axes.get_xlabel() == "no residual blocks were found"
    (marks,) = axes.get_lines()
    assert list(marks.get_ydata()) == [tensor.coefficient.value for tensor in outside]
    assert marks.get_label() == "outside: λ = 0 to 1.1 (12 tensors)"
    names = ("_orig_mod.layers", "$\\frac$.blocks")
    towers = tuple(container(name, *[Coefficient(0.5)] * 1300) for name in names)
    told = Inspection("$a", "lines", wraps=("$b",), containers=towers)
    plot.draw([told], tmp_path / "odd.png")
    assert (tmp_path / "odd.png").read_bytes().startswith(b"\x89PNG")
    axes = Figure().subplots()
    plot._panel(axes, told)
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == list(names)


def test_plot_without_matplotlib(
    sound: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the extra is named, after the tables."""
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    result = inspect(write(tmp_path, recipe(sound)), "--plot", str(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert "mergekit-lines[plot]" in result.stderr
    assert "model.layers" in result.stdout


# --- the Hub -----------------------------------------------------------------------------


def test_hub(tmp_path: Path) -> None:
    """Of models on the Hub only configs, indexes and the heads of the shards are fetched."""
    published = shaped.LLAMA
    for name in ("base", "tuned"):
        folder = shaped.write(
            tmp_path / name, published.config, published.shapes, "F16", 5_000_000_000
        )
        make.save_tokenizer(folder)
    document = {
        "merge_method": "lines_postprocess",
        "base_model": "org/base",
        "models": [{"model": "org/tuned"}],
        "parameters": {"gamma": 0.3},
    }
    path = write(tmp_path, document)
    with Hub({"org/base": tmp_path / "base", "org/tuned": tmp_path / "tuned"}) as hub:
        result = runner.run(
            ["mergekit-lines", "inspect", path, "--json"],
            tmp_path,
            hub.environment(tmp_path / "home"),
        )
    found = json.loads(result.succeeded().stdout)["documents"][0]
    assert found["totals"]["parameters"] == published.parameters
    assert found["totals"]["download"] == 4 * published.parameters
    shards = {file: sent for file, sent in hub.sent.items() if file.endswith(".safetensors")}
    assert len(shards) == 2 * 3
    assert max(shards.values()) <= 100_001  # of 5 GB; what huggingface_hub asks for first
    assert not [
        line
        for line in hub.requests
        if "safetensors" in line and "GET" in line and "index" not in line and "bytes=" not in line
    ]
    assert sum(hub.sent.values()) < 1_000_000


@pytest.mark.parametrize(
    ("model", "gated", "wanted"),
    [
        ("org/closed", ("org/closed",), ("org/closed", "hf auth login")),
        ("org/none", (), ("org/none", "no such")),
        ("org/tuned@nowhere", (), ("org/tuned@nowhere", "revision")),
        ("org/empty", (), ("org/empty", "no model.safetensors", "Check the name")),
        ("org/outside", (), ("org/outside", "outside", "Do not use")),
        ("org/cut", (), ("org/cut", "headers", "Check")),
    ],
)
def test_hub_refusals(
    model: str,
    gated: tuple[str, ...],
    wanted: tuple[str, ...],
    tmp_path: Path,
    llama_a: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that the Hub does not give is told with the cause and what to do."""
    from huggingface_hub import constants

    from mergekit_lines.checkpoint.remote.headers import remote_headers

    for name in ("closed", "tuned", "outside", "empty", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\x00" * 4)
    index = {"weight_map": {"a": "../x.safetensors"}}
    (tmp_path / "outside" / make.INDEX).write_text(json.dumps(index))
    for name in ("closed", "tuned"):
        weights = (llama_a / "model.safetensors").read_bytes()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    names = {f"org/{path.name}": path for path in tmp_path.iterdir()}
    with Hub(names, gated) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        repo, _, revision = model.partition("@")
        found = remote_headers(repo, revision or None, str(tmp_path / "cache"))
    (problem,) = found.problems
    assert all(phrase in problem for phrase in wanted), problem
