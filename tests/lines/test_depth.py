"""Depth: the block of every tensor, from names alone; expectations are written by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as hf

from mergekit_lines.errors import LinesError
from mergekit_lines.lines.depth import BlockDepth, block_depths, containers, natural_key
from tests.lines.depth_models import MODELS, OLDER, RENAMED, t5, two_towers, vit
from tests.lines.depth_names import (
    ATTENTION,
    BLOCK,
    CHECKPOINTS,
    ENDS,
    GLU,
    NORMS,
    Place,
    listed,
    llama,
    mixtral,
    open_clip,
    timm_convnext,
)


def place(depths: dict[str, BlockDepth | None], name: str) -> Place:
    depth = depths[name]
    return None if depth is None else (depth.container, depth.index)


# --- real models, built on the meta device ---------------------------------------------------


def build(kind: str, config: dict[str, Any]) -> list[str]:
    model_class = getattr(hf, kind)
    with torch.device("meta"):
        return list(model_class(model_class.config_class(**config)).state_dict())


@pytest.mark.parametrize(
    ("kind", "config", "counts", "places"),
    MODELS,
    ids=[f"{i}-{r[0]}" for i, r in enumerate(MODELS)],
)
def test_models_of_transformers(
    kind: str, config: dict[str, Any], counts: dict[str, int], places: dict[str, Place]
) -> None:
    """The names of a transformers model give its containers, counts and blocks."""
    if OLDER and kind in RENAMED:
        pytest.skip("the names in the table are those of transformers 5.23")
    depths = block_depths(build(kind, config))
    assert containers(depths) == counts
    assert {name: place(depths, name) for name in places} == places


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_two_towers_have_a_count_each(kind: str) -> None:
    """The text and the vision tower each have a container with its own count."""
    with torch.device("meta"):
        names = list(two_towers(kind, 3, 13).state_dict())
    depths = block_depths(names)
    assert containers(depths) == {
        "text_model.encoder.layers": 3,
        "vision_model.encoder.layers": 13,
    }
    assert place(depths, "text_model.encoder.layers.2.mlp.fc1.weight") == (
        "text_model.encoder.layers",
        2,
    )
    assert place(depths, "vision_model.encoder.layers.12.mlp.fc1.weight") == (
        "vision_model.encoder.layers",
        12,
    )
    assert place(depths, "vision_model.post_layernorm.weight") is None


# --- names as they stand in checkpoints ------------------------------------------------------


@pytest.mark.parametrize("key", CHECKPOINTS)
def test_checkpoint_names(key: str) -> None:
    """Names as they stand in checkpoints give their containers, counts and blocks."""
    make, counts, places = CHECKPOINTS[key]
    depths = block_depths(make())
    assert containers(depths) == counts
    assert {name: place(depths, name) for name in places} == places


# --- traps of PAPER.md -----------------------------------------------------------------------


def test_every_expert_is_in_the_block_of_its_layer() -> None:
    """Expert indices never stand for block indices, whatever their number."""
    depths = block_depths(mixtral(9, 64))
    for name, depth in depths.items():
        if ".layers." in name:
            assert depth == BlockDepth("model.layers", int(name.split(".")[2]), 9)


@pytest.mark.parametrize(
    ("beside", "expert"),
    [
        (["norm.weight", "gate.weight"], GLU),
        ([*ATTENTION, *NORMS, "gate.weight"], ["norm.weight", *GLU]),
    ],
    ids=["no attention beside the experts", "a norm in each expert"],
)
def test_unusual_experts_are_not_blocks(beside: list[str], expert: list[str]) -> None:
    """MoE blocks are no stages, be they without attention or their experts with a norm."""
    names = listed("model.layers", 3, [*beside, *listed("experts", 8, expert)])
    assert containers(block_depths([*names, *ENDS])) == {"model.layers": 3}


def test_sublayers_of_t5_are_not_blocks() -> None:
    """Every tensor of T5 has the number of its block, not that of its sublayer."""
    depths = block_depths(build("T5ForConditionalGeneration", t5(12, 7).to_dict()))
    for name, depth in depths.items():
        if ".block." in name:
            tower, _, index = name.split(".")[:3]
            count = {"encoder": 12, "decoder": 7}[tower]
            assert depth == BlockDepth(f"{tower}.block", int(index), count)


def test_sublayers_that_hold_like_attentions_are_not_blocks() -> None:
    """Sublayers are no blocks although self- and cross-attention have the same names."""
    attention = ["norm.weight", *ATTENTION]
    sublayers = [*(f"{j}.{p}" for j in (0, 1) for p in attention), "2.fc1.weight", "2.fc2.weight"]
    names = [f"decoder.layers.{i}.sublayers.{part}" for i in range(4) for part in sublayers]
    assert containers(block_depths(names)) == {"decoder.layers": 4}


def test_twelve_blocks_are_not_assumed() -> None:
    """Counts come from the names: 1, 2, 11, 24, 100 blocks are all found."""
    for count in (1, 2, 11, 24, 100):
        assert containers(block_depths(llama(count))) == {"model.layers": count}


# --- properties ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", CHECKPOINTS)
def test_order_and_repetition_do_not_matter(key: str) -> None:
    """Shuffled and repeated names give the same depths."""
    names = CHECKPOINTS[key][0]()
    expected = block_depths(names)
    for seed in range(3):
        shuffled = names + names[: len(names) // 2]
        random.Random(seed).shuffle(shuffled)
        assert block_depths(iter(shuffled)) == expected


def test_every_name_gets_an_answer() -> None:
    """The result has exactly the names that were given."""
    names = timm_convnext([1, 2, 3, 1])
    assert block_depths(names).keys() == set(names)


def test_one_block() -> None:
    """A container of one block has index 0 and count 1."""
    depth = block_depths(llama(1))["model.layers.0.mlp.up_proj.weight"]
    assert depth == BlockDepth("model.layers", 0, 1)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["weight", "bias"],
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        ["head.0.weight", "head.1.weight", "embed.weight"],
        ["layers.0", "layers.1"],
        ["encoder.fc1.weight", "encoder.fc2.weight"],
    ],
)
def test_no_blocks(names: list[str]) -> None:
    """Names without a numbered list of blocks, such as an MLP's, are all outside."""
    assert block_depths(names) == dict.fromkeys(names)


