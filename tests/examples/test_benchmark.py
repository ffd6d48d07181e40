"""The benchmark prints what it measured, and both of its sides do the same work."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import click
import pytest
import torch
from safetensors import safe_open

from tests import models, shaped
from tests.e2e import runner

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("--billions", "0.0005", "--method", "ties", "--rounds", "1")
PLAIN = {"copy_tokenizer": False, "write_model_card": False}


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    raw: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run at the smallest size."""
    folder = tmp_path_factory.mktemp("benchmark")
    raw = folder / "raw.json"
    command = (sys.executable, EXAMPLES / "benchmark.py", *TINY, "--folder", folder, "--json", raw)
    ended = runner.run(command, folder, runner.ONE_THREAD).succeeded()
    return Told(folder, ended.stdout, json.loads(raw.read_text()))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``examples/benchmark.py`` as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield importlib.import_module("benchmark")
    for name in set(sys.modules) - before:
        if name == "benchmark" or name.startswith("_benchmark_"):
            del sys.modules[name]


def cells(text: str, part: str, row: str) -> list[str]:
    """The numbers of a row, from the table's part of that name on."""
    line = next(
        line for line in text.split(part, 1)[1].splitlines() if re.match(rf" +{row}  ", line)
    )
    return re.split(r"  +", line.strip())[1:]


def test_the_table_shows_the_raw_numbers(told: Told) -> None:
    """Every cell is the median of the raw numbers, every ratio that of two of them."""
    runs = {(run["mode"], run["side"]): run for run in told.raw["runs"]}
    assert set(runs) == {(m, s) for m in ("whole", "alone") for s in ("mergekit", "lines")}
    for mode, part in (("whole", "whole process"), ("alone", "merge alone")):
        text = told.text.split("ties", 1)[1]
        for side in ("mergekit", "lines"):
            run = runs[mode, side]
            shown = cells(text, part, side)
            assert shown[:2] == [f"{run['wall']:.2f}", f"{run['cpu']:.2f}"]
            for place, key in ((2, "anonymous"), (3, "beyond"), (4, "mapped"), (5, "read")):
                want = "-" if run[key] is None else f"{run[key] / 1e6:.1f} MB"
                assert shown[place] == want, key
        one, other = runs[mode, "mergekit"], runs[mode, "lines"]
        ratios = cells(text, part, "mergekit / lines")
        assert ratios[0] == f"{one['wall'] / other['wall']:.2f}×"
        assert ratios[1] == f"{one['cpu'] / other['cpu']:.2f}×"
    alone = runs["alone", "mergekit"]
    assert cells(told.text, "merge alone", r"mergekit \+ fsync") == [f"{alone['durable']:.2f}"]
    assert alone["durable"] >= alone["wall"]
    assert {run["setting"] for run in told.raw["runs"]} == {"base + 2 in bfloat16"}
    copied = min(told.raw["floor"], key=lambda found: found["wall"])
    assert f"the faster: {copied['wall']:.2f} s" in " ".join(told.text.split())
    multiple = runs["alone", "lines"]["wall"] / copied["wall"]
    assert f"lines/ties alone: {multiple:.2f}× the floor" in told.text


def test_bytes_are_those_of_the_files(told: Told) -> None:
    """Sizes from the disk; of what was merged nothing is left there."""
    place, raw = sorted(told.folder.iterdir())
    assert raw.name == "raw.json"
    sizes = [path.stat().st_size for path in place.rglob("*.safetensors")]
    assert len(sizes) == 3
    for run in told.raw["runs"]:
        if run["side"] == "mergekit":
            assert run["read"] == sum(sizes)
            assert run["written"] == pytest.approx(sizes[0], rel=0.02)  # headers differ
    for copied in told.raw["floor"]:
        assert (copied["bytes_read"], copied["bytes_written"]) == (sum(sizes), sizes[0])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_both_sides_do_the_same(
    told: Told, benchmark: ModuleType, tmp_path: Path, method: str
) -> None:
    """lines with a coefficient of 1 is mergekit's method in fp32."""
    runs, made = sys.modules["_benchmark_runs"], sys.modules["_benchmark_models"]
    given = made.checkpoints(made.shape_of(0.0005), 2, told.folder)
    assert all(checkpoint.finished for checkpoint in given)
    fp32 = {"dtype": "float32", "out_dtype": "bfloat16"}
    theirs = runs.recipe(method, "mergekit", given) | fp32
    ours = runs.recipe(method, "lines", given) | fp32
    ours["parameters"] |= {"alpha": 1.0, "beta": 0.0}
    want = models.read(runner.in_process(theirs, tmp_path / "mergekit", **PLAIN))
    found = models.read(runner.in_process(ours, tmp_path / "lines", **PLAIN))
    assert set(found) == set(want)
    base, *tuned = (models.read(checkpoint.folder) for checkpoint in given)
    for name, tensor in want.items():
        differ = tensor != found[name]
        if method == "ties":
            # Of entries with the magnitude at which the density cuts, either may stay.
            differ &= ~at_the_cut(base[name], [model[name] for model in tuned])
        assert not differ.any(), name
        assert tensor.dim() == 1 or (tensor != base[name]).float().mean() > 0.5, name


