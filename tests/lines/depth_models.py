"""Models of transformers, and the block of each of their tensors, written by hand."""

from __future__ import annotations

from typing import Any

import transformers as hf
from packaging.version import Version

from tests.lines.depth_names import Place

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
