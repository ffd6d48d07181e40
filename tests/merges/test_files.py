"""Models that are one safetensors file, as timm's and open_clip's are, in ordinary recipes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lines.errors import LinesError
from mergekit_lines.hub.whole import merged_model
from tests import models
from tests.e2e.runner import ForkServer, in_process, recipe_text
from tests.e2e.torture import STEPS, Torturer, partial_of

BETA, DENSITY = 0.5, 0.5
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, rows: int, columns: int) -> Shapes:
    """Return a layer's tensors."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> Shapes:
    """Return a norm's tensors."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def timm_block(at: str, width: int) -> Shapes:
    """Return a block of timm's vision transformers."""
    return {
        **norm(f"{at}.norm1", width),
        **linear(f"{at}.attn.qkv", 3 * width, width),
        **linear(f"{at}.attn.proj", width, width),
        **norm(f"{at}.norm2", width),
        **linear(f"{at}.mlp.fc1", 4 * width, width),
        **linear(f"{at}.mlp.fc2", width, 4 * width),
    }


def clip_block(at: str, width: int) -> Shapes:
    """Return a block of open_clip's transformers."""
    return {
        **norm(f"{at}.ln_1", width),
        f"{at}.attn.in_proj_weight": (3 * width, width),
        f"{at}.attn.in_proj_bias": (3 * width,),
        **linear(f"{at}.attn.out_proj", width, width),
        **norm(f"{at}.ln_2", width),
        **linear(f"{at}.mlp.c_fc", 4 * width, width),
        **linear(f"{at}.mlp.c_proj", width, 4 * width),
    }


def convnext_block(at: str, width: int) -> Shapes:
    """Return a block of timm's ConvNeXt."""
    return {
        f"{at}.gamma": (width,),
        f"{at}.conv_dw.weight": (width, 1, 7, 7),
        f"{at}.conv_dw.bias": (width,),
        **norm(f"{at}.norm", width),
        **linear(f"{at}.mlp.fc1", 4 * width, width),
        **linear(f"{at}.mlp.fc2", width, 4 * width),
    }


def vit() -> Shapes:
    """timm's vit_tiny_patch16, smaller."""
    shapes: Shapes = {"cls_token": (1, 1, 16), "pos_embed": (1, 5, 16)}
    shapes |= {"patch_embed.proj.weight": (16, 3, 8, 8), "patch_embed.proj.bias": (16,)}
    for block in range(4):
        shapes |= timm_block(f"blocks.{block}", 16)
    return {**shapes, **norm("norm", 16), **linear("head", 10, 16)}


def convnext() -> Shapes:
    """timm's convnext of stages (1, 3), smaller."""
    shapes: Shapes = {"stem.0.weight": (8, 3, 4, 4), "stem.0.bias": (8,), **norm("stem.1", 8)}
    shapes |= convnext_block("stages.0.blocks.0", 8)
    shapes |= norm("stages.1.downsample.0", 8)
    shapes |= {"stages.1.downsample.1.weight": (16, 8, 2, 2), "stages.1.downsample.1.bias": (16,)}
    for block in range(3):
        shapes |= convnext_block(f"stages.1.blocks.{block}", 16)
    return {**shapes, **norm("head.norm", 16), **linear("head.fc", 10, 16)}


def eva() -> Shapes:
    """timm's eva02 without a class head, of other names inside a block."""
    shapes: Shapes = {"pos_embed": (1, 4, 16), "patch_embed.proj.weight": (16, 3, 8, 8)}
    for block in range(3):
        at = f"blocks.{block}"
        shapes |= norm(f"{at}.norm1", 16) | norm(f"{at}.norm2", 16) | norm(f"{at}.attn.norm", 16)
        for part in ("q_proj", "k_proj", "v_proj", "proj"):
            shapes[f"{at}.attn.{part}.weight"] = (16, 16)
        shapes |= linear(f"{at}.mlp.fc1_g", 32, 16) | linear(f"{at}.mlp.fc1_x", 32, 16)
        shapes |= linear(f"{at}.mlp.fc2", 16, 32)
    return {**shapes, **norm("norm", 16)}