def test_a_list_of_lambdas_is_lines_of_one_model(
    told: Told, benchmark: ModuleType, tmp_path: Path
) -> None:
    """mergekit's side of lines_postprocess gives blocks the same coefficients."""
    runs, made = sys.modules["_benchmark_runs"], sys.modules["_benchmark_models"]
    given = made.checkpoints(made.shape_of(0.0005), 1, told.folder)
    theirs, ours = (
        runs.recipe("lines_postprocess", side, given) | {"dtype": "float32"}
        for side in ("mergekit", "lines")
    )
    want = models.read(runner.in_process(theirs, tmp_path / "mergekit", **PLAIN))
    found = models.read(runner.in_process(ours, tmp_path / "lines", **PLAIN))
    base, tuned = (models.read(checkpoint.folder) for checkpoint in given)
    blocks = [name for name in want if ".layers." in name and "proj" in name]
    assert len(blocks) == 7 * made.shape_of(0.0005).layers
    for name in blocks:
        torch.testing.assert_close(found[name], want[name], rtol=0, atol=1e-7)
        change = (tuned[name].float() - base[name].float()).norm()
        assert 0.1 < (found[name] - base[name].float()).norm() / change < 0.8


def test_adapters_are_the_same_on_both_sides(benchmark: ModuleType, tmp_path: Path) -> None:
    """mergekit merges each adapter into the base by PEFT; lines adds its product as it reads."""
    runs, made = sys.modules["_benchmark_runs"], sys.modules["_benchmark_models"]
    (setting,) = list(made.settings(0.0005, [2], ["float32"], lora=True).values())[1:]
    checkpoints = setting.checkpoints(tmp_path)
    for checkpoint in checkpoints:
        made.make(checkpoint, checkpoints[0], lambda _: None)
    theirs, ours = (
        runs.recipe("task_arithmetic", side, checkpoints) for side in ("mergekit", "lines")
    )
    ours["parameters"] |= {"alpha": 1.0, "beta": 0.0}
    cache = {"lora_merge_cache": str(tmp_path / "adapted")}
    want = models.read(runner.in_process(theirs, tmp_path / "mergekit", **PLAIN, **cache))
    found = models.read(runner.in_process(ours, tmp_path / "lines", **PLAIN))
    base = models.read(checkpoints[0].folder)
    changes = [want[name] - base[name] for name in want if ".layers." in name and "proj" in name]
    spread = torch.cat([change.flatten() for change in changes]).std()
    assert spread == pytest.approx(made.NOISE * 2**0.5, rel=0.1)  # of two adapters
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7)


def test_every_setting_is_a_row(tmp_path: Path) -> None:
    """One table at the end has each method on each setting, with the bound beside it."""
    settings = ("--models", "1", "--models", "3", "--dtype", "float16", "--dtype", "float32")
    methods = (*TINY, "--method", "lines_postprocess")
    command = (
        *(sys.executable, EXAMPLES / "benchmark.py", *methods, *settings, "--small-tensors"),
        *("--lines-only", "--mode", "alone", "--folder", tmp_path, "--json", tmp_path / "raw.json"),
    )
    text = runner.run(command, tmp_path, runner.ONE_THREAD).succeeded().stdout
    raw = json.loads((tmp_path / "raw.json").read_text())
    names = ["base + 1 in float16", "base + 3 in float16", "base + 1 in float32"]
    names.append("base + 1 of 2^20 entries in float16")
    assert list(raw["settings"]) == names
    methods = [("ties", name) for name in names]
    methods.insert(1, ("lines_postprocess", names[0]))  # of one model alone
    assert [(run["method"], run["setting"]) for run in raw["runs"]] == methods
    assert [raw["settings"][name]["models"] for name in names] == [1, 3, 1, 1]
    assert raw["settings"][names[3]]["largest_tensor"] == 2**20
    shown = text.split("merges alone", 1)[1]
    for run in raw["runs"][:-1]:
        name = run["setting"]
        floor = min(each["wall"] for each in raw["floor"] if each["setting"] == name)
        bound = max(floor, run["cpu"] / run["report"]["threads"])
        lines = shown.splitlines()
        row = next(line for line in lines if name in line and run["method"] in line).split()
        assert row[-2:] == [f"{run['wall'] / floor:.2f}×", f"{run['wall'] / bound:.2f}×"]