def test_natural_key_orders_numbers_by_value() -> None:
    """Digits in names are compared as numbers, of any length."""
    huge = "h." + "9" * 5000
    names = ["h.10.a", "h.2.a", "h.1.a", "h", huge, "", "g.100", "h.01.a"]
    expected = ["", "g.100", "h", "h.01.a", "h.1.a", "h.2.a", "h.10.a", huge]
    assert sorted(names, key=natural_key) == expected


def test_containers_are_in_natural_order() -> None:
    """The containers come in natural order with their counts."""
    block = [*ATTENTION, *NORMS]
    names = [n for k in ("t10", "t9", "t2") for n in listed(f"{k}.layers", 2, block)]
    assert list(containers(block_depths(names))) == ["t2.layers", "t9.layers", "t10.layers"]


# --- gaps and num_blocks ---------------------------------------------------------------------


def without(names: list[str], *prefixes: str) -> list[str]:
    return [name for name in names if not name.startswith(prefixes)]


def test_a_gap_is_refused() -> None:
    """A block index with no tensor is an error that names the container and the index."""
    names = without(llama(11), "model.layers.3.", "model.layers.7.")
    with pytest.raises(LinesError) as error:
        block_depths(names)
    assert error.value.message == (
        "[lines] The blocks of 'model.layers' run to index 10, but no tensor name has index 3, 7. "
        "Give all tensor names of the model, or num_blocks if some are not at hand."
    )


