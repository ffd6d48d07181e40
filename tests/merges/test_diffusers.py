"""Folders as diffusers saves its models, in ordinary recipes: weights under names of its own.

The files are written by hand, in diffusers' format: it is not needed to make or to read them.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lines import LiveModel
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.errors import LinesError
from mergekit_lines.hub.parcel import PushOptions, pack
from tests import models
from tests.e2e.runner import in_process, mergekit_multi, recipe_text, run
from tests.e2e.torture import Torturer, partial_of
from tests.merges.test_files import BETA, Shapes, linear, norm, recipe, ties

STEM = "diffusion_pytorch_model"
WEIGHTS, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"
Depth = Callable[[str], float | None]


def unet() -> Shapes:
    """UNet2DConditionModel with two blocks down, a middle one and two up, of its parts a few."""
    shapes: Shapes = {"conv_in.weight": (8, 4, 3, 3), "conv_in.bias": (8,)}
    shapes |= linear("time_embedding.linear_1", 16, 8)
    blocks = [f"{way}_blocks.{number}" for way in ("down", "up") for number in range(2)]
    for at in (*blocks, "mid_block"):
        for number in (1, 2):
            shapes |= norm(f"{at}.resnets.0.norm{number}", 8)
            shapes[f"{at}.resnets.0.conv{number}.weight"] = (8, 8, 3, 3)
        shapes |= linear(f"{at}.attentions.0.transformer_blocks.0.attn1.to_out.0", 8, 8)
    return {**shapes, **norm("conv_norm_out", 8), "conv_out.weight": (4, 8, 3, 3)}


def sd3() -> Shapes:
    """SD3Transformer2DModel with three blocks; its table of positions is in the file too."""
    shapes: Shapes = {"pos_embed.pos_embed": (1, 16, 8), **linear("context_embedder", 8, 8)}
    for block in range(3):
        at = f"transformer_blocks.{block}"
        shapes |= linear(f"{at}.norm1.linear", 48, 8) | linear(f"{at}.attn.to_q", 8, 8)
        shapes |= linear(f"{at}.attn.to_out.0", 8, 8) | linear(f"{at}.ff.net.0.proj", 32, 8)
    return {**shapes, **linear("norm_out.linear", 16, 8), **linear("proj_out", 4, 8)}


def flux() -> Shapes:
    """FluxTransformer2DModel with two double blocks and three single ones."""
    shapes: Shapes = {**linear("x_embedder", 8, 4), **linear("context_embedder", 8, 8)}
    for block in range(2):
        at = f"transformer_blocks.{block}"
        shapes |= linear(f"{at}.norm1.linear", 48, 8) | linear(f"{at}.attn.to_q", 8, 8)
        shapes |= linear(f"{at}.ff.net.0.proj", 32, 8) | linear(f"{at}.ff.net.2", 8, 32)
    for block in range(3):
        at = f"single_transformer_blocks.{block}"
        shapes |= linear(f"{at}.norm.linear", 24, 8) | linear(f"{at}.proj_mlp", 32, 8)
        shapes |= linear(f"{at}.proj_out", 8, 40) | linear(f"{at}.attn.to_q", 8, 8)
    return {**shapes, **linear("norm_out.linear", 16, 8), **linear("proj_out", 4, 8)}


def in_unet(name: str) -> float | None:
    """Return the depth by hand: down, middle, up, as the image goes."""
    order = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    return next((i / 4 for i, at in enumerate(order) if name.startswith(f"{at}.")), None)


def in_sd3(name: str) -> float | None:
    """Return the depth by hand."""
    number = re.match(r"transformer_blocks\.(\d)\.", name)
    return int(number[1]) / 2 if number else None


def in_flux(name: str) -> float | None:
    """Return the depth by hand: the double blocks, and the single ones behind them."""
    number = re.match(r"(single_)?transformer_blocks\.(\d)\.", name)
    return (int(number[2]) + (2 if number[1] else 0)) / 4 if number else None


KINDS: dict[str, tuple[Callable[[], Shapes], Depth]] = {
    "UNet2DConditionModel": (unet, in_unet),
    "SD3Transformer2DModel": (sd3, in_sd3),
    "FluxTransformer2DModel": (flux, in_flux),
}


def save(tensors: models.Tensors, folder: Path, kind: str, shards: int = 1) -> Path:
    """Write a folder as ``save_pretrained`` of diffusers does."""
    folder.mkdir()
    config = {"_class_name": kind, "_diffusers_version": "0.42.1", "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if shards == 1:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return folder
    names = sorted(tensors)
    files = [f"{STEM}-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    weight_map = {name: files[i % shards] for i, name in enumerate(names)}
    for file in files:
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return folder


def write(kind: str, place: Path, shards: int = 1) -> tuple[list[Path], list[models.Tensors]]:
    """Write a base and two models fine-tuned from it; return folders and tensors."""
    generator = torch.Generator().manual_seed(11)
    shapes = KINDS[kind][0]()
    base = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    held = [base] + [
        {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for _ in range(2)
    ]
    folders = [
        save(tensors, place / name, kind, shards)
        for name, tensors in zip(("base", "a", "b"), held, strict=True)
    ]
    return folders, held


def read(folder: Path) -> models.Tensors:
    """Return what diffusers would load: the files that its index names, or the one file."""
    assert not list(folder.glob("model*.safetensors*"))
    if not (folder / INDEX).exists():
        return load_file(folder / WEIGHTS)
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    held = {file: load_file(folder / file) for file in set(weight_map.values())}
    assert {path.name for path in folder.glob("*.safetensors")} == set(held)
    return {name: held[file][name] for name, file in weight_map.items()}


def expected(kind: str, held: list[models.Tensors]) -> models.Tensors:
    """TIES under the α of Eq. 2, in float64 by the papers' formulas."""
    base, first, second = ({n: t.double() for n, t in each.items()} for each in held)
    vectors = {name: [first[name] - base[name], second[name] - base[name]] for name in base}
    merged = {name: ties(both) for name, both in vectors.items()}
    total = sum(float((a + b).abs().sum()) for a, b in vectors.values())
    alpha = total / sum(float(vector.abs().sum()) for vector in merged.values()) / 2
    depth = KINDS[kind][1]
    return {
        name: base[name] + (alpha + BETA * (depth(name) or 0.0)) * merged[name] for name in base
    }