def at_the_cut(base: torch.Tensor, tuned: list[torch.Tensor]) -> torch.Tensor:
    """Where one of the models has the least magnitude that a density of 0.5 keeps."""
    found = torch.zeros(base.shape, dtype=torch.bool)
    for model in tuned:
        change = (model.float() - base.float()).abs()
        kept = change.numel() // 2
        found |= change == change.flatten().sort(descending=True).values[kept - 1]
    return found


def test_readers_read_the_same(told: Told, benchmark: ModuleType) -> None:
    """All three give every entry of the base, in the same order."""
    server, made = sys.modules["_benchmark_server"], sys.modules["_benchmark_models"]
    base = made.checkpoints(made.shape_of(0.0005), 0, told.folder)[0]
    files = dict.fromkeys((name for name, _ in base.shape.tensors()), base.shards[0])
    want = models.read(base.folder)
    assert set(server.READERS) == {"accelerate", "safetensors", "mergekit-lines"}
    for reader in server.READERS.values():
        buffer = torch.empty(1000)
        for name, entries in zip(files, reader(files, buffer), strict=True):
            assert entries == want[name].numel()
            last = want[name].flatten()[(entries - 1) // 1000 * 1000 :].float()
            assert torch.equal(buffer[: len(last)], last), name


def test_sparse_checkpoints(benchmark: ModuleType, tmp_path: Path) -> None:
    """Holes take no disk and read as zeros; what is real differs from the base by noise.

    The largest tensors are real to their last entry.
    """
    made = sys.modules["_benchmark_models"]
    assert made.LLAMA_7B.parameters == shaped.LLAMA.parameters
    assert dict(made.LLAMA_7B.tensors()) == shaped.LLAMA.shapes
    sizes = {"hidden": 64, "intermediate": 4096, "vocabulary": 8192}
    shape = dataclasses.replace(made.LLAMA_7B, layers=1, filled=1000, **sizes)
    assert shape.largest == 64 * 8192
    base, tuned = made.checkpoints(shape, 1, tmp_path)
    for checkpoint in (base, tuned):
        made.make(checkpoint, base, lambda _: None)
        assert checkpoint.finished
        used = sum(path.stat().st_blocks * 512 for path in checkpoint.shards)
        assert used < shape.disk_bytes + 2**17 < shape.item * shape.parameters
    with safe_open(base.shards[0], "pt") as zero, safe_open(tuned.shards[0], "pt") as one:
        for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"):
            start, end = (file.get_tensor(name).float().flatten() for file in (zero, one))
            real = start.numel() if "embed" in name else 1000
            for part in (slice(0, 1000), slice(real - 1000, real)):
                assert start[part].std() == pytest.approx(0.02, rel=0.2)
                assert (end - start)[part].std() == pytest.approx(0.001, rel=0.2)
            assert not start[real:].any() and not end[real:].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--billions", "-1"), "-1.0 is not in the range"),
        (("--billions", "99"), "GB more, and"),
        (("--method", "tyes"), "'tyes' is not one of 'task_arithmetic', 'ties'"),
        (("--models", "0"), "0 is not in the range"),
        (("--rounds", "many"), "'many' is not a valid integer range"),
        (("--llama-7b", "--billions", "7"), "leave --billions out"),
        (("--llama-7b", "--lora"), "--llama-7b is one setting; give it no others"),
        (("--dtype", "float8"), "'float8' is not one of 'bfloat16', 'float16', 'float32'"),
        (("--json", "nowhere/raw.json"), "--json nowhere/raw.json: there is no such folder"),
    ],
)
def test_refusals(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    message: str,
) -> None:
    """Nonsense is refused in one line, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    small = SimpleNamespace(free=10**11)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(click.ClickException) as refused:
        benchmark.main([*given, "--folder", "work"], standalone_mode=False)
    text = refused.value.format_message()
    assert message in text
    assert "\n" not in text
    assert not any(tmp_path.iterdir())
