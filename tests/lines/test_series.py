"""Lists that run one after another are one depth; what is left outside is told or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergekit_lines import edit_state_dict, scale_task_vector
from mergekit_lines.cli import main
from mergekit_lines.errors import LinesError
from mergekit_lines.lines.depth import BlockDepth, block_depths
from mergekit_lines.lines.outside import checked_depths
from tests.e2e.runner import ForkServer


def below(place: str, modules: Iterable[str]) -> Iterator[str]:
    for module in modules:
        yield from (f"{place}.{module}.{kind}" for kind in ("weight", "bias"))


DOUBLE = [f"{s}_{m}" for s in ("img", "txt") for m in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]
SINGLE = ("linear1", "linear2", "modulation.lin", "norm.key_norm")


def flux() -> list[str]:
    """The names of Flux's own file: 19 double blocks, then 38 single ones."""
    names = ["img_in.weight", "final_layer.linear.weight"]
    for index in range(19):
        names += below(f"double_blocks.{index}", DOUBLE)
    for index in range(38):
        names += below(f"single_blocks.{index}", SINGLE)
    return names


RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
ATTENTION = (
    "norm",
    "proj_in",
    "proj_out",
    *(
        f"transformer_blocks.0.{module}"
        for module in ("norm1", "attn1.to_q", "attn1.to_k", "norm2", "attn2.to_q", "ff.net.0.proj")
    ),
)


def unet() -> list[str]:
    """The names of a U-Net as diffusers writes them: 4 blocks down, 1 in the middle, 4 up."""
    names = ["conv_in.weight", "time_embedding.linear_1.weight"]
    for side, convs in (("down", 2), ("up", 3)):
        for stage in range(4):
            for number in range(convs):
                names += below(f"{side}_blocks.{stage}.resnets.{number}", RESNET)
                if stage != (3 if side == "down" else 0):
                    names += below(f"{side}_blocks.{stage}.attentions.{number}", ATTENTION)
            if stage < 3:
                names += below(f"{side}_blocks.{stage}.{side}samplers.0", ["conv"])
    names += below("mid_block.attentions.0", ATTENTION)
    for number in range(2):
        names += below(f"mid_block.resnets.{number}", RESNET)
    return names


def test_single_blocks_come_after_double_ones() -> None:
    """Flux's 57 blocks are one depth: the first single block is the twentieth."""
    depths = block_depths(flux())
    name = "double_blocks → single_blocks"
    assert depths["double_blocks.0.img_mlp.0.weight"] == BlockDepth(name, 0, 57)
    assert depths["double_blocks.18.txt_mlp.2.bias"] == BlockDepth(name, 18, 57)
    assert depths["single_blocks.0.linear1.weight"] == BlockDepth(name, 19, 57)
    assert depths["single_blocks.37.norm.key_norm.bias"] == BlockDepth(name, 56, 57)
    assert depths["img_in.weight"] is None


def test_a_unet_goes_down_through_the_middle_and_up() -> None:
    """A U-Net's nine blocks count down, middle, up; what stands inside a block is of it."""
    depths = block_depths(unet())
    name = "down_blocks → mid_block → up_blocks"
    places = {
        "down_blocks.0.resnets.0.conv1.weight": 0,
        "down_blocks.3.resnets.1.norm2.bias": 3,
        "down_blocks.2.downsamplers.0.conv.weight": 2,
        "mid_block.attentions.0.transformer_blocks.0.norm1.weight": 4,
        "mid_block.resnets.1.conv2.weight": 4,
        "up_blocks.0.upsamplers.0.conv.weight": 5,
        "up_blocks.3.attentions.2.proj_out.bias": 8,
    }
    assert {key: depths[key] for key in places} == {
        key: BlockDepth(name, index, 9) for key, index in places.items()
    }
    assert {key for key, depth in depths.items() if depth is None} == {
        "conv_in.weight",
        "time_embedding.linear_1.weight",
    }


def test_the_original_names_of_a_unet_are_in_order() -> None:
    """`input_blocks`, `middle_block` with its three parts, `output_blocks`, under one parent."""
    parts = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    names = [f"model.diffusion_model.{name}" for name in below("time_embed", ["0", "2"])]
    for place, count in (("input_blocks", 4), ("output_blocks", 5)):
        for index in range(count):
            names += below(f"model.diffusion_model.{place}.{index}.0", parts)
    for index in range(3):
        names += below(f"model.diffusion_model.middle_block.{index}", parts)
    depths = block_depths(names)
    name = "model.diffusion_model.input_blocks → middle_block → output_blocks"
    ends = {
        "input_blocks.3.0": 3,
        "middle_block.0": 4,
        "middle_block.2": 6,
        "output_blocks.4.0": 11,
    }
    for end, index in ends.items():
        tensor = f"model.diffusion_model.{end}.out_layers.3.weight"
        assert depths[tensor] == BlockDepth(name, index, 12)