def clip(vision: int, text: int) -> Shapes:
    """open_clip's ViT-B, smaller."""
    shapes: Shapes = {"logit_scale": (), "text_projection": (16, 8), "visual.proj": (16, 8)}
    shapes |= {"token_embedding.weight": (50, 16), "positional_embedding": (7, 16)}
    shapes |= {"visual.class_embedding": (16,), "visual.conv1.weight": (16, 3, 8, 8)}
    for block in range(vision):
        shapes |= clip_block(f"visual.transformer.resblocks.{block}", 16)
    for block in range(text):
        shapes |= clip_block(f"transformer.resblocks.{block}", 16)
    return {**shapes, **norm("ln_final", 16), **norm("visual.ln_post", 16)}


def siglip() -> Shapes:
    """open_clip's SigLIP: a tower of timm's beside open_clip's own for text."""
    shapes: Shapes = {"logit_scale": (), "logit_bias": (), "visual.trunk.pos_embed": (1, 4, 16)}
    for block in range(3):
        shapes |= timm_block(f"visual.trunk.blocks.{block}", 16)
    for block in range(2):
        shapes |= clip_block(f"text.transformer.resblocks.{block}", 16)
    return {**shapes, "text.token_embedding.weight": (50, 16), **norm("text.ln_final", 16)}


@dataclass(frozen=True)
class File:
    """A made-up checkpoint.

    Attributes:
        shapes: makes its tensors' shapes.
        depth: place of a tensor among the blocks, by hand: (l - 1)/(L - 1); None is outside.
    """

    shapes: Callable[[], Shapes]
    depth: Callable[[str], float | None]


def in_lists(**counts: int) -> Callable[[str], float | None]:
    """Return the depth for plain lists of blocks, by their names with ``__`` for dots."""

    def depth(name: str) -> float | None:
        for prefix, count in counts.items():
            start = prefix.replace("__", ".") + "."
            if name.startswith(start):
                return int(name.removeprefix(start).split(".")[0]) / (count - 1)
        return None

    return depth


def in_stages(name: str) -> float | None:
    """Return the depth in a ConvNeXt of one and three blocks; what shrinks is the next block's."""
    if not name.startswith("stages."):
        return None
    _, stage, part, number, *_ = name.split(".")
    return (int(stage) + (int(number) if part == "blocks" else 0)) / 3


FILES = {
    "timm ViT": File(vit, in_lists(blocks=4)),
    "timm ConvNeXt": File(convnext, in_stages),
    "timm EVA-02": File(eva, in_lists(blocks=3)),
    "open_clip ViT": File(
        lambda: clip(3, 2),
        in_lists(visual__transformer__resblocks=3, transformer__resblocks=2),
    ),
    "open_clip ViT, deep text": File(
        lambda: clip(2, 4),
        in_lists(visual__transformer__resblocks=2, transformer__resblocks=4),
    ),
    "open_clip SigLIP": File(
        siglip,
        in_lists(visual__trunk__blocks=3, text__transformer__resblocks=2),
    ),
}


def write_models(file: File, folder: Path) -> list[Path]:
    """Write a base and two fine-tuned models, and return their paths."""
    generator = torch.Generator().manual_seed(7)
    shapes = file.shapes()
    base = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    paths = [folder / f"{name}.safetensors" for name in ("base", "a", "b")]
    save_file(base, paths[0])
    for path in paths[1:]:
        save_file(
            {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in base.items()}, path
        )
    return paths


def recipe(base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    """Return a recipe of TIES under an automatic α."""
    words = {"wrap": "ties", "density": DENSITY, "weight": 1.0, "alpha": "auto", "beta": BETA}
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {**words, **parameters},
    }


