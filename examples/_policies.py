"""Policies by best-of-samples fine-tuning: draw completions, keep the best, learn them.

Also called rejection sampling: the simplest way to raise a reward that has no gradient.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from _model import padded

TEMPERATURE = 0.8
BATCH = 8
WARM_UP = 4  # steps; AdamW knows nothing of the gradients' size yet


class Sample(NamedTuple):
    """A completion that the base drew: tokens of the prompt, tokens that followed, their text."""

    prompt: list[int]
    tokens: list[int]
    text: str


@torch.no_grad()
def draw(model, tokenizer, prompts: Sequence[str], times: int, most: int) -> list[list[Sample]]:
    """Return ``times`` completions of each prompt, of at most ``most`` tokens."""
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):  # at the left: what follows is to follow at once
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    drawn = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=most,
        num_return_sequences=times,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )[:, width:].tolist()
    found: list[list[Sample]] = [[] for _ in rows]
    for number, row in enumerate(drawn):
        ended = tokenizer.eos_token_id in row  # the end is learnt too, what fills up is not
        tokens = row[: row.index(tokenizer.eos_token_id) + 1] if ended else row
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        found[number // times].append(Sample(rows[number // times], tokens, text))
    return found


def best(samples: Sequence[Sequence[Sample]], rewards: Sequence[Sequence[float]]) -> list[Sample]:
    """Return the sample of the highest reward of each prompt; of equal ones the first."""
    return [
        drawn[max(range(len(drawn)), key=lambda number: scores[number])]
        for drawn, scores in zip(samples, rewards, strict=True)
    ]


def learn(
    model: Any,
    chosen: Sequence[Sample],
    fill: int,
    steps: int,
    learning_rate: float,
    seed: int,
    step: Callable[[float], object],
) -> list[float]:
    """Fine-tune all weights on samples, prompts left out; return the loss of each step."""
    rows = [(sample.prompt, sample.tokens) for sample in chosen]
    shuffled, losses, left = random.Random(seed), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    model.train()
    for number in range(steps):
        if not left:
            left = shuffled.sample(rows, len(rows))
        batch, left = left[:BATCH], left[BATCH:]
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (number + 1) / WARM_UP)
        loss = model(**padded(batch, fill)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step(losses[-1])
    model.eval()
    return losses
