"""Cases of flags, and of the output folder."""

from __future__ import annotations

import torch

from tests.cases.case import NAN, UP, Case
from tests.cases.checkpoints import adapter_cache_is_a_file, base, set_entry, with_adapter
from tests.cases.output import (
    another_merge,
    dead_link,
    holding,
    link_to_itself,
    out_holds,
    out_is_an_input,
)
from tests.cases.recipes import top
from tests.models import INDEX

FLAGS = [
    Case(
        "flag-pickle",
        "--no-safe-serialization is refused.",
        top(),
        ("--no-safe-serialization", "safetensors", "Drop the flag"),
        flags=("--no-safe-serialization",),
        fault="flags",
    ),
    Case(
        "flag-truncate",
        "--unsafe-truncate-embeddings is refused with the tokenizer key.",
        top(),
        ("--unsafe-truncate-embeddings", "Drop the flag", "tokenizer"),
        flags=("--unsafe-truncate-embeddings",),
        fault="flags",
    ),
    Case(
        "flag-shard-size-zero",
        "A shard size of 0 is refused.",
        top(),
        ("--out-shard-size", "0", "wanted", "5B"),
        flags=("--out-shard-size", "0"),
        fault="flags",
    ),
    Case(
        "flag-device-unknown",
        "A device that torch does not know is refused.",
        top(),
        ("--device", "gpu", "wanted", "cuda"),
        flags=("--device", "gpu"),
        fault="flags",
    ),
    Case(
        "flag-lora-dtype-unknown",
        "An unknown --lora-merge-dtype is refused.",
        with_adapter(lambda path: None),
        ("--lora-merge-dtype", "float17", "wanted", "float16"),
        flags=("--lora-merge-cache", "cache", "--lora-merge-dtype", "float17"),
        fault="flags",
    ),
    Case(
        "flag-lora-cache-is-a-file",
        "--lora-merge-cache that is a file is refused by the flag's name.",
        adapter_cache_is_a_file,
        ("--lora-merge-cache", "cache"),
        flags=("--lora-merge-cache", "cache"),
        fault="flags",
    ),
    Case(
        "flag-device-absent",
        "A device that this torch was not built for is refused.",
        top(),
        ("--device", "xla", "Drop the flag"),
        flags=("--device", "xla"),
        fault="flags",
    ),
    Case(
        "flag-device-meta",
        "The device `meta`, on which nothing is computed, is refused.",
        top(),
        ("--device", "meta", "wanted"),
        flags=("--device", "meta"),
        fault="flags",
    ),
    *(
        []
        if torch.cuda.is_available()
        else [
            Case(
                "flag-cuda-without-cuda",
                "--cuda where torch sees no CUDA device is refused.",
                top(),
                ("--cuda", "CUDA", "Drop the flag", "CPU"),
                flags=("--cuda",),
                fault="flags",
            )
        ]
    ),
]


OUT = [
    Case(
        "out-is-a-file",
        "OUT that is a file is refused and stays.",
        holding("out"),
        ("OUT", "out", "found a file", "wanted a folder"),
        fault="out",
    ),
    Case(
        "out-below-a-file",
        "OUT whose parent is a file is refused.",
        holding("file"),
        ("OUT", "file", "not a folder", "another OUT"),
        fault="out",
        out="file/out",
    ),
    Case(
        "out-holds-a-model",
        "OUT that holds a model is refused and stays.",
        out_holds("b"),
        ("OUT", "out", "model.safetensors", "another OUT"),
        fault="out",
    ),
    Case(
        "out-holds-an-index",
        "OUT that holds the index of an old model is refused and stays.",
        out_holds(file=INDEX),
        ("OUT", "out", INDEX, "another OUT"),
        fault="out",
    ),
    Case(
        "out-holds-a-tokenizer",
        "OUT that holds an old tokenizer is refused: the merge would overwrite it.",
        out_holds(file="tokenizer.json"),
        ("OUT", "out", "tokenizer.json", "another OUT"),
        fault="out",
    ),
    Case(
        "out-is-an-input",
        "OUT that is one of the models is refused and stays.",
        out_is_an_input,
        ("OUT", "out", "model", "another OUT"),
        fault="out",
    ),
    Case(
        "out-is-a-dead-link",
        "OUT that is a link to nowhere is refused and stays.",
        dead_link,
        ("OUT", "out", "link", "another OUT"),
        fault="out",
    ),
    Case(
        "out-is-a-link-to-itself",
        "OUT that is a link to itself is refused and stays.",
        link_to_itself,
        ("OUT", "out", "link", "another OUT"),
        fault="out",
    ),
    Case(
        "out-name-too-long",
        "OUT whose name no file system takes is refused.",
        top(),
        ("OUT", "File name too long", "another OUT"),
        fault="out",
        out=300 * "x",
    ),
    Case(
        "out-below-new-folders",
        "The folders made for OUT go again when the merge is refused.",
        base(set_entry(UP, NAN)),
        (UP, "NaN"),
        fault="weights",
        out="new/folder/out",
    ),
    Case(
        "out-in-use",
        "OUT that another merge is writing is refused, and that merge's lock stays.",
        top(),
        ("OUT", "out", "another merge", "Wait"),
        fault="out",
        during=another_merge,
    ),
    Case(
        "out-partial-of-somebody-else",
        "A folder of somebody else's in the place of the partial folder is refused and stays.",
        holding(".out.partial/notes.txt"),
        (".out.partial", "in the way", "Remove or rename"),
        fault="out",
    ),
]