def ties(vectors: list[torch.Tensor]) -> torch.Tensor:
    """TIES (2306.01708) of one tensor's task vectors, in float64: trim, elect, disjoint mean."""
    trimmed = []
    for vector in vectors:
        keep = max(1, int(DENSITY * vector.numel()))  # of a scalar all: nothing is no trimming
        order = vector.abs().flatten().argsort(descending=True)[:keep]
        mask = torch.zeros(vector.numel(), dtype=torch.bool).index_fill_(0, order, True)
        trimmed.append(torch.where(mask.view(vector.shape), vector, torch.zeros_like(vector)))
    stack = torch.stack(trimmed)
    elected = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agree = (stack.sign() == elected) & (stack != 0)
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


def expected(file: File, paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the merge by the papers' formulas in float64, with α of Eq. 2."""
    base, *tuned = ({n: t.double() for n, t in load_file(path).items()} for path in paths)
    vectors = {name: [one[name] - base[name] for one in tuned] for name in base}
    merged = {name: ties(both) for name, both in vectors.items()}
    total = sum(float((a + b).abs().sum()) for a, b in vectors.values())
    alpha = total / sum(float(vector.abs().sum()) for vector in merged.values()) / 2
    return {
        name: base[name] + (alpha + BETA * (file.depth(name) or 0.0)) * merged[name]
        for name in base
    }


def check(out: Path, values: Mapping[str, torch.Tensor]) -> None:
    """Assert that a merge holds these values, and nothing beside them."""
    merged = load_file(out / "model.safetensors")
    assert set(merged) == set(values)
    for name, value in values.items():
        assert models.max_error_ratio(merged[name], value) <= 1e-6, name


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_merged_killed_and_resumed(name: str, torturer: Torturer, tmp_path: Path) -> None:
    """TIES under an automatic α is right, also after a kill in the middle of the writing."""
    paths = write_models(FILES[name], tmp_path)
    (tmp_path / "recipe.yml").write_text(recipe_text(recipe(*paths)), encoding="utf-8")
    kill = {"signals": [signal.SIGKILL], "writes": 5, "seconds": 0.0}
    ended = torturer.merge(tmp_path, hooks=[("slow", 0.01)], kill=kill)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert partial_of(tmp_path / "out").exists()
    torturer.merge(tmp_path).succeeded()
    check(tmp_path / "out", expected(FILES[name], paths))
    assert not (tmp_path / "out" / "config.json").exists()
    assert not partial_of(tmp_path / "out").exists()


@pytest.mark.parametrize("shard_size", ["5B", "8K"], ids=["one file", "shards"])
@pytest.mark.parametrize("into", ["new", "with others"])
def test_a_kill_at_any_step_leaves_nothing_that_is_taken_for_whole(
    shard_size: str, into: str, torturer: Torturer, tmp_path: Path
) -> None:
    """Of an output without config.json the weights come last, or their index."""
    paths = write_models(FILES["timm EVA-02"], tmp_path)
    (tmp_path / "recipe.yml").write_text(recipe_text(recipe(*paths)), encoding="utf-8")
    flags = ("--out-shard-size", shard_size, "--num-threads", "1")
    out, calls = tmp_path / "out", tmp_path / "calls.json"
    last = "model.safetensors" if shard_size == "5B" else "model.safetensors.index.json"

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if into != "new":
            out.mkdir()
            (out / "notes.txt").write_text("mine", encoding="utf-8")

    prepare()
    torturer.merge(tmp_path, *flags, hooks=[("record", str(calls), *STEPS)]).succeeded()
    whole = models.read(out)
    steps = json.loads(calls.read_text(encoding="utf-8"))
    renames = [number for number, (step, *_) in enumerate(steps) if step == "rename"]
    for number in renames[-8:]:
        prepare()
        hook = ("die", number, "after", *STEPS)
        ended = torturer.merge(tmp_path, *flags, hooks=[hook])
        assert ended.returncode == -signal.SIGKILL
        if (out / last).exists():
            assert all(torch.equal(t, whole[n]) for n, t in models.read(out).items())
            assert set(models.read(out)) == set(whole)
            shutil.rmtree(partial_of(out), ignore_errors=True)
            continue
        torturer.merge(tmp_path, *flags).succeeded()
        again = models.read(out)
        assert set(again) == set(whole)
        assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())
        assert into == "new" or (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_edit_by_recipe_and_its_verdict(server: ForkServer, tmp_path: Path) -> None:
    """``lines_postprocess`` takes files, and ``verify`` and ``inspect`` know them."""
    file = FILES["open_clip ViT"]
    base, tuned, _ = write_models(file, tmp_path)
    text = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"alpha": 0.2, "beta": 0.8},
    }
    in_process(text, tmp_path / "out")
    origin, changed = load_file(base), load_file(tuned)
    values = {
        name: origin[name].double()
        + (0.2 + 0.8 * (file.depth(name) or 0.0)) * (changed[name].double() - origin[name].double())
        for name in origin
    }
    check(tmp_path / "out", values)
    assert any("no config.json" in note for note in merged_model(tmp_path / "out").notes)
    server.run(["mergekit-lines", "verify", tmp_path / "out"], tmp_path, tmp_path).succeeded()
    (tmp_path / "recipe.yml").write_text(recipe_text(text), encoding="utf-8")
    inspect = ["mergekit-lines", "inspect", "recipe.yml"]
    told = server.run(inspect, tmp_path, tmp_path).succeeded().stdout
    assert "visual.transformer.resblocks" in told


