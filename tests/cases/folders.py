"""Cases of a model's folder: files that lack, are broken, or are something else."""

from __future__ import annotations

import torch

from tests.cases.case import MATRICES, UP, Case
from tests.cases.checkpoints import (
    base,
    break_header,
    config,
    edit_index,
    foreign_adapter,
    lone_shard_beside_index,
    model,
    other,
    packed,
    pickled_garbage,
    remove,
    set_tensors,
    sharded,
    shards,
    text,
    truncate,
    with_adapter,
)
from tests.cases.recipes import entry, recipe
from tests.models import INDEX

FOLDERS = [
    Case(
        "config-missing",
        "A folder without config.json is refused.",
        model(remove("config.json")),
        ("broken", "no config.json", "wanted"),
        fault="models",
    ),
    Case(
        "config-corrupt",
        "A config.json that is no JSON is refused.",
        model(text("config.json", '{"architectures": [')),
        ("broken/config.json", "cannot be read", "wanted", "JSON", "again"),
        fault="models",
    ),
    Case(
        "config-list",
        "A config.json that is a JSON list is refused.",
        model(text("config.json", "[]")),
        ("broken/config.json", "architectures", "save_pretrained"),
        fault="models",
    ),
    Case(
        "config-without-architectures",
        "A config.json that names no architectures is refused.",
        model(config(architectures=None)),
        ("broken/config.json", "architectures", "save_pretrained"),
        fault="models",
    ),
    Case(
        "config-architectures-not-a-list",
        "A config.json whose architectures is a text is refused by file and key.",
        model(config(architectures="LlamaForCausalLM")),
        ("broken/config.json", "architectures"),
        fault="models",
    ),
    Case(
        "config-with-a-wrong-value",
        "A config.json that transformers refuses is refused by file and key.",
        base(config(num_hidden_layers="four")),
        ("broken", "num_hidden_layers", "four"),
        fault="models",
    ),
    Case(
        "config-of-unknown-type",
        "A model type that transformers does not know is refused.",
        model(config(architectures=["FooForCausalLM"], model_type="foo")),
        ("broken", "foo", "transformers"),
        fault="models",
    ),
    Case(
        "quantised",
        "A quantised checkpoint is refused by its method.",
        model(packed({"quant_method": "gptq", "bits": 4})),
        ("broken", "quantised", "gptq", "wanted", "fp16"),
        fault="models",
    ),
    Case(
        "quantised-in-an-unknown-form",
        "A quantization_config that is no object is refused all the same.",
        model(packed(True)),
        ("broken", "quantised", "wanted"),
        fault="models",
    ),
    Case(
        "fp8",
        "fp8 weights without any word in the config are refused by tensor and dtype.",
        model(set_tensors(lambda tensor: tensor.to(torch.float8_e4m3fn), *MATRICES)),
        ("broken", "F8_E4M3", "q_proj.weight", "wanted", "bf16"),
        fault="models",
    ),
    Case(
        "empty-folder",
        "An empty folder is refused.",
        other(lambda path: path.mkdir()),
        ("broken", "no config.json", "wanted"),
        fault="models",
        problems=None,
    ),
    Case(
        "no-weights",
        "A folder without weights is refused.",
        model(remove("model.safetensors")),
        ("broken", "no model.safetensors", "wanted"),
        fault="models",
    ),
    Case(
        "weights-truncated",
        "A truncated weight file is refused.",
        model(truncate),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "weights-header-corrupt",
        "A weight file with a corrupt header is refused.",
        model(break_header),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "weights-empty",
        "An empty weight file is refused.",
        model(text("model.safetensors", "")),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "weights-are-an-lfs-pointer",
        "A Git LFS pointer in the place of the weights is refused.",
        model(
            text(
                "model.safetensors",
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n",
            )
        ),
        ("broken", "model.safetensors", "git-lfs pointer", "git lfs pull"),
        fault="models",
    ),
    Case(
        "pickle-corrupt",
        "A pickled checkpoint that is no archive is refused.",
        model(pickled_garbage),
        ("broken", "pytorch_model.bin", "again"),
        fault="models",
    ),
    Case(
        "shard-missing",
        "A missing shard is refused by name.",
        sharded(lambda path: shards(path)[1].unlink()),
        ("broken", "model-00002-of-", "not there", "Download"),
        fault="models",
    ),
    Case(
        "shard-truncated",
        "A truncated shard is refused by name.",
        sharded(truncate),
        ("broken/model-00005-of-00005.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "index-corrupt",
        "An index that is no JSON is refused.",
        sharded(text(INDEX, '{"weight_map": ')),
        (INDEX, "cannot be read", "wanted", "weight_map", "again"),
        fault="models",
    ),
    Case(
        "index-without-map",
        "An index without a weight_map is refused.",
        sharded(text(INDEX, "{}")),
        (INDEX, "wanted", "weight_map", "again"),
        fault="models",
    ),
    Case(
        "index-empty-map",
        "An index whose weight_map is empty is refused.",
        sharded(text(INDEX, '{"weight_map": {}}')),
        ("broken",),
        fault="models",
    ),
    Case(
        "index-names-absent-files",
        "An index that names files of another sharding is refused.",
        sharded(
            edit_index(
                lambda index: index["weight_map"].update(
                    dict.fromkeys(index["weight_map"], "model-00001-of-00099.safetensors")
                )
            )
        ),
        ("broken", "model-00001-of-00099.safetensors", "not there", "Download"),
        fault="models",
    ),
    Case(
        "index-points-outside",
        "An index that points outside its folder is refused.",
        sharded(edit_index(lambda index: index["weight_map"].update({UP: "../x.safetensors"}))),
        (INDEX, "../x.safetensors", "wanted", "outside"),
        fault="models",
    ),
    Case(
        "index-names-an-absent-tensor",
        "An index that names a tensor no shard holds is refused.",
        sharded(
            edit_index(
                lambda index: index["weight_map"].update(
                    {"model.extra.weight": "model-00001-of-00005.safetensors"}
                )
            )
        ),
        (INDEX, "model.extra.weight", "no shard holds", "again"),
        fault="models",
    ),
    Case(
        "two-forms-of-weights",
        "A folder with both model.safetensors and an index is refused.",
        sharded(lone_shard_beside_index),
        ("broken", "both", "model.safetensors", INDEX, "Remove"),
        fault="models",
    ),
    Case(
        "adapter-without-config",
        "An adapter without adapter_config.json is refused.",
        with_adapter(remove("adapter_config.json")),
        ("broken", "no adapter_config.json", "wanted", "PEFT"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-config-corrupt",
        "An adapter whose config is no JSON is refused.",
        with_adapter(text("adapter_config.json", "{")),
        ("broken", "adapter_config.json", "again"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-without-weights",
        "An adapter without weights is refused.",
        with_adapter(remove("adapter_model.safetensors")),
        ("broken", "no adapter_model.safetensors", "whole"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-truncated",
        "An adapter with truncated weights is refused.",
        with_adapter(truncate),
        ("broken", "adapter_model.safetensors", "again"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-of-another-model",
        "An adapter trained on a model of another width is refused.",
        foreign_adapter,
        ("broken", "llama_base", "adapter", "shape"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-folder-absent",
        "An adapter folder that is not there is refused.",
        lambda folder, models: recipe(
            models, models=[entry(f"{models.base}+{folder / 'absent'}"), entry(models.b)]
        ),
        ("absent", "no such folder", "Check"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-as-model",
        "An adapter's folder given as a model is answered with BASE+ADAPTER.",
        lambda folder, models: recipe(models, models=[entry(models.adapter), entry(models.b)]),
        ("adapter", "no config.json", "BASE+"),
        fault="models",
    ),
]
