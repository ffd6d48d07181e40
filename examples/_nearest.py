"""Logits of texts by the nearest label: ``--logits python:_nearest:logits`` of ``learn``.

A row names its text's task; the labels of that task alone are its classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from _accuracy import FOLDER, LABELS, embed, inputs
from safetensors.torch import load_file

SCALE = 100.0  # of cosines before the softmax, as CLIP's


def logits(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Return logits, [rows, classes of the task that has most]; −∞ where a task has fewer."""
    labels = load_file(FOLDER / LABELS)
    embeddings = embed(model, inputs(tokenizer, [row["text"] for row in rows]))
    most = max(len(labels[row["task"]]) for row in rows)
    scores = embeddings.new_full((len(rows), most), -torch.inf)
    for number, row in enumerate(rows):
        own = labels[row["task"]]
        scores[number, : len(own)] = SCALE * (own @ embeddings[number])
    return scores
