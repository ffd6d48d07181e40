"""A model as an evaluator meets it: held still, its device, its token ids."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergekit_lines.errors import LinesError


@contextmanager
def still(model: Any, seed: int) -> Iterator[None]:
    """Hold a model still: evaluation mode, no gradients, seeded generators; all put back after.

    The generators are torch's, Python's and, where it is loaded, numpy's.
    """
    import torch

    numpy = sys.modules.get("numpy")
    training = [module for module in model.modules() if module.training]
    devices = {input_device(model), *(tensor.device for tensor in model.parameters())}
    cards = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    python_state = random.getstate()
    numpy_state = None if numpy is None else numpy.random.get_state()
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed)
            random.seed(seed)
            if numpy is not None:
                numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        for module in training:
            module.training = True


def input_device(model: Any) -> Any:
    """Return the device a model takes token ids on.

    It is that of the input embeddings: where accelerate's hook runs them, or where they are.
    """
    import torch

    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    module = model if embeddings is None else embeddings
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def text_tokenizer(spec: str, tokenizer: Any) -> Any:
    """Return the tokenizer.

    Raises:
        LinesError: it is None.
    """
    if tokenizer is None:
        raise LinesError(
            f"{spec}: the model has no tokenizer, and this evaluator works on text. Add the "
            f"tokenizer's files to the model's folder, or use python:module:function, which is "
            f"given None."
        )
    return tokenizer


def positions(model: Any) -> int | None:
    """Return how many positions a language model has, None where its config has no bound."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    count = getattr(config, "max_position_embeddings", None)
    return count if isinstance(count, int) and count > 0 else None


def can_generate(model: Any) -> bool | None:
    """Return whether a model says that it can generate text, None where it says nothing."""
    says = getattr(model, "can_generate", None)
    return None if says is None else bool(says())


def token_ids(spec: str, tokenizer: Any, text: str, name: str, *, special: bool) -> list[int]:
    """Return the token ids of a text, with or without special tokens.

    Raises:
        LinesError: there are none; ``name`` is what the text is called.
    """
    ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    if not ids:
        raise LinesError(f"{spec}: {name} has no token. Take it out of the file.")
    return list(ids)


def check_ids(spec: str, model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        LinesError: the tokenizer has more tokens than the model.
    """
    embeddings = model.get_input_embeddings()
    count = getattr(embeddings, "num_embeddings", None)
    most = max(max(row) for row in rows)
    if isinstance(count, int) and most >= count:
        raise LinesError(
            f"{spec}: the tokenizer gives the token id {most}, and the model has {count} "
            f"embeddings. The model and the tokenizer do not belong together."
        )


def padded(rows: Sequence[Sequence[int]], fill: int, side: str, device: Any) -> tuple[Any, Any]:
    """Return ids and attention mask [rows, longest] of token rows, padded at one side."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids.to(device), mask.to(device)