def check(merged: models.Tensors, values: models.Tensors) -> None:
    """Assert that a merge holds these values, and nothing beside them."""
    assert set(merged) == set(values)
    for name, value in values.items():
        assert models.max_error_ratio(merged[name], value) <= 1e-6, name


@pytest.mark.parametrize("shards", [1, 3], ids=["one file", "shards"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_diffusers_merges(kind: str, shards: int, tmp_path: Path) -> None:
    """OUT has diffusers' names of files, the base's config.json, and the formula's values."""
    folders, held = write(kind, tmp_path, shards)
    size = 4000 if shards > 1 else 1 << 30
    out = in_process(recipe(*folders), tmp_path / "out", out_shard_size=size)
    check(read(out), expected(kind, held))
    assert (out / INDEX).exists() == (shards > 1)
    assert (out / "config.json").read_bytes() == (folders[0] / "config.json").read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "library_name: diffusers" in card
    assert f"from diffusers import {kind}\n\nmodel = {kind}.from_pretrained(" in card


def test_a_step_that_is_merged_already_is_not_merged_again(tmp_path: Path) -> None:
    """`mergekit-multi`, which is lazy, knows a step by diffusers' names, in one file or several."""
    folders, held = write("FluxTransformer2DModel", tmp_path)
    step = {**recipe(*folders), "name": "first"}
    last = {
        "merge_method": "lines_postprocess",
        "base_model": str(folders[0]),
        "models": [{"model": "first"}],
        "parameters": {"gamma": 0.5},
    }
    place = tmp_path / "steps" / "first"
    for number, size in enumerate((1 << 30, 4000)):
        shutil.rmtree(place, ignore_errors=True)
        in_process(recipe(*folders), place, out_shard_size=size)
        out = tmp_path / f"out{number}"
        mergekit_multi([step, last], out, cwd=tmp_path, intermediate="steps").succeeded()
        assert read(out).keys() == held[0].keys()
        assert (place / WEIGHTS).exists() == (size > 4000)


@pytest.fixture(scope="module")
def torturer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torturer]:
    """``mergekit-yaml``, in processes that one process forks."""
    with Torturer(tmp_path_factory.mktemp("torturer")) as started:
        yield started


def test_a_merge_that_is_killed_goes_on(torturer: Torturer, tmp_path: Path) -> None:
    """Whole shards of diffusers' names are kept and counted; the end is as without a kill."""
    folders, held = write("FluxTransformer2DModel", tmp_path, 2)
    (tmp_path / "recipe.yml").write_text(recipe_text(recipe(*folders)), encoding="utf-8")
    flags = ("--out-shard-size", "4K", "--num-threads", "1")
    kill = {"signals": [signal.SIGKILL], "writes": 20, "seconds": 0.0}
    ended = torturer.merge(tmp_path, *flags, hooks=[("slow", 0.01)], kill=kill)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = sorted(path.name for path in partial_of(tmp_path / "out").glob("*.safetensors"))
    assert left and all(name.startswith(f"partial-{STEM}-0") for name in left)
    ended = torturer.merge(tmp_path, *flags).succeeded()
    assert f"found {len(left)} of " in ended.stderr
    check(read(tmp_path / "out"), expected("FluxTransformer2DModel", held))


def test_a_kill_while_it_is_moved_into_a_folder_is_got_over(
    torturer: Torturer, tmp_path: Path
) -> None:
    """Files that were moved to a folder with others are known as the merge's by a second run."""
    folders, held = write("SD3Transformer2DModel", tmp_path, 2)
    (tmp_path / "recipe.yml").write_text(recipe_text(recipe(*folders)), encoding="utf-8")
    flags = ("--out-shard-size", "4K", "--num-threads", "1")
    out, calls = tmp_path / "out", tmp_path / "calls.json"
    out.mkdir()
    (out / "scheduler.txt").write_text("mine", encoding="utf-8")
    torturer.merge(tmp_path, *flags, hooks=[("record", str(calls), "rename")]).succeeded()
    steps = json.loads(calls.read_text(encoding="utf-8"))
    shutil.rmtree(out)
    out.mkdir()
    (out / "scheduler.txt").write_text("mine", encoding="utf-8")
    ended = torturer.merge(tmp_path, *flags, hooks=[("die", len(steps) - 3, "after", "rename")])
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "config.json").exists()
    torturer.merge(tmp_path, *flags).succeeded()
    check(read(out), expected("SD3Transformer2DModel", held))


