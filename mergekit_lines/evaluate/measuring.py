"""Measuring a model in place: the protocol of an evaluator, and several of them at once."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate.metric import Metric
from mergekit_lines.evaluate.spec import rename


class Evaluator(Protocol):
    """What measures a model on one split."""

    @property
    def spec(self) -> str:
        """Return the text it was made of."""

    @property
    def name(self) -> str:
        """Return its name: of its metric, or what its metrics' names begin with."""

    @property
    def split(self) -> str:
        """Return ``validation`` or ``test``."""

    def identity(self) -> dict[str, Any]:
        """Return everything its numbers hang on but the model, as JSON takes it.

        The keys are ``spec``, ``name``, ``split``, ``options``; ``data``: the files of examples
        with their SHA-256; ``code``: likewise the other files that the numbers hang on.
        Of lm-evaluation-harness also ``tasks`` and ``version``; of a python function
        ``function`` and ``takes_split``.
        """

    def digests(self) -> frozenset[str] | None:
        """Return the SHA-256 of each example's text, None as long as they are not known."""

    def measure(self, model: Any, tokenizer: Any) -> dict[str, Metric]:
        """Return its metrics by name; ``tokenizer`` is None for a model without one."""


def measure_all(evaluators: Sequence[Evaluator], model: Any, tokenizer: Any) -> dict[str, Metric]:
    """Measure one model with every evaluator; those that generate alike share the texts.

    Args:
        evaluators: of one split.
        model: a ``torch.nn.Module``, where its weights are now; it is not moved.
        tokenizer: the model's, or None.

    Raises:
        LinesError: a measurement fails, a number is not finite, or two metrics have one name.
    """
    from mergekit_lines.evaluate.rewards import Rewards, Shared

    shared: Shared = {}
    metrics: dict[str, Metric] = {}
    origin: dict[str, Evaluator] = {}
    for evaluator in evaluators:
        if isinstance(evaluator, Rewards):
            found = evaluator.measure(model, tokenizer, shared)
        else:
            found = evaluator.measure(model, tokenizer)
        for name, value in found.items():
            if name in metrics:
                raise LinesError(name_taken(origin[name], evaluator, name))
            metrics[name], origin[name] = value, evaluator
    return metrics


def name_taken(first: Evaluator, second: Evaluator, name: str | None = None) -> str:
    """Return a sentence about two evaluators that have a metric of one name."""
    return (
        f"{first.spec} and {second.spec} both measure {name or second.name}. {rename(second.spec)}"
    )


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
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_ids(spec: str, model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        LinesError: the tokenizer has more tokens than the model.
    """
    embeddings = model.get_input_embeddings()
    known = getattr(embeddings, "num_embeddings", None)
    most = max(max(row) for row in rows)
    if isinstance(known, int) and most >= known:
        raise LinesError(
            f"{spec}: the tokenizer gives the token id {most}, and the model has {known} "
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
