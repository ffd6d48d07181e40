"""What is predicted on examples, and how that is scored: the objectives of ``learn``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

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
from mergekit_lines.search.learning.examples import WHERE, Example, texts_of

OBJECTIVES = ("entropy", "loss")  # both in nats for each prediction; lower is better
Window = Sequence[int]


class Task(Protocol):
    """What a model predicts of its inputs.

    Attributes:
        unit: what one prediction is of.
        plural: what the inputs are called.
        most: inputs of each part that are measured, at most.
        measures: the objectives that the examples allow, and what else is measured.
    """

    unit: str
    plural: str
    most: int
    measures: tuple[str, ...]

    def inputs(self, examples: Sequence[Example]) -> list[Any]:
        """Return the inputs that examples are: one each, or several."""

    def sums(self, model: Any, batch: Sequence[Any], names: Sequence[str]) -> list[torch.Tensor]:
        """Return measures of a batch, each a sum over its predictions in float64."""

    def count(self, batch: Sequence[Any]) -> int:
        """Return the number of predictions."""

    def size(self, entry: Any) -> int:
        """Return the number of tokens of an input, 0 where it has none."""


def batches(inputs: Sequence[Any], size: int, seed: int) -> Iterator[list[Any]]:
    """Yield batches without end: every input once, in an order of the seed, and again."""
    left: list[Any] = []
    for turn in itertools.count():
        order = np.random.default_rng([seed, turn]).permutation(len(inputs))
        left += [inputs[place] for place in order]
        while len(left) >= size:
            yield left[:size]
            left = left[size:]


def means(task: Task, model: Any, inputs: Sequence[Any], size: int) -> dict[str, float]:
    """Return every measure of a model, per prediction, finite or not.

    Args:
        task: what is predicted.
        model: is held still.
        inputs: all of which are used.
        size: of a batch.
    """
    totals: list[list[float]] = []
    ordered = sorted(inputs, key=task.size, reverse=True)  # little padding; the longest first
    with still(model, 0):
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            totals.append([float(value) for value in task.sums(model, batch, task.measures)])
    count = task.count(inputs)
    columns = zip(task.measures, zip(*totals, strict=True), strict=True)
    return {name: _total(column) / count for name, column in columns}


def _total(values: Sequence[float]) -> float:
    """Return a sum; of infinities of both signs it is NaN, where fsum raises."""
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def measured(task: Task, model: Any, inputs: Sequence[Any], size: int) -> dict[str, float]:
    """Return :func:`means`, where all of them are finite.

    Raises:
        LinesError: one is not.
    """
    values = means(task, model, inputs, size)
    if not all(map(math.isfinite, values.values())):
        named = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise LinesError(
            f"{WHERE}: the model's predictions are not finite ({named}). Check the models, or "
            f"start from smaller coefficients."
        )
    return values


def scores(logits: torch.Tensor, targets: torch.Tensor | None, name: str) -> torch.Tensor:
    """Return a measure of predictions, summed in float64.

    Args:
        logits: [predictions, classes].
        targets: the right class of each, [predictions]; None where only entropy is asked for.
        name: ``entropy``, ``loss`` (negative log-likelihood), or ``accuracy``.
    """
    logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    if name == "entropy":
        # What a model never predicts has −∞, and adds nothing.
        each = -(logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)
    elif targets is None:
        raise ValueError(f"{name}: found no targets")
    elif name == "loss":
        each = -logs.gather(-1, targets[:, None])[:, 0]
    else:
        each = logits.argmax(-1) == targets
    return each.double().sum()


class Tokens:
    """Each next token of a text, by a causal language model.

    Args:
        model: the live one.
        tokenizer: its own, or None.
        path: of the examples, for errors.
        most_tokens: in a window; the model's positions, at most 1024, where it is None.

    Raises:
        LinesError: the model is no causal language model.
    """

    unit, plural, most = "token", "windows", 64
    measures: tuple[str, ...] = OBJECTIVES

    def __init__(self, model: Any, tokenizer: Any, path: Path, most_tokens: int | None) -> None:
        self._length = window_length(WHERE, model, most_tokens)
        self._model, self._tokenizer, self._path = model, tokenizer, path

    def inputs(self, examples: Sequence[Example]) -> list[Window]:
        """Return windows of token ids, each a text's beginning or what follows on it.

        Raises:
            LinesError: model and tokenizer do not fit.
        """
        rows = document_ids(WHERE, self._tokenizer, texts_of(examples), self._path)
        check_ids(WHERE, self._model, rows)
        return [window for _, window in cut_windows(rows, self._length)]

    def sums(self, model: Any, batch: Sequence[Window], names: Sequence[str]) -> list[torch.Tensor]:
        """Return measures of a batch; the tokens of a window but the first are predicted."""
        ids, mask = padded([row[:-1] for row in batch], 0, "right", input_device(model))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        totals = [torch.zeros((), dtype=torch.float64, device=logits.device) for _ in names]
        for number, row in enumerate(batch):
            own, targets = logits[number, : len(row) - 1], torch.tensor(row[1:])
            for place, name in enumerate(names):
                totals[place] = totals[place] + scores(own, targets.to(own.device), name)
        return totals

    def count(self, batch: Sequence[Window]) -> int:
        """Return the number of predicted tokens."""
        return sum(len(row) - 1 for row in batch)

    def size(self, entry: Window) -> int:
        """Return the number of tokens that are predicted."""
        return len(entry) - 1