def test_blocks_may_name_one_of_a_series() -> None:
    """`blocks: single_blocks` counts these alone; both of them named are a series."""
    alone = block_depths(flux(), blocks=["single_blocks"])
    assert alone["single_blocks.37.linear1.weight"] == BlockDepth("single_blocks", 37, 38)
    assert alone["double_blocks.3.img_mlp.0.weight"] is None
    both = block_depths(flux(), blocks=["single_blocks", "double_blocks"])
    assert both == block_depths(flux())


# --- what is outside ----------------------------------------------------------------------


def stacks(first: int, second: int) -> dict[str, torch.Tensor]:
    """Two lists side by side whose words do not tell which runs first; one has wider blocks."""
    modules = ("q", "k", "v", "o", "up", "down")
    names = [f"core.{i}.{m}.weight" for i in range(3) for m in (*modules, "gate")]
    sizes = dict.fromkeys(names, first)
    sizes |= {f"refiner.{i}.{m}.weight": second for i in range(3) for m in modules}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return {**tensors, "embed.weight": torch.randn(10_000, generator=generator)}


def test_most_parameters_outside_are_refused() -> None:
    """Where more of the lists is outside than in blocks they are named; embeddings are no list."""
    tensors = stacks(first=4, second=16)
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    with pytest.raises(LinesError) as refused:
        checked_depths(sizes, None, None)
    # 7·3·4 entries of `core` and 6·3·16 of `refiner`: 288 of 372.
    assert "77% of what stands in numbered lists" in refused.value.message
    assert "(blocks: core; outside: refiner)" in refused.value.message
    assert "`blocks: refiner`" in refused.value.message
    assert checked_depths(sizes, "refiner", None)["refiner.2.q.weight"] == BlockDepth(
        "refiner", 2, 3
    )
    few = {name: tensor.numel() for name, tensor in stacks(first=16, second=4).items()}
    assert checked_depths(few, None, None)["refiner.2.q.weight"] is None


def test_state_dicts_are_refused_alike() -> None:
    """From Python the same models are refused, and merged when `blocks` names what counts."""
    base, tuned = stacks(4, 16), {n: t + 1 for n, t in stacks(4, 16).items()}
    for call in (
        lambda **words: edit_state_dict(base, tuned, gamma=0.3, **words),
        lambda **words: scale_task_vector(tuned, alpha=0.3, beta=0.7, **words),
    ):
        with pytest.raises(LinesError, match=r"parameters\.blocks"):
            call()
    edited = edit_state_dict(base, tuned, gamma=0.3, blocks="core,refiner")
    for name in ("core.2.q.weight", "refiner.2.q.weight"):
        assert torch.allclose(edited[name] - base[name], torch.ones(1), atol=1e-6)


def test_single_files_of_flux_and_of_unknown_stacks(tmp_path: Path) -> None:
    """`edit` scales Flux's last single block by 1; stacks of unknown order are refused by name."""
    base = {name: torch.zeros(4) for name in flux()}
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "out")]
    save_file(base, paths[0])
    save_file({name: torch.ones(4) for name in base}, paths[1])
    words = [
        "edit",
        str(paths[1]),
        "--base",
        str(paths[0]),
        "--gamma",
        "0.3",
        "--out",
        str(paths[2]),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    merged = load_file(paths[2])
    for name, want in (
        ("double_blocks.0.img_attn.qkv.weight", 0.3),
        ("single_blocks.0.linear1.weight", 0.3 + 0.7 * 19 / 56),
        ("single_blocks.37.linear1.weight", 1.0),
        ("img_in.weight", 0.3),
    ):
        assert merged[name] == pytest.approx(torch.full((4,), want), abs=1e-6), name
    for path, add in zip(paths, (0, 1), strict=False):
        save_file({name: tensor + add for name, tensor in stacks(4, 16).items()}, path)
    refused = CliRunner().invoke(main, [*words[:-1], str(tmp_path / "other.safetensors")])
    assert refused.exit_code == 1
    assert "outside: refiner" in refused.output
    assert not (tmp_path / "other.safetensors").exists()


def test_mergekit_pytorch_tells_the_blocks(server: ForkServer, tmp_path: Path) -> None:
    """The command says once which blocks it found, and refuses lists that it takes for none."""
    document: dict[str, Any] = {
        "merge_method": "lines_postprocess",
        "base_model": "base.safetensors",
        "models": [{"model": "tuned.safetensors"}],
        "parameters": {"gamma": 0.3},
    }

    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def merged(names: Iterable[str], out: str) -> Any:
        for file, value in (("base", 0.0), ("tuned", 1.0)):
            tensors = {name: torch.full((4,), value) for name in names}
            save_file(tensors, tmp_path / f"{file}.safetensors")
        return server.run(["mergekit-pytorch", "recipe.yml", out], tmp_path, tmp_path)

    told = merged(flux(), "flux").succeeded().stderr
    assert told.count("double_blocks → single_blocks: 57 blocks") == 1
    assert told.count("outside: 2 of 610 tensors") == 1
    flat = merged(["fc.weight", "head.weight"], "flat").succeeded().stderr
    assert flat.count("no residual blocks found") == 1
    bare = merged([f"layers.{index}.w" for index in range(3)], "bare")
    assert bare.returncode == 1
    assert "(blocks: none; outside: layers)" in bare.stderr
