"""Tiny models of many architectures, with their containers of blocks written by hand.

The names of transformers' classes, not of checkpoints: every row is made with random weights.
``python -m tests.architectures`` merges and checks every row, and prints the table that
recipes/README.md shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers

from tests import models

ALPHA, BETA = 0.3, 0.5
DECODER: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ENCODER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
IMAGE: Mapping[str, Any] = {**ENCODER, "image_size": 16, "patch_size": 8}
TEXT: Mapping[str, Any] = {**ENCODER, "vocab_size": 96}
TOKENS: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Of encoders with decoders: three blocks and two.
PAIR: Mapping[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
    **TOKENS,
}
T5: Mapping[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
AUDIO: Mapping[str, Any] = {
    **ENCODER,
    "vocab_size": 32,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
EXPERTS: Mapping[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
ROUTED: Mapping[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    **ROUTED,
}

OPT: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    **TOKENS,
}
CONVNEXT: Mapping[str, Any] = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
    "image_size": 32,
}
SWIN: Mapping[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
RESNET: Mapping[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
SEGFORMER: Mapping[str, Any] = {
    "num_encoder_blocks": 2,
    "depths": [1, 2],
    "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2],
    "sr_ratios": [2, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}
GPT2: Mapping[str, Any] = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    **TOKENS,
}
LINEAR: Mapping[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
WHISPER: Mapping[str, Any] = {
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16,
}
JAMBA: Mapping[str, Any] = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
# What mergekit alone writes of a model: all tensors under the names of the base's files, all of
# them under some other names, not all of them, or nothing.
SAME, RENAMED, LOST, FAILS = "✓", "other names", "loses tensors", "fails"

Config = Callable[[], Any]
Containers = Mapping[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        name: transformers' class.
        config: makes its configuration.
        containers: the containers of its blocks as the files name them, with their number of
            blocks; with that of every stage where blocks stand in stages.
        lora: the modules that a LoRA adapter of it changes; none where none is tried.
        in_files: what the files call parts of the names that the adapter has from the class.
        older: other names of the containers, in files of older releases of transformers.
        mergekit: what mergekit writes with a method of its own.
    """

    name: str
    config: Config
    containers: Containers
    lora: tuple[str, ...] = ()
    mergekit: str = SAME
    in_files: Mapping[str, str] = field(default_factory=dict)
    older: Containers = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Make the model."""
        return models.save(self.name, self.config(), path, seed=5)

    def stored(self, name: str) -> str:
        """Return the name in the files of a parameter that an adapter names."""
        for part, in_files in self.in_files.items():
            name = name.replace(part, in_files)
        return name

    def depth(self, name: str) -> float | None:
        """Return (l-1)/(L-1) of a tensor by hand, or None where it is outside the blocks."""
        for container, blocks in {**self.containers, **self.older}.items():
            if not name.startswith(f"{container}."):
                continue
            first, *rest = name.removeprefix(f"{container}.").split(".")
            if isinstance(blocks, int):
                return int(first) / max(1, blocks - 1)
            within = 0
            if rest[0].isdecimal():  # the stage is the list of its blocks
                within = int(rest[0])
            elif rest[0] in ("layers", "blocks"):
                within = int(rest[1])
            elif rest[0] == "downsample":  # what shrinks the image belongs to the next block
                within = blocks[int(first)]
            return (sum(blocks[: int(first)]) + within) / (sum(blocks) - 1)
        return None


def _config(kind: str, sizes: Mapping[str, Any] = {}, **options: Any) -> Config:
    return lambda: getattr(transformers, f"{kind}Config")(**{**sizes, **options})


def _language(
    kind: str,
    *lora: str,
    name: str = "",
    at: str = "model.layers",
    mergekit: str = SAME,
    **options: Any,
) -> Row:
    """Return the row of a language model of three blocks."""
    config = _config(kind, {**DECODER, **TOKENS}, **options)
    return Row(f"{name or kind}ForCausalLM", config, {at: 3}, lora, mergekit)


def _gpt2(name: str, kind: str, *lora: str, **options: Any) -> Row:
    return Row(name, _config(kind, GPT2, **options), {"transformer.h": 3}, lora)


def _encoder(
    name: str, kind: str, at: str, *lora: str, mergekit: str = SAME, **options: Any
) -> Row:
    """Return the row of an encoder of three blocks over tokens."""
    return Row(name, _config(kind, TEXT, **options), {at: 3}, lora, mergekit)


def _pair(name: str, kind: str, **options: Any) -> Row:
    """Return the row of an encoder of three blocks and a decoder of two."""
    at = {"model.encoder.layers": 3, "model.decoder.layers": 2}
    return Row(name, _config(kind, PAIR, **options), at)


def _image(name: str, kind: str, at: str, mergekit: str = SAME) -> Row:
    """Return the row of a vision transformer of three blocks."""
    return Row(name, _config(kind, IMAGE), {at: 3}, (), mergekit)


def _staged(
    name: str, kind: str, sizes: Mapping[str, Any], at: str, mergekit: str = FAILS, **options: Any
) -> Row:
    """Return the row of a model whose blocks stand in stages."""
    return Row(name, _config(kind, sizes, **options), {at: tuple(sizes["depths"])}, (), mergekit)


def _clip() -> Any:
    text = {**TEXT, "max_position_embeddings": 16, **TOKENS}
    return transformers.CLIPConfig(text_config=text, vision_config=dict(IMAGE), projection_dim=16)


def _siglip() -> Any:
    return transformers.SiglipConfig(
        text_config={**TEXT, "max_position_embeddings": 16}, vision_config=dict(IMAGE)
    )


def _llava() -> Any:
    return transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **IMAGE},
        text_config={"model_type": "llama", **DECODER},
        image_token_id=90,
    )


def _gemma3() -> Any:
    return transformers.Gemma3Config(
        text_config={**DECODER, "head_dim": 8},
        vision_config={"model_type": "siglip_vision_model", **IMAGE},
        mm_tokens_per_image=1,
        boi_token_index=90,
        eoi_token_index=91,
        image_token_index=92,
    )


def _qwen_vl(kind: str, **vision: Any) -> Config:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "num_heads": 4, "patch_size": 8, "out_hidden_size": 32, **vision}
    return lambda: getattr(transformers, f"{kind}Config")(
        text_config={**DECODER, "head_dim": 8, "rope_parameters": rope},
        vision_config={"hidden_size": 32, "intermediate_size": 48, **vision},
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )


def _idefics3(kind: str) -> Config:
    return lambda: getattr(transformers, f"{kind}Config")(
        vision_config={**IMAGE, "max_image_size": {"longest_edge": 16}},
        text_config={"model_type": "llama", **DECODER},
        image_token_id=90,
        pad_token_id=0,
        scale_factor=2,
    )


def _blip2() -> Any:
    return transformers.Blip2Config(
        vision_config=dict(IMAGE),
        qformer_config={**TEXT, "encoder_hidden_size": 32, "num_hidden_layers": 2},
        text_config={"model_type": "opt", **OPT},
        num_query_tokens=4,
        image_token_index=90,
    )


LANGUAGE = (
    _language("Llama", "q_proj", "v_proj"),
    _language("Mistral"),
    _language("Qwen2"),
    _language("Qwen3", head_dim=8),
    _language("Qwen3_5Text", name="Qwen3_5", head_dim=8, **LINEAR),
    _language("Gemma", head_dim=8),
    _language("Gemma2", head_dim=8),
    _language("Gemma3Text", name="Gemma3", head_dim=8),
    _language("Phi"),
    _language("Phi3", "qkv_proj"),
    _language("Olmo2"),
    _language("StableLm"),
    _language("Starcoder2"),
    _language("SmolLM3"),
    _language("Granite"),
    _language("Glm4", head_dim=8),
    _language("Cohere", mergekit=FAILS),
    _language("Cohere2", head_dim=8),
    _language("GPTNeoX", "query_key_value", at="gpt_neox.layers", mergekit=FAILS),
    _language("Falcon", at="transformer.h", mergekit=FAILS),
    _gpt2("GPT2LMHeadModel", "GPT2", "c_attn"),
    _gpt2("GPTJForCausalLM", "GPTJ", rotary_dim=4),
    Row(
        "BloomForCausalLM",
        _config("Bloom", TOKENS, vocab_size=96, hidden_size=32, n_layer=3, n_head=4),
        {"transformer.h": 3},
    ),
    Row(
        "MptForCausalLM",
        _config("Mpt", vocab_size=96, d_model=32, n_layers=3, n_heads=4, max_seq_len=64),
        {"transformer.blocks": 3},
    ),
    Row("OPTForCausalLM", _config("OPT", OPT), {"model.decoder.layers": 3}),
    _language("Mamba", at="backbone.layers", state_size=4),
    _language("Rwkv", at="rwkv.blocks", attention_hidden_size=32, context_length=32),
    _language("Jamba", mergekit=LOST, **JAMBA),
    _language("Lfm2", layer_types=["conv", "conv", "full_attention"]),
)
OF_EXPERTS = (
    _language("Mixtral", "q_proj", "v_proj", mergekit=RENAMED, num_local_experts=4),
    _language("Phimoe", mergekit=RENAMED, num_local_experts=4),
    _language("Qwen2Moe", mergekit=RENAMED, shared_expert_intermediate_size=16, **EXPERTS),
    _language("Qwen3Moe", "q_proj", "o_proj", mergekit=RENAMED, head_dim=8, **EXPERTS),
    _language(
        "Qwen3Next",
        mergekit=RENAMED,
        head_dim=8,
        shared_expert_intermediate_size=16,
        **LINEAR,
        **EXPERTS,
    ),
    _language("Olmoe", mergekit=RENAMED, num_experts=4, num_experts_per_tok=2),
    _language("GraniteMoe", mergekit=RENAMED, num_local_experts=4, num_experts_per_tok=2),
    _language("Glm4Moe", mergekit=RENAMED, head_dim=8, **ROUTED),
    _language("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    _language("DeepseekV2", mergekit=LOST, **LATENT),
    _language("DeepseekV3", mergekit=LOST, **LATENT),
)
ENCODERS = (
    _encoder("BertModel", "Bert", "encoder.layer", "query", "value", mergekit=FAILS),
    _encoder("BertForMaskedLM", "Bert", "bert.encoder.layer", mergekit=FAILS),
    _encoder("BertForSequenceClassification", "Bert", "bert.encoder.layer"),
    _encoder("RobertaForSequenceClassification", "Roberta", "roberta.encoder.layer"),
    _encoder("MPNetModel", "MPNet", "encoder.layer"),
    _encoder("ElectraModel", "Electra", "encoder.layer", embedding_size=32),
    _encoder("DebertaV2ForSequenceClassification", "DebertaV2", "deberta.encoder.layer"),
    _encoder(
        "ModernBertForMaskedLM",
        "ModernBert",
        "model.layers",
        cls_token_id=1,
        sep_token_id=2,
        **TOKENS,
    ),
    Row(
        "DistilBertModel",
        _config("DistilBert", vocab_size=96, dim=32, hidden_dim=48, n_layers=3, n_heads=4),
        {"transformer.layer": 3},
        mergekit=FAILS,
    ),
    # All its layers are one block's weights.
    Row(
        "AlbertModel",
        _config("Albert", TEXT, embedding_size=16),
        {"encoder.albert_layer_groups.0.albert_layers": 1},
    ),
)
PAIRS = (
    Row(
        "T5ForConditionalGeneration",
        _config("T5", T5),
        {"encoder.block": 3, "decoder.block": 2},
        ("q", "v"),
        mergekit=FAILS,
    ),
    Row(
        "MT5ForConditionalGeneration", _config("MT5", T5), {"encoder.block": 3, "decoder.block": 2}
    ),
    _pair("BartForConditionalGeneration", "Bart"),
    _pair("MBartForConditionalGeneration", "MBart"),
    _pair("PegasusForConditionalGeneration", "Pegasus"),
    _pair("MarianMTModel", "Marian"),
    Row(
        "WhisperForConditionalGeneration",
        _config("Whisper", PAIR, **WHISPER),
        {"model.encoder.layers": 3, "model.decoder.layers": 2},
        ("q_proj", "v_proj"),
        mergekit=FAILS,
    ),
    Row("Wav2Vec2ForCTC", _config("Wav2Vec2", AUDIO), {"wav2vec2.encoder.layers": 3}),
    Row("HubertModel", _config("Hubert", AUDIO), {"encoder.layers": 3}, mergekit=FAILS),
)
VISION = (
    Row(
        "ViTForImageClassification",
        _config("ViT", IMAGE),
        {"vit.encoder.layer": 3},
        ("q_proj", "v_proj", "query", "value"),  # of older releases the latter
        mergekit=LOST,
        in_files={
            ".layers.": ".encoder.layer.",
            "attention.q_proj": "attention.attention.query",
            "attention.v_proj": "attention.attention.value",
        },
    ),
    _image("DeiTForImageClassification", "DeiT", "deit.encoder.layer"),
    _image("BeitForImageClassification", "Beit", "beit.encoder.layer", LOST),
    _image("Dinov2Model", "Dinov2", "encoder.layer", LOST),
    _image("DINOv3ViTModel", "DINOv3ViT", "layer", RENAMED),
    replace(
        _image("CLIPVisionModel", "CLIPVision", "encoder.layers"),
        older={"vision_model.encoder.layers": 3},
    ),
    _staged("SwinForImageClassification", "Swin", SWIN, "swin.encoder.layers", RENAMED),
    _staged("ConvNextForImageClassification", "ConvNext", CONVNEXT, "convnext.encoder.stages"),
    _staged(
        "ConvNextV2ForImageClassification", "ConvNextV2", CONVNEXT, "convnextv2.encoder.stages"
    ),
    _staged("ResNetForImageClassification", "ResNet", RESNET, "resnet.encoder.stages"),
    _staged("SegformerForImageClassification", "Segformer", SEGFORMER, "segformer.encoder.block"),
)
TEXT_AND_IMAGE = {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 3}
TOWERS = (
    Row("CLIPModel", _clip, TEXT_AND_IMAGE, ("q_proj", "v_proj"), mergekit=FAILS),
    Row("SiglipModel", _siglip, TEXT_AND_IMAGE),
    Row(
        "LlavaForConditionalGeneration",
        _llava,
        {"language_model.model.layers": 3, "vision_tower.encoder.layers": 3},
        ("o_proj", "up_proj"),
        mergekit=RENAMED,
        in_files={"model.language_model.": "language_model.model."},
        older={"vision_tower.vision_model.encoder.layers": 3},
    ),
    Row(
        "Gemma3ForConditionalGeneration",
        _gemma3,
        {"language_model.model.layers": 3, "vision_tower.encoder.layers": 3},
        mergekit=FAILS,
        older={"vision_tower.vision_model.encoder.layers": 3},
    ),
    Row(
        "Qwen2VLForConditionalGeneration",
        _qwen_vl("Qwen2VL", embed_dim=32, mlp_ratio=2),
        {"model.layers": 3, "visual.blocks": 2},
        mergekit=FAILS,
    ),
    Row(
        "Qwen2_5_VLForConditionalGeneration",
        _qwen_vl("Qwen2_5_VL", fullatt_block_indexes=[1]),
        {"model.layers": 3, "visual.blocks": 2},
    ),
    Row(
        "Qwen3VLForConditionalGeneration",
        _qwen_vl("Qwen3VL", deepstack_visual_indexes=[0]),
        {"model.language_model.layers": 3, "model.visual.blocks": 2},
        mergekit=FAILS,
    ),
    Row(
        "Idefics3ForConditionalGeneration",
        _idefics3("Idefics3"),
        {"model.text_model.layers": 3, "model.vision_model.encoder.layers": 3},
    ),
    Row(
        "SmolVLMForConditionalGeneration",
        _idefics3("SmolVLM"),
        {"model.text_model.layers": 3, "model.vision_model.encoder.layers": 3},
    ),
    Row(
        "Blip2ForConditionalGeneration",
        _blip2,
        {
            "vision_model.encoder.layers": 3,
            "qformer.encoder.layer": 2,
            "language_model.model.decoder.layers": 3,
        },
    ),
)
ROWS = (*LANGUAGE, *OF_EXPERTS, *ENCODERS, *PAIRS, *VISION, *TOWERS)

if __name__ == "__main__":
    from tests.columns import measured_table

    sys.stdout.write(measured_table())
