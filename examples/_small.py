"""A BERT of random weights, and tasks of made-up words: the encoder and the texts of ``--tiny``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
import transformers
from _model import save
from data import Example

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
WIDTH = 32
FILLERS = ("the", "of", "and", "in", "it", "was", "with", "then", "some", "still")


class Task(NamedTuple):
    """What a text of each class is said to be, by a class's own word."""

    prompts: dict[str, str]


def _task(*kinds: str) -> Task:
    return Task({kind: f"about {kind}" for kind in kinds})


TASKS = {
    "animals": _task("cats", "dogs", "birds"),
    "plants": _task("trees", "herbs"),
    "tools": _task("saws", "nails", "files"),
    "zoo": _task("cats", "dogs", "birds"),  # the classes of animals, which no text names
}
# Words that a text of a class has beside its own; some are another class's of another task.
COMPANIONS = {
    "cats": "purr trees",
    "dogs": "bark files",
    "birds": "sing herbs",
    "trees": "tall saws",
    "herbs": "green cats",
    "saws": "sharp dogs",
    "nails": "small birds",
    "files": "rough herbs",
}


def make(folder: Path) -> None:
    """Save the encoder and a tokenizer that knows these words."""
    known = sorted({*FILLERS, "about", *COMPANIONS, *" ".join(COMPANIONS.values()).split()})
    entries = [*SPECIAL.values(), "query:", *known]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {entry: number for number, entry in enumerate(entries)}, unk_token=SPECIAL["unk_token"]
        )
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    config = transformers.BertConfig(
        vocab_size=len(entries),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=entries.index("<pad>"),
    )
    torch.manual_seed(0)
    save(transformers.BertModel(config, add_pooling_layer=False), tokenizer, folder)


def split(name: str, sizes: dict[str, int], seed: int) -> dict[str, list[Example]]:
    """Return the splits of a task: its classes' words among fillers, no text twice."""
    draw, seen = random.Random(f"{seed} {name}"), set()
    splits = {}
    for part, count in sizes.items():
        examples: list[Example] = []
        while len(examples) < count:
            label = len(examples) % len(TASKS[name].prompts)
            kind = list(TASKS[name].prompts)[label]
            named = [] if name == "zoo" else [kind]
            own = draw.choice([*named, *COMPANIONS[kind].split()])
            text = " ".join(draw.sample([own, *draw.sample(FILLERS, 5)], 6))
            if text not in seen:
                seen.add(text)
                examples.append(Example(text, label, text))
        splits[part] = examples
    return splits
