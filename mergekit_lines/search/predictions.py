"""What a language model predicts on plain texts: the data and the objectives of ``learn``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate.models import (
    check_ids,
    cut_windows,
    document_ids,
    input_device,
    padded,
    still,
    window_length,
)
from mergekit_lines.evaluate.texts import Texts, text_digest

OBJECTIVES = ("entropy", "loss")  # both in nats for each token; lower is better
WHERE = "--data"
Window = Sequence[int]


@dataclass(frozen=True)
class Parts:
    """Documents in two parts that share none.

    Attributes:
        training: those that are learnt from.
        held_out: those that are measured alone.
        repeated: how many documents were left out, for they stand in the file before.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    repeated: int


def parted(file: Texts, limit: int | None, share: float, seed: int) -> Parts:
    """Keep a share of a file's documents apart, chosen by the seed.

    Args:
        file: the documents; each counts once, however often it stands there.
        limit: use the first ones only.
        share: held out, between 0 and 1; one document at least.
        seed: of the choice.

    Raises:
        LinesError: there are fewer than two documents.
    """
    texts = file.first(limit)
    distinct = list({text_digest(text): text for text in reversed(texts)}.values())[::-1]
    if len(distinct) < 2:
        raise LinesError(
            f"{WHERE} {file.path}: found one document, wanted two at least: one to learn from, and "
            f"one that is held out. Documents are paragraphs parted by blank lines, or JSON lines."
        )
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(distinct))[:count].tolist())
    training = [text for place, text in enumerate(distinct) if place not in chosen]
    held_out = [text for place, text in enumerate(distinct) if place in chosen]
    return Parts(tuple(training), tuple(held_out), len(texts) - len(distinct))


def encoded(
    model: Any, tokenizer: Any, texts: Sequence[str], path: Path, most_tokens: int | None
) -> list[Window]:
    """Return documents as windows of token ids, each a text's beginning or what follows on it.

    Raises:
        LinesError: the model is no causal language model, or model and tokenizer do not fit.
    """
    length = window_length(WHERE, model, most_tokens)
    rows = document_ids(WHERE, tokenizer, texts, path)
    check_ids(WHERE, model, rows)
    return [window for _, window in cut_windows(rows, length)]


def batches(windows: Sequence[Window], size: int, seed: int) -> Iterator[list[Window]]:
    """Yield batches without end: every window once, in an order of the seed, and again."""
    left: list[Window] = []
    for turn in itertools.count():
        order = np.random.default_rng([seed, turn]).permutation(len(windows))
        left += [windows[place] for place in order]
        while len(left) >= size:
            yield left[:size]
            left = left[size:]


def sums(model: Any, batch: Sequence[Window], objectives: Sequence[str]) -> list[torch.Tensor]:
    """Return objectives of a batch, each a sum over its tokens in float64.

    Args:
        model: a causal language model.
        batch: windows; their tokens but the first are predicted.
        objectives: ``entropy`` of the predictions, ``loss`` (negative log-likelihood).
    """
    ids, mask = padded([row[:-1] for row in batch], 0, "right", input_device(model))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    totals = [torch.zeros((), dtype=torch.float64, device=logits.device) for _ in objectives]
    for number, row in enumerate(batch):
        scores = logits[number, : len(row) - 1]
        logs = (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(-1)
        for place, objective in enumerate(objectives):
            if objective == "entropy":
                # Tokens that a model never predicts have −∞, and add nothing.
                each = -(logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)
            else:
                targets = torch.tensor(row[1:], device=logs.device)
                each = -logs.gather(-1, targets[:, None])[:, 0]
            totals[place] = totals[place] + each.double().sum()
    return totals


def tokens(batch: Sequence[Window]) -> int:
    """Return the number of predicted tokens."""
    return sum(len(row) - 1 for row in batch)


def means(model: Any, windows: Sequence[Window], size: int) -> dict[str, float]:
    """Return every objective of a model on windows, per token, finite or not.

    Args:
        model: is held still.
        windows: all of which are used.
        size: of a batch.
    """
    totals: list[list[float]] = []
    ordered = sorted(windows, key=len, reverse=True)  # little padding; the longest first
    with still(model, 0):
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            totals.append([float(value) for value in sums(model, batch, OBJECTIVES)])
    count = tokens(windows)
    columns = zip(OBJECTIVES, zip(*totals, strict=True), strict=True)
    return {name: _total(column) / count for name, column in columns}


def _total(values: Sequence[float]) -> float:
    """Return a sum; of infinities of both signs it is NaN, where fsum raises."""
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def measured(model: Any, windows: Sequence[Window], size: int) -> dict[str, float]:
    """Return :func:`means`, where all of them are finite.

    Raises:
        LinesError: one is not.
    """
    values = means(model, windows, size)
    if not all(map(math.isfinite, values.values())):
        named = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise LinesError(
            f"{WHERE}: the model's predictions are not finite ({named}). Check the models, or "
            f"start from smaller coefficients."
        )
    return values
