"""``perplexity:FILE``: how well a causal language model predicts texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate.metric import Completions, Metric, metric
from mergekit_lines.evaluate.models import (
    can_generate,
    check_ids,
    input_device,
    padded,
    positions,
    still,
    text_tokenizer,
    token_ids,
)
from mergekit_lines.evaluate.spec import FromSpec, Settings, Spec, count, read_options
from mergekit_lines.evaluate.texts import read_texts, text_digest

BATCH_SIZE = 8
MAX_LENGTH = 1024


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
        length = self._length(model)
        rows = self._encode(text_tokenizer(self.spec, tokenizer))
        check_ids(self.spec, model, rows)
        # The inputs of a window are all tokens but its last; its targets all but its first.
        windows = [
            (number, row[start : start + length + 1])
            for number, row in enumerate(rows)
            for start in range(0, len(row) - 1, length)
        ]
        windows.sort(key=lambda window: -len(window[1]))  # little padding; the longest first
        sums = [0.0] * len(rows)
        with still(model, 0):
            for start in range(0, len(windows), self._batch_size):
                batch = windows[start : start + self._batch_size]
                losses = self._losses(model, [row for _, row in batch])
                for (number, _), loss in zip(batch, losses, strict=True):
                    sums[number] += loss
        counts = [len(row) - 1 for row in rows]
        mean = math.fsum(sums) / sum(counts)
        value = math.exp(mean) if not mean > 700 else math.inf  # e^710 is no float64
        examples = [total / tokens for total, tokens in zip(sums, counts, strict=True)]
        return {
            self.name: metric(
                self.spec,
                self.name,
                value,
                origin=self._file.path.name,
                higher_is_better=False,
                examples=examples,
                exponential=True,
            )
        }

    def _length(self, model: Any) -> int:
        encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        if encoder or can_generate(model) is False:
            raise LinesError(
                f"{self.spec}: {type(model).__name__} is no causal language model, and has no "
                f"perplexity. Use another evaluator for it."
            )
        most = positions(model)
        if self._max_length is None:
            return min(most or MAX_LENGTH, MAX_LENGTH)
        if most is not None and self._max_length > most:
            raise LinesError(
                f"{self.spec}: max_length is {self._max_length}, and the model has {most} "
                f"positions. Give at most that."
            )
        return self._max_length

    def _encode(self, tokenizer: Any) -> list[list[int]]:
        """Return each document's token ids, behind the token that begins a text."""
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        if first is None:
            raise LinesError(
                f"{self.spec}: the tokenizer has no bos_token and no eos_token, and a text has to "
                f"begin with one. Set one in the model's tokenizer_config.json."
            )
        rows = []
        for number, text in enumerate(self._documents, 1):
            name = f"{self._file.path}, document {number} ({text[:40]!r})"
            rows.append([first, *token_ids(self.spec, tokenizer, text, name, special=False)])
        return rows

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
