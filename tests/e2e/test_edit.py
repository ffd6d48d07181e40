"""``mergekit-lines edit``: the recipe it prints, to the byte; and single files by the formula.

The oracle for folders is ``mergekit-yaml`` on the printed recipe; for single files the paper's
Eq. 1 in float64 with coefficients written out by hand, and safetensors' own writer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import yaml
from click.testing import CliRunner, Result
from filelock import FileLock, Timeout

from mergekit_lines.checkpoint import out as out_module
from mergekit_lines.checkpoint import partial, room, writer
from mergekit_lines.cli import main
from tests import models
from tests.e2e import runner
from tests.models import Tensors


def edit(*words: object) -> Result:
    """Run ``mergekit-lines edit`` in this process."""
    result = CliRunner().invoke(main, ["edit", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- the recipe ----------------------------------------------------------------------------


def test_print_recipe_prints_what_was_given_and_does_nothing_else(tmp_path: Path) -> None:
    """The recipe has its usual order and only what was given; torch is not imported."""
    words = ["chat", "--base", "meta/llama", "--gamma", "0", "--print-recipe"]
    env = {"PYTHONPROFILEIMPORTTIME": "1"}
    done = runner.run(["mergekit-lines", "edit", *words], tmp_path, env).succeeded()
    assert done.stdout == (
        "merge_method: lines_postprocess\n"
        "base_model: meta/llama\n"
        "models:\n"
        "  - model: chat\n"
        "parameters:\n"
        "  gamma: 0\n"
    )
    assert " torch\n" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_print_recipe_with_every_word() -> None:
    """Every option that a recipe can hold is in it, numbers as numbers."""
    words = "--dtype bfloat16 --beta 7e-1 --schedule 0.5 --blocks decoder.block --num-blocks 12"
    more = "--outside alpha --allow-nonfinite --alpha 0.3 --out-dtype float32 --print-recipe"
    result = edit("base+adapter", "--base", "a base", *words.split(), *more.split())
    assert result.output == (
        "merge_method: lines_postprocess\n"
        "base_model: a base\n"
        "models:\n"
        "  - model: base+adapter\n"
        "parameters:\n"
        "  alpha: 0.3\n"
        "  beta: 0.7\n"
        "  schedule: 0.5\n"
        "  outside: alpha\n"
        "  blocks: decoder.block\n"
        "  num_blocks: 12\n"
        "  allow_nonfinite: true\n"
        "dtype: bfloat16\n"
        "out_dtype: float32\n"
    )
    assert yaml.safe_load(result.output)["parameters"]["num_blocks"] == 12


def test_edit_is_the_printed_recipe_to_the_byte(
    llama_base: Path, llama_a: Path, server: runner.ForkServer, tmp_path: Path
) -> None:
    """With autoload off, edit writes every file as mergekit-yaml does with it on."""
    words = [llama_a, "--base", llama_base, "--gamma", "0.3", "--schedule", "sqrt"]
    (tmp_path / "yaml").mkdir()
    (tmp_path / "edit").mkdir()
    text = edit(*words, "--print-recipe").output
    runner.mergekit_yaml(text, "out", cwd=tmp_path / "yaml", server=server).succeeded()
    off = {"MERGEKIT_LINES_AUTOLOAD": "0"}
    command = ["mergekit-lines", "edit", *words, "--out", "out"]
    runner.run(command, tmp_path / "edit", off).succeeded()
    got, want = (models.digest(tmp_path / name / "out") for name in ("edit", "yaml"))
    assert got == want
    assert {"model.safetensors", "README.md", "lines_report.json", "tokenizer.json"} <= set(got)


@pytest.mark.parametrize(
    ("model", "flags", "options"),
    [
        ("adapter", "--gamma 0.5", {}),
        ("full", "--alpha 0.2 --beta 0.5 --outside 1 --out-dtype bfloat16", {}),
        ("full", "--gamma 0.5 --blocks model.layers --dtype float16", {"out_shard_size": 50_000}),
    ],
)
def test_adapters_words_dtypes_and_shards(
    model: str,
    flags: str,
    options: dict[str, Any],
    llama_base: Path,
    llama_a: Path,
    adapter: Path,
    tmp_path: Path,
) -> None:
    """``base+adapter``, other words, dtypes and shards give the recipe's bytes too."""
    source = f"{llama_base}+{adapter}" if model == "adapter" else llama_a
    words = [source, "--base", llama_base, *flags.split()]
    text = edit(*words, "--print-recipe").output
    runner.in_process(text, tmp_path / "yaml" / "out", **options)
    more = ["--out-shard-size", "50k"] if options else []
    result = edit(*words, "--out", tmp_path / "edit" / "out", "--quiet", *more)
    assert (result.exit_code, result.output) == (0, "")
    assert models.digest(tmp_path / "edit" / "out") == models.digest(tmp_path / "yaml" / "out")


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--out o", "Found none of them, wanted --gamma alone or --alpha and --beta both"),
        ("--out o --gamma 1 --beta 1", "Found --gamma, --beta, wanted --gamma alone"),
        ("--out o --alpha 1", "Found --alpha, wanted --gamma alone"),
        ("--gamma 1", "Missing option '--out'"),
        ("--gamma 1 --out o --out-shard-size big", "found 'big', wanted a size such as 500M"),
        ("--gamma 1 --out o --num-block 3", "No such option"),
        ("--gamma 1 --out=", "Found an empty MODEL, --base or --out, wanted a path or Hub id"),
    ],
)
def test_wrong_usage(words: str, text: str) -> None:
    """What the command line itself lacks or doubles is exit status 2."""
    result = edit("m", "--base", "b", *words.split())
    assert result.exit_code == 2
    assert text in result.output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--gamma nan", "parameters.gamma: found nan, wanted a finite number."),
        ("--gamma much", "parameters.gamma: found 'much', wanted a finite number."),
        ("--alpha auto --beta 1", "lines_postprocess sees one model"),
        ("--gamma 1 --schedule qadratic", "Did you mean 'quadratic'?"),
        ("--gamma 1 --num-blocks 2.5", "parameters.num_blocks: found 2.5"),
        ("--gamma 1 --out-dtype fp8", "out_dtype: found 'fp8'"),
        ("--gamma 1 --device nowhere", "--device nowhere"),
    ],
)
def test_words_are_refused_as_in_a_recipe(
    words: str, text: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """A wrong word is the recipe's own error, with exit status 1; nothing is written."""
    result = edit(llama_a, "--base", llama_base, "--out", tmp_path / "out", *words.split())
    assert result.exit_code == 1
    assert result.output.startswith("Error: [lines] ")
    assert text in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_named(llama_base: Path, tmp_path: Path) -> None:
    """Two plus signs, a missing folder and a missing file end in one sentence each."""
    for model, text in (
        ("a+b+c", "MODEL or --base is not a model's name"),
        ("/nowhere/chat", "there is no such folder"),
        ("/nowhere/chat.safetensors", "/nowhere/chat.safetensors: there is no such file."),
    ):
        result = edit(model, "--base", llama_base, "--gamma", "1", "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert result.output.startswith("Error: [lines] ")
        assert text in result.output


# --- single files --------------------------------------------------------------------------


def convnext() -> dict[str, tuple[tuple[int, ...], float]]:
    """Return timm's ConvNeXt names with shapes, and λ for gamma 0.4, by hand."""
    # 2 + 1 + 3 blocks: 0.4 + 0.6·n/5. A downsampler goes with the block that follows it.
    by_block = {
        "stages.0.blocks.0": 0.4,
        "stages.0.blocks.1": 0.52,
        "stages.1.downsample": 0.64,
        "stages.1.blocks.0": 0.64,
        "stages.2.downsample": 0.76,
        "stages.2.blocks.0": 0.76,
        "stages.2.blocks.1": 0.88,
        "stages.2.blocks.2": 1.0,
    }
    made = {"stem.0.weight": ((8, 3, 4, 4), 0.4), "stem.0.bias": ((8,), 0.4)}
    for place, coefficient in by_block.items():
        if place.endswith("downsample"):
            made[f"{place}.0.weight"] = ((8,), coefficient)
            made[f"{place}.1.weight"] = ((8, 8, 2, 2), coefficient)
            continue
        made[f"{place}.gamma"] = ((8,), coefficient)
        made[f"{place}.conv_dw.weight"] = ((8, 1, 7, 7), coefficient)
        made[f"{place}.norm.weight"] = ((8,), coefficient)
        made[f"{place}.mlp.fc1.weight"] = ((32, 8), coefficient)
        made[f"{place}.mlp.fc2.weight"] = ((8, 32), coefficient)
    made["head.norm.weight"] = ((8,), 0.4)
    made["head.fc.weight"] = ((10, 8), 0.4)
    return made


def open_clip() -> dict[str, tuple[tuple[int, ...], float]]:
    """Return open_clip's names with shapes, and λ for gamma 0.4, by hand, in each tower."""
    made: dict[str, tuple[tuple[int, ...], float]] = {}
    towers = {"visual.transformer": (0.4, 0.6, 0.8, 1.0), "transformer": (0.4, 0.7, 1.0)}
    for tower, coefficients in towers.items():
        for number, coefficient in enumerate(coefficients):
            place = f"{tower}.resblocks.{number}"
            made[f"{place}.ln_1.weight"] = ((8,), coefficient)
            made[f"{place}.attn.in_proj_weight"] = ((24, 8), coefficient)
            made[f"{place}.attn.in_proj_bias"] = ((24,), coefficient)
            made[f"{place}.attn.out_proj.weight"] = ((8, 8), coefficient)
            made[f"{place}.ln_2.weight"] = ((8,), coefficient)
            made[f"{place}.mlp.c_fc.weight"] = ((32, 8), coefficient)
            made[f"{place}.mlp.c_proj.weight"] = ((8, 32), coefficient)
    outside: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (8,),
        "visual.conv1.weight": (8, 3, 4, 4),
        "visual.proj": (8, 8),
        "token_embedding.weight": (50, 8),
        "text_projection": (8, 8),
        "logit_scale": (),
    }
    return made | {name: (shape, 0.4) for name, shape in outside.items()}


LAYOUTS = {"convnext": convnext, "open_clip": open_clip}


def pair(
    folder: Path, layout: str = "convnext", dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[Path, Path, Tensors, Tensors]:
    """Write a base and a fine-tuned file; return both, with their tensors."""
    base, tuned = {}, {}
    for number, (name, (shape, _)) in enumerate(LAYOUTS[layout]().items()):
        generator = torch.Generator().manual_seed(number)
        base[name] = torch.randn(shape, generator=generator).to(dtype)
        tuned[name] = (base[name] + 0.1 * torch.randn(shape, generator=generator)).to(dtype)
    for name, tensor in changes.get("both", {}).items():
        base[name], tuned[name] = tensor, tensor.clone()
    tuned |= changes.get("tuned", {})
    folder.mkdir(exist_ok=True)
    files = folder / "tuned.safetensors", folder / "base.safetensors"
    safetensors.torch.save_file(tuned, files[0], metadata={"origin": "timm é"})
    safetensors.torch.save_file(base, files[1])
    return *files, tuned, base


def load(file: Path) -> Tensors:
    tensors: Tensors = safetensors.torch.load(file.read_bytes())
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_single_file_follows_the_formula(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every tensor is θ_0 + λ·(θ − θ_0) with the λ written by hand, rounded once."""
    model, base, tuned, zero = pair(tmp_path, layout, dtype)
    out = tmp_path / "new" / "out.safetensors"
    result = edit(model, "--base", base, "--out", out, "--gamma", "0.4", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    got = load(out)
    assert set(got) == set(zero)
    unit = {torch.float32: 2e-7, torch.float64: 1e-15, torch.bfloat16: 2**-8}[dtype]
    for name, (_, coefficient) in LAYOUTS[layout]().items():
        exact = zero[name].double() + coefficient * (tuned[name].double() - zero[name].double())
        assert got[name].dtype == dtype
        error = (got[name].double() - exact).abs().max()
        assert error <= unit * max(exact.abs().max(), zero[name].double().abs().max()), name
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "out.lines_report.json",
        "out.safetensors",
    ]


def test_a_single_file_is_written_as_safetensors_writes(tmp_path: Path) -> None:
    """The file has MODEL's metadata and the bytes that safetensors writes for these tensors."""
    buffers = {
        "head.steps": torch.arange(3),
        "head.mask": torch.tensor([True, False, True]),
        "head.small": torch.tensor([1, -2], dtype=torch.int8),
        "head.none": torch.zeros(0, 4),
        "head.half": torch.ones(3, dtype=torch.float16),
        "head.wide": torch.ones(3, dtype=torch.float64),
    }
    model, base, tuned, _ = pair(tmp_path, both=buffers)
    out = tmp_path / "out.safetensors"
    assert edit(model, "--base", base, "--out", out, "--gamma", "0.4").exit_code == 0
    got = load(out)
    assert all(got[name].equal(tuned[name]) for name in buffers)
    with safetensors.safe_open(out, framework="pt") as file:
        assert file.metadata() == {"origin": "timm é"}
    assert out.read_bytes() == safetensors.torch.save(got, {"origin": "timm é"})


def test_a_single_file_equals_the_same_tensors_in_a_folder(
    llama_bf16_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Mixed dtypes, schedules and rounding are those of a recipe, entry by entry."""
    flags = ["--alpha", "0.2", "--beta", "0.9", "--schedule", "quadratic", "--outside", "0.7"]
    for more in ([], ["--dtype", "float16"], ["--out-dtype", "bfloat16"]):
        name = "-".join(more) or "plain"
        text = edit(llama_a, "--base", llama_bf16_base, *flags, *more, "--print-recipe").output
        want = models.read(runner.in_process(text, tmp_path / name))
        sources = (path / "model.safetensors" for path in (llama_a, llama_bf16_base))
        model, base = sources
        out = tmp_path / f"{name}.safetensors"
        assert edit(model, "--base", base, "--out", out, *flags, *more).exit_code == 0
        got = load(out)
        assert set(got) == set(want)
        assert all(got[key].dtype == want[key].dtype for key in want)
        assert all(got[key].equal(want[key]) for key in want)


def test_folders_of_one_file_and_the_report(tmp_path: Path) -> None:
    """A folder of one file is that file; in a folder OUT it keeps its name, with a report."""
    model, base, *_ = pair(tmp_path / "files", "open_clip")
    for name, file in (("tuned", model), ("zero", base)):
        (tmp_path / name).mkdir()
        shutil.copy(file, tmp_path / name / "open_clip_model.safetensors")
        (tmp_path / name / "open_clip_config.json").write_text("{}")
    out = tmp_path / "out"
    result = edit(tmp_path / "tuned", "--base", tmp_path / "zero", "--out", out, "--gamma", "0.4")
    assert result.exit_code == 0
    assert "[lines] transformer.resblocks: 3 blocks, coefficient 0.4 to 1" in result.output
    assert "[lines] visual.transformer.resblocks: 4 blocks, coefficient 0.4 to 1" in result.output
    report = json.loads((out / "open_clip_model.lines_report.json").read_text(encoding="utf-8"))
    assert report["merge_method"] == "lines_postprocess"
    assert report["alpha"]["value"] == 0.4
    assert [entry["name"] for entry in report["containers"]] == [
        "transformer.resblocks",
        "visual.transformer.resblocks",
    ]
    assert report["containers"][0]["coefficients"] == pytest.approx([0.4, 0.7, 1.0])
    assert set(report["outside"]) == {k for k in open_clip() if "resblocks" not in k}
    assert report["recipe"].startswith("merge_method: lines_postprocess\nbase_model: ")
    assert load(out / "open_clip_model.safetensors").keys() == open_clip().keys()


NAME = "stages.0.blocks.1.norm.weight"


@pytest.mark.parametrize(
    ("changes", "flags", "texts"),
    [
        (
            {"tuned": {NAME: torch.full((8,), torch.nan)}},
            "",
            [f"tensor {NAME} of ", "tuned.safetensors: found NaN or infinity", "allow_nonfinite"],
        ),
        (
            {"tuned": {NAME: torch.full((8,), 1e5)}},
            "--dtype float16",
            [f"tensor {NAME} of ", "found values beyond the recipe's dtype torch.float16"],
        ),
        (
            {"tuned": {NAME: torch.full((8,), 1e6)}},
            "--out-dtype float16",
            [f"tensor {NAME}: the result does not fit the output dtype torch.float16"],
        ),
        (
            {"tuned": {NAME: torch.ones(9)}},
            "",
            [f"tensor {NAME}: the shapes of ", "differ ((8,) and (9,)), wanted the same"],
        ),
        (
            {"tuned": {"extra.weight": torch.ones(9)}},
            "",
            ["base.safetensors: lacks 1 tensors that ", "(extra.weight)"],
        ),
        (
            {"tuned": {NAME: torch.ones(8, dtype=torch.int64)}},
            "",
            [f"tensor {NAME}: ", "holds F32 and ", "holds I64, wanted the same kind"],
        ),
        (
            {"both": {"s": torch.arange(2)}, "tuned": {"s": torch.arange(1, 3)}},
            "",
            ["tensor s: found torch.int64 that differs between"],
        ),
        (
            {"tuned": {NAME: torch.ones(8).to(torch.float8_e4m3fn)}},
            "",
            ["tuned.safetensors: holds tensors of dtype F8_E4M3", NAME, "Convert the model first"],
        ),
        ({}, "--blocks stagse", ["blocks: no container is 'stagse'. Did you mean 'stages'?"]),
        ({}, "--out-shard-size 5B", ["--out-shard-size: ", "is one file"]),
        ({}, "--print-recipe", ["--print-recipe: ", "has no config.json"]),
        ({}, "--schedule qadratic", ["Did you mean 'quadratic'?"]),
        ({}, "--device nowhere", ["--device nowhere"]),
    ],
)
def test_single_files_are_refused_by_name(
    changes: dict[str, Any], flags: str, texts: list[str], tmp_path: Path
) -> None:
    """What is at fault is named, the exit status is 1, and nothing is left behind."""
    model, base, *_ = pair(tmp_path / "files", **changes)
    out = tmp_path / "new" / "deep" / "out.safetensors"
    result = edit(model, "--base", base, "--out", out, "--gamma", "0.5", *flags.split())
    assert result.exit_code == 1
    message = result.output[result.output.index("Error: ") :]
    assert message.startswith("Error: [lines] ")
    for text in texts:
        assert text in message
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_allow_nonfinite_carries_it_along(tmp_path: Path) -> None:
    """With --allow-nonfinite a NaN reaches the output, and only there."""
    model, base, *_ = pair(tmp_path, tuned={NAME: torch.full((8,), torch.nan)})
    out = tmp_path / "out.safetensors"
    words = [model, "--base", base, "--out", out, "--gamma", "0.5", "--allow-nonfinite"]
    assert edit(*words).exit_code == 0
    assert [name for name, tensor in load(out).items() if tensor.isnan().any()] == [NAME]


def test_places_that_are_refused(tmp_path: Path, llama_base: Path) -> None:
    """An OUT that exists, one file for both, a broken file, and a file beside a folder."""
    model, base, *_ = pair(tmp_path / "files")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(model.read_bytes()[:-10])
    before = models.digest(tmp_path)
    new = tmp_path / "new"
    for words, text in (
        ([model, "--base", base, "--out", base], "base.safetensors is there already"),
        ([model, "--base", base, "--out", model.parent], "tuned.safetensors is there already"),
        ([model, "--base", model, "--out", new], "found the same file for MODEL and --base"),
        ([broken, "--base", base, "--out", new], "broken.safetensors: not a whole safetensors"),
        ([model, "--base", llama_base, "--out", new], f"--base {llama_base}: found a folder with"),
        ([llama_base, "--base", base, "--out", new], f"MODEL {llama_base}: found a folder with a"),
        ([model, "--base", "absent", "--out", new], "--base absent: found no file or folder of"),
        ([model, "--base", tmp_path / "files", "--out", new], "found a folder with 2 safetensors"),
        ([model, "--base", base, "--out", broken / "x"], "is not a folder that can be written to"),
    ):
        result = edit(*words, "--gamma", "0.5")
        assert result.exit_code == 1
        assert result.output.startswith("Error: [lines] ")
        assert text in result.output
    assert models.digest(tmp_path) == before


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, at the start or later, and a second edit to one OUT: a sentence, no file."""
    model, base, *_ = pair(tmp_path / "files")
    words = [model, "--base", base, "--out", tmp_path / "out.safetensors", "--gamma", "0.5"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "bytes more on this disk, which has 1,000 free" in edit(*words).output
    monkeypatch.undo()
    with out_module.locked(tmp_path / ".out.safetensors.partial.lock", tmp_path):
        assert "another merge is writing to it right now" in edit(*words).output

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_run", full)
    result = edit(*words)
    assert result.exit_code == 1
    assert "the disk is full" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


ENDED = """
import os, signal, sys
from mergekit_lines.checkpoint.writer import TensorSink
from mergekit_lines.cli import main

TensorSink.write = lambda *_: os.kill(os.getpid(), int(sys.argv.pop(1)))
main(["edit", *sys.argv[2:], "--gamma", "0.5"])
"""


def ended(number: signal.Signals, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Edit, with a signal at the first byte that is written behind the header."""
    program = ENDED.replace("int(sys.argv.pop(1))", str(int(number)))
    return subprocess.run(
        [sys.executable, "-c", program, "", *words],
        env=runner.environment(),
        capture_output=True,
        text=True,
    )


def test_sigterm_ends_an_edit_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM ends an edit with the shell's status for it; no partial folder and no lock stay."""
    model, base, *_ = pair(tmp_path / "files")
    words = [str(model), "--base", str(base), "--out", str(tmp_path / "out.safetensors")]
    done = ended(signal.SIGTERM, words)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_what_a_killed_edit_left_is_cleared(tmp_path: Path) -> None:
    """An edit that SIGKILL ends leaves a hidden folder, which the next one to OUT removes."""
    model, base, *_ = pair(tmp_path / "files")
    words = [str(model), "--base", str(base), "--out", str(tmp_path / "out.safetensors")]
    assert ended(signal.SIGKILL, words).returncode == -signal.SIGKILL
    left = tmp_path / ".out.safetensors.partial"
    assert [path.name for path in left.iterdir() if path.suffix == ".writing"]
    assert edit(*words, "--gamma", "0.5").exit_code == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"files", "out.lines_report.json", "out.safetensors"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda file: os.truncate(file, file.stat().st_size // 2), "ends inside tensor"),
        (lambda file: os.utime(file), "changed while it was merged"),
        (lambda file: file.replace(file.with_name("moved")), "changed while it was merged"),
    ],
    ids=["cut", "touched", "moved"],
)
def test_an_input_that_changes_is_refused(
    change: Callable[[Path], object], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is cut, touched or moved while it is read is an error; nothing is left."""
    model, base, *_ = pair(tmp_path / "files")
    begin = partial.Partial.begin

    def begin_and_change(*arguments: Any) -> None:
        begin(*arguments)
        change(model)

    monkeypatch.setattr(partial.Partial, "begin", begin_and_change)
    result = edit(model, "--base", base, "--out", tmp_path / "out.safetensors", "--gamma", "0.5")
    assert result.exit_code == 1
    assert text in result.output
    assert "tuned.safetensors" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_nothing_of_others_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the partial folder's name, and an OUT that comes while we write, stay."""
    model, base, *_ = pair(tmp_path / "files")
    out = tmp_path / "out.safetensors"
    words = [model, "--base", base, "--out", out, "--gamma", "0.5"]
    (tmp_path / ".out.safetensors.partial").write_text("mine")
    assert "in the way of the partial folder and not ours" in edit(*words).output
    (tmp_path / ".out.safetensors.partial").unlink()
    publish = partial.Partial.publish_file

    def interfere(*arguments: Any) -> None:
        out.write_text("mine")
        publish(*arguments)

    monkeypatch.setattr(partial.Partial, "publish_file", interfere)
    result = edit(*words)
    assert result.exit_code == 1
    assert "out.safetensors is there already" in result.output
    assert out.read_text() == "mine"
    monkeypatch.undo()
    out.unlink()
    assert "found 1 of 1 shards" in edit(*words).output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"files", "out.lines_report.json", "out.safetensors"}


def test_an_edit_that_was_killed_between_its_last_renames_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report that was moved to its place already is known as ours by its digest."""
    model, base, *_ = pair(tmp_path / "files")
    out = tmp_path / "out.safetensors"
    words = [model, "--base", base, "--out", out, "--gamma", "0.5"]
    assert edit(*words).exit_code == 0
    whole = models.digest(tmp_path)
    for path in (out, tmp_path / "out.lines_report.json"):
        path.unlink()

    class Killed(BaseException):
        pass

    def killed(path: Path) -> None:
        if path == tmp_path:  # behind the report's rename, before the file's
            raise Killed

    monkeypatch.setattr(partial, "sync", killed)
    monkeypatch.setattr(partial, "_leave", lambda *_: None)
    with pytest.raises(Killed):
        edit(*words)
    monkeypatch.undo()
    assert (tmp_path / "out.lines_report.json").exists()
    assert edit(*words).exit_code == 0
    assert models.digest(tmp_path) == whole


def test_a_lock_that_its_holder_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the file may have been removed and made anew by another."""
    file = tmp_path / "lock"
    acquired: list[int] = []

    class Late(FileLock):
        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            taken = super().acquire(*args, **kwargs)
            acquired.append(file.stat().st_ino)
            if len(acquired) == 1:
                (tmp_path / "new").touch()
                (tmp_path / "new").replace(file)
            return taken

    monkeypatch.setattr(out_module, "FileLock", Late)
    with out_module.locked(file, tmp_path):
        assert len(acquired) == 2
        with pytest.raises(Timeout):
            FileLock(file, timeout=0).acquire()
    assert not file.exists()
