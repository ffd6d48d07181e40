"""Texts from a model: batched, and the same from the same weights every time.

Without sampling the most likely token is taken. With it, a token is drawn from the softmax of
logits / temperature by the Gumbel-max trick: the largest of logits / temperature + noise. The
noise of a prompt is drawn on the CPU and hangs on the seed, the prompt's place in the file and
the token's place in the text only. So a text does not hang on the batch its prompt is in, and
models that are compared are given the same draws. Neither top-k nor top-p is applied; what else
the model's own generation_config asks for (end tokens, penalties) holds.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lines.errors import LinesError, reason
from mergekit_lines.evaluate.models import (
    can_generate,
    check_ids,
    input_device,
    padded,
    positions,
    token_ids,
)


@dataclass(frozen=True)
class Generation:
    """How texts are generated; ``temperature`` is None where nothing is sampled."""

    max_new_tokens: int
    batch_size: int
    temperature: float | None
    seed: int
    chat: bool

    def to_json(self) -> dict[str, Any]:
        """Return the options as a dictionary."""
        return dataclasses.asdict(self)


def generate(
    spec: str, model: Any, tokenizer: Any, prompts: Sequence[str], options: Generation
) -> list[str]:
    """Return a completion of each prompt, without special tokens.

    Args:
        spec: the evaluator's, for errors.
        model: in evaluation mode.
        tokenizer: the model's.
        prompts: in the order of their file.
        options: how.

    Raises:
        LinesError: the model cannot generate, the tokenizer has no chat template where one is
            asked for, or a prompt is too long or has no token.
    """
    if not can_generate(model):
        raise LinesError(
            f"{spec}: {type(model).__name__} cannot generate text. Use another evaluator for it."
        )
    rows = _encode(spec, model, tokenizer, prompts, options)
    check_ids(spec, model, rows)
    completions: list[str] = []
    for start in range(0, len(rows), options.batch_size):
        batch = rows[start : start + options.batch_size]
        completions += _batch(model, tokenizer, batch, start, options)
    return completions


def _encode(
    spec: str, model: Any, tokenizer: Any, prompts: Sequence[str], options: Generation
) -> list[list[int]]:
    if options.chat and not tokenizer.chat_template:
        raise LinesError(
            f"{spec}: the tokenizer has no chat template. Leave chat=true out, or give the model's "
            f"folder a chat_template.jinja."
        )
    encoder = model.config.is_encoder_decoder
    most = None if encoder else positions(model)
    rows = []
    for number, prompt in enumerate(prompts, 1):
        text = _in_template(spec, tokenizer, prompt) if options.chat else prompt
        name = f"prompt {number} ({prompt[:40]!r})"
        ids = token_ids(spec, tokenizer, text, name, special=not options.chat)
        if most is not None and len(ids) + options.max_new_tokens > most:
            raise LinesError(
                f"{spec}: {name} has {len(ids)} tokens, and with "
                f"max_new_tokens {options.max_new_tokens} that is more than the model's {most} "
                f"positions. Shorten the prompt, or ask for fewer new tokens."
            )
        rows.append(ids)
    return rows


def _in_template(spec: str, tokenizer: Any, prompt: str) -> str:
    message = [{"role": "user", "content": prompt}]
    try:
        text: str = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise LinesError(
            f"{spec}: the tokenizer's chat template failed on the prompt {prompt[:40]!r} "
            f"({reason(error)}). Mend the template, or leave chat=true out."
        ) from error
    return text


def _batch(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], start: int, options: Generation
) -> list[str]:
    """Return the completions of one batch, whose first prompt is number ``start`` of all."""
    from transformers import GenerationConfig, LogitsProcessorList

    encoder = model.config.is_encoder_decoder
    fill = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    ids, mask = padded(rows, fill, "right" if encoder else "left", input_device(model))
    ends = _end_tokens(model, tokenizer)
    processors = LogitsProcessorList()
    if options.temperature is not None:
        seeds = [f"{options.seed} {start + number}" for number in range(len(rows))]
        processors.append(Sampling(options.temperature, seeds))
    output = model.generate(
        ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            pad_token_id=fill,
            eos_token_id=sorted(ends) or None,
        ),
        logits_processor=processors,
    )
    new = output if encoder else output[:, ids.shape[1] :]
    return [tokenizer.decode(_until(row, ends), skip_special_tokens=True) for row in new.tolist()]


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    tokens = model.generation_config.eos_token_id
    if tokens is None:
        tokens = tokenizer.eos_token_id
    return set() if tokens is None else {tokens} if isinstance(tokens, int) else set(tokens)


def _until(row: Sequence[int], ends: set[int]) -> list[int]:
    """Return a row up to its first end token: padding follows it."""
    stop = next((place for place, token in enumerate(row) if token in ends), len(row))
    return list(row[:stop])


class Sampling:
    """A logits processor that turns greedy search into sampling with a row's own seeded noise."""

    def __init__(self, temperature: float, seeds: Sequence[str]) -> None:
        """Make a generator for each row of the batch."""
        import torch

        self._temperature = temperature
        # A hash: torch's CPU generator looks at the low 32 bits of its seed only.
        self._generators = [
            torch.Generator().manual_seed(zlib.crc32(seed.encode())) for seed in seeds
        ]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return logits / temperature + Gumbel noise; ``scores`` is [rows, vocabulary]."""
        import torch

        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        gumbel = -noise.clamp_min(torch.finfo(torch.float32).tiny).log()
        return scores.float() / self._temperature + gumbel.to(scores.device)
