"""The examples' models: loading, saving, batches of short answers, and their loss."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lines.errors import LinesError

# Its own short system message: the model's default one would double the length of every example.
SYSTEM = "You give short advice."
BATCH = 4

Batch = dict[str, torch.Tensor]


def fail(message: str) -> SystemExit:
    return SystemExit(f"\n{Path(sys.argv[0]).stem}: {message}")


def run(main: Callable[[], None], onwards: str) -> None:
    """Run an example; what the package refuses, and Ctrl-C, end it with a sentence.

    Args:
        main: the example.
        onwards: what running it again does after Ctrl-C.
    """
    try:
        main()
    except LinesError as error:
        raise fail(error.format_message().removeprefix("[lines] ")) from error
    except KeyboardInterrupt:
        raise fail(f"interrupted; run it again {onwards}.") from None


def load(folder: Path) -> tuple[torch.nn.Module, object]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as problem:
        cause = str(problem).splitlines()[0]
        raise fail(
            f"{folder} cannot be loaded ({cause}); delete that folder and run this again."
        ) from problem


def save(model: torch.nn.Module, tokenizer: object, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompt_ids(tokenizer, question: str) -> list[int]:
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def batches(tokenizer, pairs: list[tuple[str, str]]) -> list[Batch]:
    """Tokenise questions and answers, keep only the answers as labels, and pad."""
    rows = []
    for question, answer in pairs:
        asked = prompt_ids(tokenizer, question)
        told = tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows.append((asked, [*told, tokenizer.eos_token_id]))
    starts = range(0, len(rows), BATCH)
    return [padded(rows[start : start + BATCH], tokenizer.pad_token_id) for start in starts]


def padded(rows: list[tuple[list[int], list[int]]], fill: int) -> Batch:
    """Put tokens before and tokens to learn one behind the other, and pad at the right."""
    width = max(len(given) + len(wanted) for given, wanted in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, fill)
    labels, mask = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
    for row, (given, wanted) in enumerate(rows):
        start, end = len(given), len(given) + len(wanted)
        ids[row, :end] = torch.tensor([*given, *wanted])
        labels[row, start:end] = torch.tensor(wanted)
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def mean_loss(model, data: list[Batch], step: Callable[[], object] = lambda: None) -> float:
    """Return the mean negative log-likelihood per answer token, in nats."""
    total, tokens = 0.0, 0
    for batch in data:
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch).loss) * count
        tokens += count
        step()
    return total / tokens