def test_gaps_in_two_containers_are_told_together() -> None:
    """All gaps are in one error, long lists of them shortened."""
    names = without(open_clip(9, 3), *(f"transformer.resblocks.{i}." for i in range(8)))
    names = without(names, "visual.transformer.resblocks.1.")
    with pytest.raises(LinesError) as error:
        block_depths(names)
    assert "2 problems" in error.value.message
    assert "has index 0, 1, 2, 3, 4 and 3 more." in error.value.message
    assert "of 'visual.transformer.resblocks' run to index 2" in error.value.message


def test_a_gap_inside_a_stage_is_refused() -> None:
    """A block missing from a stage is an error that names the list of that stage."""
    with pytest.raises(LinesError, match=r"blocks of 'stages\.2\.blocks' run to index 8, .* 4\."):
        block_depths(without(timm_convnext([3, 3, 9, 3]), "stages.2.blocks.4."))


def test_a_gap_beside_the_blocks_is_no_gap() -> None:
    """Gaps in lists that are no containers (heads, projectors) are fine."""
    names = [*llama(2), "classifier.1.weight", "classifier.4.weight", "projector.2.weight"]
    assert containers(block_depths(names)) == {"model.layers": 2}


def test_a_gap_in_a_container_not_chosen_is_no_error() -> None:
    """Only the containers in use must be whole."""
    names = without(open_clip(3, 5), "transformer.resblocks.0.")
    depths = block_depths(names, blocks=["visual.transformer.resblocks"])
    assert containers(depths) == {"visual.transformer.resblocks": 5}


def test_a_huge_index_is_refused_at_once() -> None:
    """A gap of almost 10**9 indices is told without listing them."""
    with pytest.raises(LinesError, match=r"index 2, 3, 4, 5, 6 and 999999992 more\."):
        block_depths([*llama(2), *(f"model.layers.999999999.{part}" for part in BLOCK)])


def test_num_blocks_counts_what_is_not_at_hand() -> None:
    """With num_blocks some of the names are enough, and the count is as given."""
    names = ["model.layers.3.mlp.down_proj.weight", "model.layers.5.self_attn.q_proj.weight"]
    depths = block_depths(names, num_blocks=32)
    assert depths == {
        names[0]: BlockDepth("model.layers", 3, 32),
        names[1]: BlockDepth("model.layers", 5, 32),
    }


def test_num_blocks_below_an_index_is_refused() -> None:
    """An index that num_blocks has no room for is an error."""
    with pytest.raises(LinesError) as error:
        block_depths(llama(11), num_blocks=10)
    assert error.value.message == (
        "[lines] num_blocks is 10, but 'model.layers' has a block of index 10: "
        "give the number of blocks of the whole model."
    )


@pytest.mark.parametrize("bad", [0, -1, True, 2.0, "12", float("nan")])
def test_num_blocks_must_be_a_positive_whole_number(bad: Any) -> None:
    """Anything but an int of at least 1 is refused."""
    with pytest.raises(LinesError) as error:
        block_depths(llama(2), num_blocks=bad)
    assert error.value.message == (
        f"[lines] num_blocks must be a whole number of at least 1, not {bad!r}."
    )


# --- blocks ----------------------------------------------------------------------------------


def towers() -> list[str]:
    return build("T5ForConditionalGeneration", t5(3, 5).to_dict())


@pytest.mark.parametrize("entry", ["decoder.block", "model.decoder.block"])
def test_blocks_chooses_a_container(entry: str) -> None:
    """A container is chosen by its full name or its last components; the rest is outside."""
    names = [f"model.{name}" for name in towers()]
    depths = block_depths(names, blocks=[entry])
    assert containers(depths) == {"model.decoder.block": 5}
    assert depths["model.encoder.block.0.layer.0.SelfAttention.q.weight"] is None


def test_blocks_takes_several() -> None:
    """Several containers can be chosen."""
    depths = block_depths(towers(), blocks=["encoder.block", "decoder.block"])
    assert depths == block_depths(towers())


def test_a_full_name_wins_over_an_ending() -> None:
    """A full name that is also the ending of another means the container itself."""
    depths = block_depths(open_clip(3, 5), blocks=["transformer.resblocks"])
    assert containers(depths) == {"transformer.resblocks": 3}