def test_a_folder_that_names_no_architecture(tmp_path: Path) -> None:
    """timm's folder merges by its tensors' names, and its config.json goes along as it is."""
    paths = write_models(FILES["timm ViT"], tmp_path)
    config = '{"architecture": "vit_tiny", "num_classes": 10, "pretrained_cfg": {"mean": [0.5]}}'
    folders = []
    for path in paths:
        folders.append(tmp_path / path.stem)
        folders[-1].mkdir()
        shutil.copy(path, folders[-1] / "model.safetensors")
        (folders[-1] / "config.json").write_text(config, encoding="utf-8")
    in_process(recipe(*folders), tmp_path / "out")
    check(tmp_path / "out", expected(FILES["timm ViT"], paths))
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == config
    assert any("names no class" in note for note in merged_model(tmp_path / "out").notes)
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(LinesError, match=r"config\.json"):
        merged_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.rename(path.with_suffix(".pth")), "there is no such folder"),
        (lambda path: path.write_bytes(b"0123456789abcdef"), "not a whole safetensors file"),
        (
            lambda path: save_file({"blocks.0.x": torch.zeros(2)}, path),
            r"a.safetensors: lacks blocks\.0.* and has blocks\.0\.x",
        ),
        (lambda path: path.unlink(), "there is no such folder"),
    ],
    ids=["another suffix", "no safetensors", "other tensors", "not there"],
)
def test_a_file_that_is_no_model(
    change: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    """What cannot be merged is told by the file's name, and nothing is left."""
    base, tuned, other = write_models(FILES["timm ViT"], tmp_path)
    change(tuned)
    with pytest.raises(LinesError, match=message):
        in_process(recipe(base, tuned, other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_over_a_file_is_refused(tmp_path: Path) -> None:
    """An adapter's layers are found by a config, which a file has not."""
    base, tuned, _ = write_models(FILES["timm ViT"], tmp_path)
    (tmp_path / "adapter").mkdir()
    text = recipe(base, Path(f"{tuned}+{tmp_path / 'adapter'}"))
    with pytest.raises(LinesError, match="an adapter over a file"):
        in_process(text, tmp_path / "out")


def test_a_pickled_file_is_told(tmp_path: Path) -> None:
    """A file of another kind is refused by what it should be."""
    base, tuned, _ = write_models(FILES["timm ViT"], tmp_path)
    pickled = tuned.with_suffix(".pth")
    torch.save(load_file(tuned), pickled)
    with pytest.raises(LinesError, match=r"found a \.pth file, wanted a folder or a"):
        in_process(recipe(base, pickled), tmp_path / "out")
