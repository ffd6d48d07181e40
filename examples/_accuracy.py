"""A text encoder as CLIP classifies: a text gets the class whose label's embedding is nearest.

The labels are embedded once, by the pre-trained model, and stay so: a model that is fine-tuned on
one task can still be asked about every other. ``tasks`` is for ``python:_accuracy:tasks``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path("texts")  # in the directory where it is measured
TEXTS, LABELS = "texts.json", "labels.safetensors"  # in that folder
PREFIX = "query: "  # as the encoder was trained with
LENGTH = 32  # tokens that are read of a text
BATCH = 64

Inputs = dict[str, torch.Tensor]


def inputs(tokenizer: Any, texts: Sequence[str]) -> Inputs:
    """Return the tokens of some texts, padded at the right."""
    texts = [PREFIX + text for text in texts]
    return dict(
        tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    )


def embed(model: Any, batch: Inputs) -> torch.Tensor:
    """Return embeddings of length 1, [texts, width]: the mean over a text's tokens."""
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    mask = batch["attention_mask"][..., None].float()
    means = (states.last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=-1)


@functools.cache
def _batches(folder: Path, split: str) -> dict[str, list[tuple[list[str], torch.Tensor]]]:
    """Return the texts and classes of each task, by length: a batch is then hardly padded."""
    batches = {}
    for task, splits in json.loads((folder / TEXTS).read_text(encoding="utf-8")).items():
        rows = sorted(splits[split], key=lambda row: len(row[0]))
        groups = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        batches[task] = [
            ([text for text, _ in group], torch.tensor([label for _, label in group]))
            for group in groups
        ]
    return batches


@torch.no_grad()
def tasks(model: Any, tokenizer: Any, split: str) -> dict[str, list[float]]:
    """Return for each task and text whether its class was found: 1 or 0."""
    labels = load_file(FOLDER / LABELS)
    right: dict[str, list[float]] = {}
    for task, groups in _batches(FOLDER.resolve(), split).items():
        right[task] = []
        for texts, classes in groups:
            cosines = embed(model, inputs(tokenizer, texts)) @ labels[task].T
            right[task] += (cosines.argmax(1) == classes).float().tolist()
    return right