def test_an_edit_its_report_and_its_parcel(tmp_path: Path) -> None:
    """``edit``, ``inspect``, ``verify`` and a push know diffusers' files."""
    kind = "UNet2DConditionModel"
    (base, tuned, _), held = write(kind, tmp_path, 2)
    command = ["mergekit-lines", "edit", tuned, "--base", base, "--gamma", "0.4"]
    run([*command, "--out", "out", "--out-shard-size", "4K"], tmp_path).succeeded()
    origin, changed = ({n: t.double() for n, t in each.items()} for each in held[:2])
    coefficient = {name: 0.4 + 0.6 * (in_unet(name) or 0.0) for name in origin}
    values = {n: o + coefficient[n] * (changed[n] - o) for n, o in origin.items()}
    check(read(tmp_path / "out"), values)
    run(["mergekit-lines", "verify", "out"], tmp_path).succeeded()
    text = run([*command, "--print-recipe"], tmp_path).succeeded().stdout
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    shown = run(["mergekit-lines", "inspect", "recipe.yml"], tmp_path).succeeded().stdout
    assert "down_blocks → mid_block → up_blocks" in shown
    report = json.loads((tmp_path / "out" / "lines_report.json").read_text(encoding="utf-8"))
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(report["output"]["shards"]) == files
    assert INDEX in report["inputs"][str(base)]["files"]
    with hub_session():
        parcel = pack(tmp_path / "out", PushOptions("someone/unet", licence="mit"))
    assert {*files, INDEX, "config.json"} <= set(parcel.files)
    (tmp_path / "out" / INDEX).unlink()
    with pytest.raises(LinesError, match=rf"found no {re.escape(INDEX)}"):
        pack(tmp_path / "out", PushOptions("someone/unet", licence="mit"))