def test_blocks_may_name_a_list_that_was_not_found() -> None:
    """A numbered list named in full is taken although it is no container of itself."""
    names = build("Wav2Vec2ForCTC", vit(2))
    depths = block_depths(names, blocks=["wav2vec2.feature_extractor.conv_layers"])
    assert containers(depths) == {"wav2vec2.feature_extractor.conv_layers": 7}
    assert place(depths, "wav2vec2.encoder.layers.0.layer_norm.weight") is None


FOUND = " Containers found: decoder.block, encoder.block."


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["block"], "blocks: 'block' fits decoder.block, encoder.block; write more of it." + FOUND),
        (
            ["decoder.blocks"],
            "blocks: no container is 'decoder.blocks'. Did you mean 'decoder.block'?" + FOUND,
        ),
        (
            ["ncoder.block"],
            "blocks: no container is 'ncoder.block'. Did you mean 'encoder.block'?" + FOUND,
        ),
        (["layer"], "blocks: no container is 'layer'." + FOUND),
        ([""], "blocks: '' is not a container name." + FOUND),
        ([" "], "blocks: ' ' is not a container name." + FOUND),
        ([3], "blocks: 3 is not a container name." + FOUND),
        ([None], "blocks: None is not a container name." + FOUND),
        ([], "blocks must be a list of container names, not []."),
        ("decoder.block", "blocks must be a list of container names, not 'decoder.block'."),
        (
            ["decoder.block", "decoder.block"],
            "blocks: 'decoder.block' and 'decoder.block' overlap; choose one." + FOUND,
        ),
        (
            ["decoder.block", "decoder.block.0.layer"],
            "blocks: 'decoder.block' and 'decoder.block.0.layer' overlap; choose one." + FOUND,
        ),
    ],
)
def test_bad_choices_are_refused(blocks: Any, message: str) -> None:
    """A choice that is malformed, unknown, ambiguous or overlapping is an error that says so."""
    with pytest.raises(LinesError) as error:
        block_depths(towers(), blocks=blocks)
    assert error.value.message == f"[lines] {message}"


def test_a_choice_among_nothing_is_refused() -> None:
    """Where no container was found the error says so."""
    with pytest.raises(LinesError, match=r"no container is 'model\.layers'\. .* found: none\."):
        block_depths(["weight"], blocks=["model.layers"])


# --- odd names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        *["", ".", "..", "7", "0.0.0", "0", "層.層", "a b. .c", "layers.²", "layers.٣.w.x"],
        *["a\n1.0.b", "model.layers.00.mlp.up_proj.weight", "model.layers.-1.w.x"],
        "x." + "9" * 5000 + ".w.y",
    ],
)
def test_an_odd_name_beside_a_model_is_outside(odd: str) -> None:
    """An odd name neither crashes nor changes the depths of the rest."""
    depths = block_depths([*llama(11), odd])
    assert depths.pop(odd) is None
    assert depths == block_depths(llama(11))


def test_random_names_never_crash() -> None:
    """Whatever the names, the answer is a LinesError or indices below their counts."""
    rng = random.Random(0)
    parts = [
        "",
        "0",
        "1",
        "2",
        "10",
        "00",
        "a",
        "b",
        "layer",
        "layer1",
        "layer2",
        "é",
        " ",
        "weight",
    ]
    answered = 0
    for _ in range(3000):
        names = [
            ".".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(rng.randint(0, 25))
        ]
        blocks = None if rng.random() < 0.8 else [rng.choice(["a", "layer", "b.layer", "a.0.b"])]
        num_blocks = None if rng.random() < 0.7 else rng.choice([1, 3, 20])
        try:
            depths = block_depths(names, blocks=blocks, num_blocks=num_blocks)
        except LinesError:
            continue
        answered += 1
        assert depths.keys() == set(names)
        for depth in filter(None, depths.values()):
            assert 0 <= depth.index < depth.count
    assert answered > 500
