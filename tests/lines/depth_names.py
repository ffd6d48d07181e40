"""Names of tensors as they stand in checkpoints, and the block of each, written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Place = tuple[str, int] | None

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
