"""Inputs of one prediction each, and their labels: what all that choose a class share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergekit_lines.errors import LinesError
from mergekit_lines.search.learning.examples import WHERE, Example, Examples
from mergekit_lines.search.learning.predictions import OBJECTIVES, scores


@dataclass(frozen=True)
class Input:
    """One input of a classifier.

    Attributes:
        content: token ids, an image's file, or a row of the data.
        target: its class, None where it is not known.
    """

    content: Any
    target: int | None


def number_of(label: Any) -> int | None:
    """Return the number that a label is, as an integer or as its digits; else None."""
    if isinstance(label, str):
        return int(label) if label.isdecimal() else None
    return label if type(label) is int and label >= 0 else None


class Labelled(ABC):
    """One of several classes for each input, as a :class:`~.predictions.Task` predicts it.

    Raises:
        LinesError: a label is none of the classes, or examples that are alike have labels of two.
    """

    most = 1024  # inputs of each part that are measured at most: each is one prediction

    def __init__(self, data: Examples) -> None:
        labelled = all(example.label is not None for example in data.examples)
        self.measures: tuple[str, ...] = (*OBJECTIVES, "accuracy") if labelled else ("entropy",)
        self._check_labels(data)

    @abstractmethod
    def target(self, example: Example) -> int | None:
        """Return the number of an example's class, None where it has no label.

        Raises:
            LinesError: there is no such class.
        """

    def _check_labels(self, data: Examples) -> None:
        """Check every label, also where not all examples have one: a wrong one is a mistake."""
        first: dict[str, tuple[Example, int]] = {}
        for example in data.examples:
            target = self.target(example)
            if target is None:
                continue
            other, before = first.setdefault(example.digest, (example, target))
            if before != target:
                raise LinesError(
                    f"{WHERE}: {other.place} and {example.place} hold the same "
                    f"{'image' if data.images else 'text'}, and their labels are {other.label!r} "
                    f"and {example.label!r}, wanted one. Take the wrong one out."
                )

    def count(self, batch: Sequence[Input]) -> int:
        """Return the number of predictions: one for each input."""
        return len(batch)

    def scored(
        self, logits: torch.Tensor, batch: Sequence[Input], names: Sequence[str]
    ) -> list[torch.Tensor]:
        """Return measures of a batch from its logits, [inputs, classes]."""
        targets = None
        if all(one.target is not None for one in batch):
            targets = torch.tensor([one.target for one in batch], device=logits.device)
        return [scores(logits, targets, name) for name in names]
