"""Depth: the block of every tensor, from names alone; expectations are written by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from packaging.version import Version

from mergekit_lines.errors import LinesError
from mergekit_lines.lines.depth import BlockDepth, block_depths, containers, natural_key

Place = tuple[str, int] | None


def place(depths: dict[str, BlockDepth | None], name: str) -> Place:
    depth = depths[name]
    return None if depth is None else (depth.container, depth.index)


# --- real models, built on the meta device ---------------------------------------------------

LM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def vit(layers: int) -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
    }


def t5(layers: int, decoder: int, **more: Any) -> hf.T5Config:
    return hf.T5Config(
        d_model=32, d_ff=64, num_heads=4, num_layers=layers, num_decoder_layers=decoder, **more
    )


def seq2seq(layers: int, decoder: int) -> dict[str, int]:
    return {
        "d_model": 32,
        "encoder_layers": layers,
        "decoder_layers": decoder,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }


def two_towers(kind: str, text: int, vision: int) -> Any:
    config = getattr(hf, f"{kind}Config")(text_config=vit(text), vision_config=vit(vision))
    return getattr(hf, f"{kind}Model")(config)


# (class, arguments of its config, {container: count}, {tensor: (container, block) or None})
Row = tuple[str, dict[str, Any], dict[str, int], dict[str, Place]]
MODELS: list[Row] = [
    (
        "LlamaForCausalLM",
        {**LM, "num_hidden_layers": 11},
        {"model.layers": 11},
        {
            "model.layers.1.mlp.up_proj.weight": ("model.layers", 1),
            "model.layers.10.mlp.up_proj.weight": ("model.layers", 10),
            "model.embed_tokens.weight": None,
            "model.norm.weight": None,
            "lm_head.weight": None,
        },
    ),
    (
        "MistralForCausalLM",
        {**LM, "num_hidden_layers": 2},
        {"model.layers": 2},
        {
            "model.layers.1.self_attn.o_proj.weight": ("model.layers", 1),
            "lm_head.weight": None,
        },
    ),
    (
        "Qwen2ForCausalLM",
        {**LM, "num_hidden_layers": 12},
        {"model.layers": 12},
        {
            "model.layers.11.self_attn.q_proj.bias": ("model.layers", 11),
            "model.embed_tokens.weight": None,
        },
    ),
    (
        "Qwen3ForCausalLM",
        {**LM, "num_hidden_layers": 3},
        {"model.layers": 3},
        {"model.layers.2.self_attn.q_norm.weight": ("model.layers", 2), "model.norm.weight": None},
    ),
    (
        "Gemma2ForCausalLM",
        {**LM, "num_hidden_layers": 11},
        {"model.layers": 11},
        {
            "model.layers.10.pre_feedforward_layernorm.weight": ("model.layers", 10),
            "model.norm.weight": None,
        },
    ),
    (
        "Gemma3ForCausalLM",
        {**LM, "num_hidden_layers": 7},
        {"model.layers": 7},
        {"model.layers.6.self_attn.k_norm.weight": ("model.layers", 6), "lm_head.weight": None},
    ),
    (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**LM, "num_hidden_layers": 11, "head_dim": 8},
            "vision_config": vit(5),
        },
        {"model.language_model.layers": 11, "model.vision_tower.encoder.layers": 5},
        {
            "model.vision_tower.encoder.layers.4.mlp.fc1.weight": (
                "model.vision_tower.encoder.layers",
                4,
            ),
            "model.language_model.layers.10.mlp.up_proj.weight": (
                "model.language_model.layers",
                10,
            ),
            "model.multi_modal_projector.mm_input_projection_weight": None,
            "model.vision_tower.head.mlp.fc1.weight": None,
        },
    ),
    (
        "PhiForCausalLM",
        {**LM, "num_hidden_layers": 4},
        {"model.layers": 4},
        {
            "model.layers.3.self_attn.dense.bias": ("model.layers", 3),
            "model.final_layernorm.weight": None,
        },
    ),
    (
        "Phi3ForCausalLM",
        {**LM, "num_hidden_layers": 13},
        {"model.layers": 13},
        {
            "model.layers.12.self_attn.qkv_proj.weight": ("model.layers", 12),
            "lm_head.weight": None,
        },
    ),
    (
        "GPT2LMHeadModel",
        {"n_layer": 11, "n_embd": 32, "n_head": 4},
        {"transformer.h": 11},
        {
            "transformer.h.10.attn.c_attn.weight": ("transformer.h", 10),
            "transformer.wte.weight": None,
            "transformer.ln_f.bias": None,
        },
    ),
    (
        "GPTNeoXForCausalLM",
        {**LM, "num_hidden_layers": 6},
        {"gpt_neox.layers": 6},
        {
            "gpt_neox.layers.5.attention.dense.bias": ("gpt_neox.layers", 5),
            "gpt_neox.embed_in.weight": None,
        },
    ),
    (
        "FalconForCausalLM",
        {**LM, "num_hidden_layers": 5},
        {"transformer.h": 5},
        {
            "transformer.h.4.mlp.dense_4h_to_h.weight": ("transformer.h", 4),
            "transformer.ln_f.weight": None,
        },
    ),
    (
        "BloomForCausalLM",
        {"hidden_size": 32, "n_head": 4, "n_layer": 3},
        {"transformer.h": 3},
        {
            "transformer.h.2.self_attention.dense.bias": ("transformer.h", 2),
            "transformer.word_embeddings_layernorm.weight": None,
        },
    ),
    (
        "OPTForCausalLM",
        {**LM, "ffn_dim": 64, "num_hidden_layers": 11},
        {"model.decoder.layers": 11},
        {
            "model.decoder.layers.10.fc2.weight": ("model.decoder.layers", 10),
            "model.decoder.embed_positions.weight": None,
        },
    ),
    (
        "Olmo2ForCausalLM",
        {**LM, "num_hidden_layers": 9},
        {"model.layers": 9},
        {
            "model.layers.8.post_feedforward_layernorm.weight": ("model.layers", 8),
            "model.norm.weight": None,
        },
    ),
    (
        "MambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 11, "vocab_size": 64},
        {"backbone.layers": 11},
        {
            "backbone.layers.10.mixer.A_log": ("backbone.layers", 10),
            "backbone.norm_f.weight": None,
        },
    ),
    (  # attention, Mamba, dense and MoE blocks in one list
        "JambaForCausalLM",
        {**LM, "num_hidden_layers": 11, "num_experts": 16},
        {"model.layers": 11},
        {
            "model.layers.4.self_attn.q_proj.weight": ("model.layers", 4),
            "model.layers.10.mamba.A_log": ("model.layers", 10),
            "model.final_layernorm.weight": None,
        },
    ),
    (  # blocks of three tensors between Mamba blocks
        "NemotronHForCausalLM",
        {**LM, "hybrid_override_pattern": "M-M*-"},
        {"model.layers": 5},
        {
            "model.layers.1.mixer.up_proj.weight": ("model.layers", 1),
            "model.layers.3.mixer.q_proj.weight": ("model.layers", 3),
            "model.embeddings.weight": None,
        },
    ),
    (
        "MixtralForCausalLM",
        {**LM, "num_hidden_layers": 3, "num_local_experts": 8},
        {"model.layers": 3},
        {
            "model.layers.2.mlp.experts.down_proj": ("model.layers", 2),
            "model.layers.0.mlp.gate.weight": ("model.layers", 0),
        },
    ),
    (
        "Qwen2MoeForCausalLM",
        {**LM, "num_hidden_layers": 4, "num_experts": 12},
        {"model.layers": 4},
        {
            "model.layers.3.mlp.shared_expert.up_proj.weight": ("model.layers", 3),
            "lm_head.weight": None,
        },
    ),
    (
        "DeepseekV3ForCausalLM",
        {**LM, "num_hidden_layers": 6, "first_k_dense_replace": 2, "n_routed_experts": 16},
        {"model.layers": 6},
        {
            "model.layers.1.mlp.gate_proj.weight": ("model.layers", 1),
            "model.layers.5.mlp.shared_experts.up_proj.weight": ("model.layers", 5),
        },
    ),
    (
        "BertForSequenceClassification",
        vit(11),
        {"bert.encoder.layer": 11},
        {
            "bert.encoder.layer.10.attention.self.key.bias": ("bert.encoder.layer", 10),
            "bert.pooler.dense.weight": None,
            "classifier.weight": None,
        },
    ),
    (
        "RobertaForSequenceClassification",
        vit(3),
        {"roberta.encoder.layer": 3},
        {
            "roberta.encoder.layer.2.output.dense.weight": ("roberta.encoder.layer", 2),
            "classifier.out_proj.weight": None,
        },
    ),
    (
        "DistilBertForSequenceClassification",
        {"n_layers": 7, "dim": 32, "hidden_dim": 64, "n_heads": 4},
        {"distilbert.transformer.layer": 7},
        {
            "distilbert.transformer.layer.6.ffn.lin1.weight": ("distilbert.transformer.layer", 6),
            "pre_classifier.weight": None,
        },
    ),
    (  # one block, shared by all depths
        "AlbertForSequenceClassification",
        vit(11),
        {"albert.encoder.albert_layer_groups": 1},
        {
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": (
                "albert.encoder.albert_layer_groups",
                0,
            ),
            "albert.encoder.embedding_hidden_mapping_in.weight": None,
        },
    ),
    (
        "ViTForImageClassification",
        vit(13),
        {"vit.layers": 13},
        {
            "vit.layers.12.mlp.fc1.weight": ("vit.layers", 12),
            "vit.embeddings.cls_token": None,
            "classifier.weight": None,
        },
    ),
    (
        "T5ForConditionalGeneration",
        t5(3, 5, feed_forward_proj="gated-gelu").to_dict(),
        {"encoder.block": 3, "decoder.block": 5},
        {
            "encoder.block.2.layer.0.SelfAttention.q.weight": ("encoder.block", 2),
            "decoder.block.0.layer.2.layer_norm.weight": ("decoder.block", 0),
            "decoder.block.4.layer.1.EncDecAttention.k.weight": ("decoder.block", 4),
            "encoder.final_layer_norm.weight": None,
            "shared.weight": None,
        },
    ),
    (
        "T5ForConditionalGeneration",
        t5(11, 1).to_dict(),
        {"encoder.block": 11, "decoder.block": 1},
        {
            "encoder.block.10.layer.1.DenseReluDense.wo.weight": ("encoder.block", 10),
            "decoder.block.0.layer.2.DenseReluDense.wo.weight": ("decoder.block", 0),
        },
    ),
    (
        "BartForConditionalGeneration",
        seq2seq(3, 5),
        {"model.encoder.layers": 3, "model.decoder.layers": 5},
        {
            "model.encoder.layers.2.fc1.weight": ("model.encoder.layers", 2),
            "model.decoder.layers.4.fc1.weight": ("model.decoder.layers", 4),
            "model.encoder.layernorm_embedding.weight": None,
        },
    ),
    (
        "WhisperForConditionalGeneration",
        seq2seq(32, 2),  # as in distil-whisper
        {"model.encoder.layers": 32, "model.decoder.layers": 2},
        {
            "model.encoder.layers.31.fc1.weight": ("model.encoder.layers", 31),
            "model.decoder.layers.1.encoder_attn.q_proj.weight": ("model.decoder.layers", 1),
            "model.encoder.conv1.weight": None,
        },
    ),
    (
        "Wav2Vec2ForCTC",
        {**vit(1), "feat_extract_norm": "layer", "conv_bias": True},  # as in wav2vec2-large
        {"wav2vec2.encoder.layers": 1},
        {
            "wav2vec2.encoder.layers.0.attention.k_proj.weight": ("wav2vec2.encoder.layers", 0),
            "wav2vec2.feature_extractor.conv_layers.6.conv.weight": None,
            "wav2vec2.feature_projection.projection.weight": None,
        },
    ),
    (
        "ConvNextForImageClassification",
        {"depths": [3, 3, 9, 3], "hidden_sizes": [8, 16, 32, 64]},
        {"convnext.encoder.stages": 18},
        {
            "convnext.encoder.stages.0.layers.2.dwconv.weight": ("convnext.encoder.stages", 2),
            "convnext.encoder.stages.1.downsampling_layer.0.weight": (
                "convnext.encoder.stages",
                3,
            ),
            "convnext.encoder.stages.2.layers.5.pwconv1.weight": ("convnext.encoder.stages", 11),
            "convnext.encoder.stages.3.downsampling_layer.1.bias": ("convnext.encoder.stages", 15),
            "convnext.encoder.stages.3.layers.2.layer_scale_parameter": (
                "convnext.encoder.stages",
                17,
            ),
            "convnext.embeddings.patch_embeddings.weight": None,
            "convnext.layernorm.weight": None,
        },
    ),
    (
        "ConvNextForImageClassification",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64]},
        {"convnext.encoder.stages": 4},
        {"convnext.encoder.stages.3.downsampling_layer.1.bias": ("convnext.encoder.stages", 3)},
    ),
    (
        "SwinForImageClassification",
        {"depths": [2, 2, 6, 2], "embed_dim": 24},
        {"swin.encoder.layers": 12},
        {
            "swin.encoder.layers.0.downsample.reduction.weight": ("swin.encoder.layers", 2),
            "swin.encoder.layers.1.blocks.0.mlp.fc1.weight": ("swin.encoder.layers", 2),
            "swin.encoder.layers.2.downsample.norm.bias": ("swin.encoder.layers", 10),
            "swin.encoder.layers.3.blocks.1.mlp.fc1.weight": ("swin.encoder.layers", 11),
            "swin.embeddings.norm.weight": None,
        },
    ),
    (
        "ResNetForImageClassification",
        {"depths": [3, 4, 6, 3], "embedding_size": 8, "hidden_sizes": [8, 16, 32, 64]},
        {"resnet.encoder.stages": 16},
        {
            "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight": (
                "resnet.encoder.stages",
                3,
            ),
            "resnet.encoder.stages.3.layers.2.layer.2.convolution.weight": (
                "resnet.encoder.stages",
                15,
            ),
            "classifier.1.weight": None,
        },
    ),
    (  # every stage has a patch embedding before and a norm after its blocks
        "SegformerForSemanticSegmentation",
        {"depths": [2, 2, 3, 2]},
        {"segformer.stages": 9},
        {
            "segformer.stages.2.patch_embeddings.proj.weight": ("segformer.stages", 4),
            "segformer.stages.3.blocks.1.mlp.fc1.weight": ("segformer.stages", 8),
            "decode_head.linear_projections.3.proj.weight": None,
        },
    ),
    (  # stages directly inside each other: encoder.block.0.0
        "PvtForImageClassification",
        {"depths": [2, 2, 3, 2]},
        {"pvt.encoder.block": 9},
        {
            "pvt.encoder.block.2.1.mlp.dense1.weight": ("pvt.encoder.block", 5),
            "pvt.encoder.patch_embeddings.2.projection.weight": None,
        },
    ),
    (
        "LlavaForConditionalGeneration",
        {
            "vision_config": {"model_type": "clip_vision_model", **vit(7)},
            "text_config": {"model_type": "llama", **LM, "num_hidden_layers": 11},
        },
        {"model.language_model.layers": 11, "model.vision_tower.encoder.layers": 7},
        {
            "model.vision_tower.encoder.layers.6.mlp.fc1.weight": (
                "model.vision_tower.encoder.layers",
                6,
            ),
            "model.multi_modal_projector.linear_1.weight": None,
        },
    ),
    (
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": {"depth": 5, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
            "text_config": {**LM, "num_hidden_layers": 11, "rope_parameters": ROPE},
        },
        {"model.language_model.layers": 11, "model.visual.blocks": 5},
        {
            "model.visual.blocks.4.attn.qkv.weight": ("model.visual.blocks", 4),
            "model.visual.merger.mlp.2.weight": None,
        },
    ),
]


# transformers renamed parameters of these after 5.0, or changed what their configs take.
RENAMED = {
    "Gemma3ForConditionalGeneration",
    "NemotronHForCausalLM",
    "ViTForImageClassification",
    "SwinForImageClassification",
    "SegformerForSemanticSegmentation",
    "LlavaForConditionalGeneration",
}
OLDER = Version(hf.__version__) < Version("5.23")


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

ATTENTION = [f"self_attn.{part}_proj.weight" for part in "qkvo"]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
GLU = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
ENDS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
BLOCK = [*ATTENTION, *NORMS, *(f"mlp.{part}" for part in GLU)]


def listed(prefix: str, count: int, parts: Sequence[str]) -> list[str]:
    return [f"{prefix}.{i}.{part}" for i in range(count) for part in parts]


def llama(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{n}" for n in [*listed("model.layers", count, BLOCK), *ENDS]]


def mixtral(layers: int, experts: int) -> list[str]:
    moe = listed("block_sparse_moe.experts", experts, ["w1.weight", "w2.weight", "w3.weight"])
    router = "block_sparse_moe.gate.weight"
    return [*listed("model.layers", layers, [*ATTENTION, *NORMS, router, *moe]), *ENDS]


def qwen2_moe(layers: int, experts: int) -> list[str]:
    moe = [*listed("mlp.experts", experts, GLU), "mlp.gate.weight", "mlp.shared_expert_gate.weight"]
    shared = [f"mlp.shared_expert.{part}" for part in GLU]
    return [*listed("model.layers", layers, [*ATTENTION, *NORMS, *moe, *shared]), *ENDS]


def deepseek(dense: int, sparse: int, experts: int) -> list[str]:
    moe = [*ATTENTION, *NORMS, "mlp.gate.weight", *listed("mlp.experts", experts, GLU)]
    return [
        *listed("model.layers", dense, BLOCK),
        *[f"model.layers.{dense + i}.{part}" for i in range(sparse) for part in moe],
        *ENDS,
    ]


def original_llava(layers: int, vision: int) -> list[str]:
    parts = [f"{part}.{end}" for part in CLIP_PARTS for end in ("weight", "bias")]
    tower = "model.vision_tower.vision_tower.vision_model"
    return [
        *llama(layers),
        *listed(f"{tower}.encoder.layers", vision, parts),
        f"{tower}.embeddings.class_embedding",
        *[f"model.mm_projector.{i}.{end}" for i in (0, 2) for end in ("weight", "bias")],
    ]


CLIP_PARTS = [
    *[f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")],
    *["mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"],
]
OPEN_CLIP_BLOCK = [
    *["ln_1.weight", "ln_1.bias", "ln_2.weight", "attn.in_proj_weight", "attn.in_proj_bias"],
    *["attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"],
]
TIMM_SWIN_BLOCK = [
    *["norm1.weight", "attn.relative_position_bias_table", "attn.qkv.weight", "attn.proj.weight"],
    *["norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight"],
]


def open_clip(text: int, vision: int) -> list[str]:
    return [
        *listed("transformer.resblocks", text, OPEN_CLIP_BLOCK),
        *listed("visual.transformer.resblocks", vision, OPEN_CLIP_BLOCK),
        *["positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"],
        *["visual.class_embedding", "visual.conv1.weight", "visual.ln_pre.weight", "visual.proj"],
    ]


def stages(prefix: str, inner: str, depths: Sequence[int], block: Sequence[str]) -> list[str]:
    return [n for s, d in enumerate(depths) for n in listed(f"{prefix}{s}{inner}", d, block)]


def timm_convnext(depths: Sequence[int]) -> list[str]:
    block = ["gamma", "conv_dw.weight", "norm.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
    return [
        *["stem.0.weight", "stem.1.weight"],
        *stages("stages.", ".blocks", depths, block),
        *[f"stages.{s}.downsample.{i}.weight" for s in range(1, len(depths)) for i in (0, 1)],
        *["head.norm.weight", "head.fc.weight"],
    ]


def timm_swin(depths: Sequence[int], down: Sequence[int]) -> list[str]:
    return [
        "patch_embed.proj.weight",
        *stages("layers.", ".blocks", depths, TIMM_SWIN_BLOCK),
        *[f"layers.{s}.downsample.{part}.weight" for s in down for part in ("norm", "reduction")],
        *["norm.weight", "head.fc.weight"],
    ]


def timm_efficientnet() -> list[str]:
    first = ["conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"]
    block = [f"{part}.weight" for part in [*first, "conv_pwl", "bn3"]]
    return [
        *["conv_stem.weight", "bn1.weight"],
        *[f"blocks.0.0.{part}.weight" for part in first],
        *[
            f"blocks.{s}.{i}.{p}"
            for s, n in enumerate([2, 2, 3, 1], 1)
            for i in range(n)
            for p in block
        ],
        *["conv_head.weight", "bn2.weight", "classifier.weight"],
    ]


def torchvision_resnet(depths: Sequence[int]) -> list[str]:
    block = [f"{part}{i}.weight" for i in (1, 2, 3) for part in ("conv", "bn")]
    return [
        *["conv1.weight", "bn1.weight", "fc.weight"],
        *[f"layer{s}.0.downsample.{i}.weight" for s in range(1, len(depths) + 1) for i in (0, 1)],
        *[f"layer{s}.{i}.{p}" for s, d in enumerate(depths, 1) for i in range(d) for p in block],
    ]


CHECKPOINTS: dict[str, tuple[Callable[[], list[str]], dict[str, int], dict[str, Place]]] = {
    "mixtral": (
        lambda: mixtral(11, 8),
        {"model.layers": 11},
        {
            "model.layers.7.block_sparse_moe.experts.0.w1.weight": ("model.layers", 7),
            "model.layers.10.block_sparse_moe.experts.1.w2.weight": ("model.layers", 10),
            "model.layers.1.block_sparse_moe.gate.weight": ("model.layers", 1),
        },
    ),
    "mixtral of one block": (
        lambda: mixtral(1, 8),
        {"model.layers": 1},
        {"model.layers.0.block_sparse_moe.experts.7.w1.weight": ("model.layers", 0)},
    ),
    "qwen2-moe, more experts than blocks": (
        lambda: qwen2_moe(3, 60),
        {"model.layers": 3},
        {
            "model.layers.2.mlp.experts.59.gate_proj.weight": ("model.layers", 2),
            "lm_head.weight": None,
        },
    ),
    "deepseek, dense blocks first": (
        lambda: deepseek(3, 2, 64),
        {"model.layers": 5},
        {
            "model.layers.2.mlp.up_proj.weight": ("model.layers", 2),
            "model.layers.4.mlp.experts.63.up_proj.weight": ("model.layers", 4),
        },
    ),
    "llava as first published": (
        lambda: original_llava(8, 24),
        {
            "model.layers": 8,
            "model.vision_tower.vision_tower.vision_model.encoder.layers": 24,
        },
        {
            "model.layers.7.mlp.up_proj.weight": ("model.layers", 7),
            "model.mm_projector.2.weight": None,
        },
    ),
    "open_clip": (
        lambda: open_clip(3, 11),
        {"transformer.resblocks": 3, "visual.transformer.resblocks": 11},
        {
            "visual.transformer.resblocks.10.attn.in_proj_weight": (
                "visual.transformer.resblocks",
                10,
            ),
            "transformer.resblocks.2.mlp.c_fc.weight": ("transformer.resblocks", 2),
            "visual.conv1.weight": None,
        },
    ),
    "timm ConvNeXt": (
        lambda: timm_convnext([3, 3, 9, 3]),
        {"stages": 18},
        {
            "stages.1.downsample.1.weight": ("stages", 3),
            "stages.2.blocks.5.gamma": ("stages", 11),
            "stem.1.weight": None,
        },
    ),
    "timm Swin, downsample opens a stage": (
        lambda: timm_swin([2, 2, 6, 2], [1, 2, 3]),
        {"layers": 12},
        {
            "layers.1.downsample.norm.weight": ("layers", 2),
            "layers.3.downsample.reduction.weight": ("layers", 10),
            "layers.3.blocks.1.attn.qkv.weight": ("layers", 11),
        },
    ),
    "older timm Swin, downsample closes a stage": (
        lambda: timm_swin([2, 2, 6, 2], [0, 1, 2]),
        {"layers": 12},
        {
            "layers.0.downsample.norm.weight": ("layers", 2),
            "layers.2.downsample.reduction.weight": ("layers", 10),
        },
    ),
    "timm EfficientNet": (
        timm_efficientnet,
        {"blocks": 9},
        {
            "blocks.0.0.conv_dw.weight": ("blocks", 0),
            "blocks.3.2.conv_pwl.weight": ("blocks", 7),
            "blocks.4.0.bn3.weight": ("blocks", 8),
            "conv_head.weight": None,
        },
    ),
    "torchvision ResNet, numbered from layer1": (
        lambda: torchvision_resnet([3, 4, 23, 3]),
        {"layer": 33},
        {
            "layer1.0.conv1.weight": ("layer", 0),
            "layer2.0.downsample.0.weight": ("layer", 3),
            "layer4.2.bn3.weight": ("layer", 32),
            "conv1.weight": None,
        },
    ),
    "LoRA names": (
        lambda: llama(11, "base_model.model."),
        {"base_model.model.model.layers": 11},
        {
            "base_model.model.model.layers.10.mlp.up_proj.weight": (
                "base_model.model.model.layers",
                10,
            )
        },
    ),
    "DDP names": (
        lambda: llama(2, "module."),
        {"module.model.layers": 2},
        {"module.model.norm.weight": None},
    ),
    "a wrapper numbered 0 is no block": (
        lambda: llama(11, "0."),
        {"0.model.layers": 11},
        {
            "0.model.layers.10.mlp.up_proj.weight": ("0.model.layers", 10),
            "0.model.norm.weight": None,
        },
    ),
    "base model without a prefix": (
        lambda: [*listed("h", 11, ["ln_1.weight", *ATTENTION]), "wte.weight"],
        {"h": 11},
        {"h.10.ln_1.weight": ("h", 10), "wte.weight": None},
    ),
}


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