def test_an_input_that_was_changed_is_seen(tmp_path: Path) -> None:
    """``verify`` tells an index of diffusers' that is no longer the one that was merged."""
    folders, _ = write("SD3Transformer2DModel", tmp_path, 2)
    in_process(recipe(*folders), tmp_path / "out")
    with (folders[1] / INDEX).open("a", encoding="utf-8") as file:
        file.write(" ")
    ended = run(["mergekit-lines", "verify", "out"], tmp_path)
    assert ended.returncode == 1
    assert INDEX in ended.stderr


def both(folder: Path) -> None:
    """Put transformers' weights beside diffusers'."""
    shutil.copy(folder / WEIGHTS, folder / "model.safetensors")


def twice(folder: Path) -> None:
    """Put an index beside the one file."""
    (folder / INDEX).write_text('{"weight_map": {}}', encoding="utf-8")


def variant(folder: Path) -> None:
    """Leave a half-precision variant alone."""
    (folder / WEIGHTS).rename(folder / f"{STEM}.fp16.safetensors")


def pipeline(folder: Path) -> None:
    """Put the whole pipeline's folder in the model's place."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model_index.json").write_text("{}", encoding="utf-8")


def hollow(folder: Path) -> None:
    """Leave no tensor in the file."""
    save_file({}, folder / WEIGHTS)


def heads(folder: Path) -> None:
    """Count other heads."""
    models.edit_config(folder, num_attention_heads=4)


REFUSED = [
    (both, rf"found {STEM}\.safetensors, model\.safetensors, wanted weights in one"),
    (twice, rf"found {STEM}\.safetensors, .*index\.json, wanted weights in one"),
    (variant, rf"of diffusers' weights found {STEM}\.fp16\.safetensors, wanted"),
    (pipeline, "It holds a pipeline of diffusers"),
    (hollow, "its files hold no tensor"),
    (heads, "num_attention_heads 4 where base_model says 2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[one[0].__name__ for one in REFUSED])
def test_a_folder_that_is_no_model_of_its_own(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    """What no loader would take for that one model is refused by what was found."""
    folders, _ = write("FluxTransformer2DModel", tmp_path)
    change(folders[1])
    with pytest.raises(LinesError, match=message):
        in_process(recipe(*folders), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_computes_otherwise_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of models of no class the config files themselves are compared."""
    folders, _ = write("FluxTransformer2DModel", tmp_path)
    models.edit_config(folders[0], guidance_embeds=False)
    models.edit_config(folders[2], guidance_embeds=True, sample_size=[8, 8])
    in_process(recipe(*folders), tmp_path / "out", quiet=False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "guidance_embeds" in line]
    assert "says guidance_embeds True where base_model says False; the merged" in line


@pytest.mark.parametrize("at", [0, 1], ids=["base", "model"])
def test_a_folder_and_a_file_merge(at: int, tmp_path: Path) -> None:
    """A model's own file may be named in the place of its folder; OUT's name is the base's."""
    folders, held = write("SD3Transformer2DModel", tmp_path)
    folders[at] /= WEIGHTS
    out = in_process(recipe(*folders), tmp_path / "out")
    check(read(out), expected("SD3Transformer2DModel", held))
    assert (out / "config.json").exists() == (at == 1)


def test_slices_of_a_model_of_no_class_are_refused(tmp_path: Path) -> None:
    """Layer ranges are counted by a class's layout; the error says what to write."""
    folders, _ = write("SD3Transformer2DModel", tmp_path)
    text = recipe(*folders)
    sources = [{"model": str(folder), "layer_range": [0, 2]} for folder in folders]
    del text["models"]
    text["slices"] = [{"sources": sources}]
    with pytest.raises(LinesError, match="slices: the models name no class that transformers"):
        in_process(text, tmp_path / "out")


def test_a_live_model_of_diffusers_is_refused(tmp_path: Path) -> None:
    """transformers builds no such model, and the error says so."""
    folders, _ = write("FluxTransformer2DModel", tmp_path)
    text: dict[str, Any] = recipe(*folders)
    with pytest.raises(LinesError, match="names no class of transformers"):
        LiveModel(text)
