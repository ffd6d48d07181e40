"""``perplexity:FILE``: how well a causal language model predicts texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.evaluate.metric import Completions, Metric, metric
from mergekit_lines.evaluate.models import (
    check_ids,
    cut_windows,
    document_ids,
    input_device,
    padded,
    still,
    window_length,
)
from mergekit_lines.evaluate.partial import so_far
from mergekit_lines.evaluate.spec import FromSpec, Settings, Spec, count, read_options
from mergekit_lines.evaluate.texts import read_texts, text_digest

BATCH_SIZE = 8
QUARTERS = 4  # of the windows, after each of which it is told what they came to


class Perplexity(FromSpec):
    """Token-weighted perplexity: exp(Σ negative log-likelihood / number of tokens).

    Of a file of paragraphs, or of JSON lines with a ``text``, each a document. Before a document
    comes the tokenizer's beginning-of-text token, or its end-of-text token where it has no other
    (as in lm-evaluation-harness), and no other special token, so every token of the text is
    scored, once. A document of more tokens than ``max_length`` is cut in windows of that length;
    a window's first prediction sees one token, the last of the window before.

    Lower is better. The metric's examples are each document's mean negative log-likelihood in
    nats. Log-likelihoods are taken in fp32 from the model's logits, and added in float64.

    Options: ``batch_size`` (8), ``max_length`` (the model's positions, at most 1024), ``limit``.
    """

    takes = ("batch_size", "limit")

    def __init__(self, spec: Spec, split: str, settings: Settings) -> None:
        """Read the file.

        Raises:
            LinesError: it cannot be read, or an option is wrong.
        """
        options = read_options(spec, {"batch_size": count, "max_length": count, "limit": count})
        super().__init__(spec, split, spec.name or "perplexity")
        self._batch_size: int = options.get("batch_size", settings.batch_size or BATCH_SIZE)
        self._max_length: int | None = options.get("max_length")
        self._limit: int | None = options.get("limit", settings.limit)
        self._file = read_texts(spec.text, Path(spec.args), "text")
        self._documents = self._file.first(self._limit)

    def identity(self) -> dict[str, Any]:
        """Return what the number hangs on: options and the file's digest."""
        options = {
            "batch_size": self._batch_size,
            "max_length": self._max_length,
            "limit": self._limit,
        }
        return self.described(options, {str(self._file.path): self._file.sha256}, {})

    def digests(self) -> frozenset[str]:
        """Return the digest of every document that is used."""
        return frozenset(map(text_digest, self._documents))

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        completions: Completions | None = None,
        processor: Callable[[], Any] | None = None,
    ) -> dict[str, Metric]:
        """Return the one metric.

        Raises:
            LinesError: the model is no causal language model, has no tokenizer, or the
                perplexity is not finite.
        """
        length = window_length(self.spec, model, self._max_length)
        rows = document_ids(self.spec, tokenizer, self._documents, self._file.path)
        check_ids(self.spec, model, rows)
        windows = cut_windows(rows, length)
        windows.sort(key=lambda window: -len(window[1]))  # little padding; the longest first
        sums, seen = [0.0] * len(rows), [0] * len(rows)
        quarter = -(-len(windows) // QUARTERS)
        with still(model, 0):
            for start in range(0, len(windows), self._batch_size):
                batch = windows[start : start + self._batch_size]
                losses = self._losses(model, [row for _, row in batch])
                for (number, row), loss in zip(batch, losses, strict=True):
                    sums[number] += loss
                    seen[number] += len(row) - 1
                done = start + len(batch)
                if done // quarter > start // quarter and done < len(windows):
                    so_far({self.name: self._metric(math.fsum(sums) / sum(seen), None)})
        counts = [len(row) - 1 for row in rows]
        examples = [total / tokens for total, tokens in zip(sums, counts, strict=True)]
        return {self.name: self._metric(math.fsum(sums) / sum(counts), examples)}

    def _metric(self, mean: float, examples: Sequence[float] | None) -> Metric:
        value = math.exp(mean) if not mean > 700 else math.inf  # e^710 is no float64
        return metric(
            self.spec,
            self.name,
            value,
            origin=self._file.path.name,
            higher_is_better=False,
            examples=examples,
            exponential=True,
        )

    def _losses(self, model: Any, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return each window's summed negative log-likelihood, in nats."""
        import torch

        ids, mask = padded([row[:-1] for row in rows], 0, "right", input_device(model))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        losses = []
        for number, row in enumerate(rows):
            targets = torch.tensor(row[1:], device=logits.device)
            scores = logits[number, : len(targets)].float()
            each = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
            losses.append(each.double().sum().item())
        return losses
