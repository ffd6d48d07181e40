"""Tiny models of many architectures, with their containers of blocks written by hand.

The names of transformers' classes, not of checkpoints: every row is made with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from tests import models

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
TOKENS: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        name: transformers' class.
        config: makes its configuration.
        containers: the containers of its blocks as the files name them, with their number of
            blocks; with that of every stage where blocks stand in stages.
    """

    name: str
    config: Callable[[], Any]
    containers: Mapping[str, int | tuple[int, ...]]

    def save(self, path: Path) -> Path:
        """Make the model."""
        return models.save(self.name, self.config(), path, seed=5)

    def depth(self, name: str) -> float | None:
        """Return (l-1)/(L-1) of a tensor by hand, or None where it is outside the blocks."""
        for container, blocks in self.containers.items():
            if not name.startswith(f"{container}."):
                continue
            first, *rest = name.removeprefix(f"{container}.").split(".")
            if isinstance(blocks, int):
                return int(first) / (blocks - 1)
            inner = int(rest[1]) if rest[0] in ("layers", "blocks") else 0
            # Between two stages: what shrinks the image belongs to the block behind it.
            last_of_stage = blocks[int(first)] if rest[0] == "downsample" else inner
            return (sum(blocks[: int(first)]) + last_of_stage) / (sum(blocks) - 1)
        return None


def _decoder(kind: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{kind}Config")(**{**DECODER, **TOKENS, **options})


def _encoder(kind: str, sizes: Mapping[str, Any] = ENCODER, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{kind}Config")(**{**sizes, **options})


def _clip() -> Any:
    text = {**ENCODER, "vocab_size": 96, "max_position_embeddings": 16, **TOKENS}
    return transformers.CLIPConfig(text_config=text, vision_config=dict(IMAGE), projection_dim=16)


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


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return transformers.Qwen2VLConfig(
        text_config={**DECODER, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )


def _deepseek(kind: str, **options: Any) -> Callable[[], Any]:
    return _decoder(
        kind,
        num_key_value_heads=4,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        head_dim=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        **options,
    )


def _t5() -> Any:
    return transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4
    )


def _whisper() -> Any:
    return transformers.WhisperConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        decoder_start_token_id=1,
        **TOKENS,
    )


def _convnext() -> Any:
    return transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_channels=3, image_size=32
    )


def _swin() -> Any:
    return transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4
    )


def _resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"
    )


def _distilbert() -> Any:
    return transformers.DistilBertConfig(
        vocab_size=96, dim=32, hidden_dim=48, n_layers=3, n_heads=4
    )


ROWS = (
    Row("ViTForImageClassification", _encoder("ViT", IMAGE), {"vit.encoder.layer": 3}),
    Row("BeitForImageClassification", _encoder("Beit", IMAGE), {"beit.encoder.layer": 3}),
    Row("Dinov2Model", _encoder("Dinov2", IMAGE), {"encoder.layer": 3}),
    Row("SwinForImageClassification", _swin, {"swin.encoder.layers": (1, 2)}),
    Row("ConvNextForImageClassification", _convnext, {"convnext.encoder.stages": (1, 1, 2, 1)}),
    Row("ResNetForImageClassification", _resnet, {"resnet.encoder.stages": (1, 2)}),
    Row(
        "CLIPModel",
        _clip,
        {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 3},
    ),
    Row(
        "LlavaForConditionalGeneration",
        _llava,
        {"language_model.model.layers": 3, "vision_tower.encoder.layers": 3},
    ),
    Row(
        "Gemma3ForConditionalGeneration",
        _gemma3,
        {"language_model.model.layers": 3, "vision_tower.encoder.layers": 3},
    ),
    Row("Qwen2VLForConditionalGeneration", _qwen2_vl, {"model.layers": 3, "visual.blocks": 2}),
    Row("DeepseekV2ForCausalLM", _deepseek("DeepseekV2"), {"model.layers": 3}),
    Row("DeepseekV3ForCausalLM", _deepseek("DeepseekV3"), {"model.layers": 3}),
    Row("GPTNeoXForCausalLM", _decoder("GPTNeoX"), {"gpt_neox.layers": 3}),
    Row("FalconForCausalLM", _decoder("Falcon"), {"transformer.h": 3}),
    Row("CohereForCausalLM", _decoder("Cohere"), {"model.layers": 3}),
    Row("BertModel", _encoder("Bert", vocab_size=96), {"encoder.layer": 3}),
    Row("BertForMaskedLM", _encoder("Bert", vocab_size=96), {"bert.encoder.layer": 3}),
    Row("T5ForConditionalGeneration", _t5, {"encoder.block": 3, "decoder.block": 2}),
    Row(
        "WhisperForConditionalGeneration",
        _whisper,
        {"model.encoder.layers": 3, "model.decoder.layers": 2},
    ),
    Row("LlamaForCausalLM", _decoder("Llama"), {"model.layers": 3}),
    Row("Qwen3ForCausalLM", _decoder("Qwen3", head_dim=8), {"model.layers": 3}),
    Row("MPNetModel", _encoder("MPNet", vocab_size=96), {"encoder.layer": 3}),
    Row(
        "RobertaForSequenceClassification",
        _encoder("Roberta", vocab_size=96),
        {"roberta.encoder.layer": 3},
    ),
    Row(
        "DistilBertModel",
        lambda: transformers.DistilBertConfig(
            vocab_size=96, dim=32, hidden_dim=48, n_layers=3, n_heads=4
        ),
        {"transformer.layer": 3},
    ),
)
