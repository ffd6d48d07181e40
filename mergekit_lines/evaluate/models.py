"""A model as an evaluator meets it: held still, its device, its token ids."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError

MAX_LENGTH = 1024


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
    """Return how many positions a language model has, None where its config has no bound.

    Models of RoBERTa's kind count positions from behind that of padding on, and have fewer than
    their config says.
    """
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    count = getattr(config, "max_position_embeddings", None)
    if not isinstance(count, int) or count <= 0:
        return None
    return count - _positions_of_padding(model, count)


def _positions_of_padding(model: Any, count: int) -> int:
    """Return how many of ``count`` rows of a table of positions stand up to padding's own."""
    for name, module in model.named_modules():
        # I-BERT's table is of a class of its own; what all have is padding's place and a weight.
        padding, rows = getattr(module, "padding_idx", None), getattr(module, "weight", ())
        if "position" in name.rpartition(".")[2] and padding is not None and len(rows) == count:
            return int(padding) + 1
    return 0


def can_generate(model: Any) -> bool | None:
    """Return whether a model says that it can generate text, None where it says nothing."""
    says = getattr(model, "can_generate", None)
    return None if says is None else bool(says())


def is_causal(model: Any) -> bool:
    """Tell whether a model predicts each token of a text by those before it, as far as it says."""
    encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not encoder and can_generate(model) is not False


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


def window_length(spec: str, model: Any, most_tokens: int | None = None) -> int:
    """Return how many tokens of a text a causal language model predicts at once.

    Args:
        spec: what asks, for errors.
        model: as it stands in memory.
        most_tokens: where somebody set it; else the model's positions, at most 1024.

    Raises:
        LinesError: the model is no causal language model, or has fewer positions.
    """
    if not is_causal(model):
        raise LinesError(
            f"{spec}: {type(model).__name__} is no causal language model, which predicts each "
            f"token of a text. Use something else for it, such as python:module:function."
        )
    most = positions(model)
    if most_tokens is None:
        return min(most or MAX_LENGTH, MAX_LENGTH)
    if most is not None and most_tokens > most:
        raise LinesError(
            f"{spec}: max_length is {most_tokens}, and the model has {most} positions. Give at "
            f"most that."
        )
    return most_tokens


def document_ids(spec: str, tokenizer: Any, texts: Sequence[str], path: Path) -> list[list[int]]:
    """Return each document's token ids, behind the token that begins a text.

    Args:
        spec: what asks, for errors.
        tokenizer: the model's, or None.
        texts: the documents.
        path: their file, for errors.

    Raises:
        LinesError: there is no tokenizer, it has no such token, or a document has no token.
    """
    tokenizer = text_tokenizer(spec, tokenizer)
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    if first is None:
        raise LinesError(
            f"{spec}: the tokenizer has no bos_token and no eos_token, and a text has to "
            f"begin with one. Set one in the model's tokenizer_config.json."
        )
    rows = []
    for number, text in enumerate(texts, 1):
        name = f"{path}, document {number} ({text[:40]!r})"
        rows.append([first, *token_ids(spec, tokenizer, text, name, special=False)])
    return rows


def cut_windows(rows: Sequence[Sequence[int]], length: int) -> list[tuple[int, Sequence[int]]]:
    """Return documents in windows of ``length`` predictions, each with its document's number.

    The inputs of a window are all tokens but its last; its targets all but its first.
    """
    return [
        (number, row[start : start + length + 1])
        for number, row in enumerate(rows)
        for start in range(0, len(row) - 1, length)
    ]
