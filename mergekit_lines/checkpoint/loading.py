"""What transformers would make of a checkpoint: it is shown every tensor, without bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from mergekit_lines.checkpoint.headers import TensorHeader


@dataclass(frozen=True)
class Loading:
    """How tensors and a config fit.

    Attributes:
        missing: parameters of the config's model that no tensor gives; loaded, they are random.
        mismatched: those whose tensor has another shape.
    """

    missing: tuple[str, ...]
    mismatched: tuple[str, ...]


def tried_loading(config: Any, tensors: Mapping[str, TensorHeader]) -> Loading:
    """Return what transformers says of a checkpoint's tensors; nothing is read or allocated.

    Args:
        config: transformers', whose ``architectures`` name a class of transformers.
        tensors: the headers.

    Raises:
        Exception: of any kind, where transformers cannot make that model.
    """
    loader: Any = getattr(transformers, (config.architectures or [""])[0])
    shown = {name: torch.empty(header.shape, device="meta") for name, header in tensors.items()}
    with _no_bar():
        _, loading = loader.from_pretrained(
            None,
            config=config,
            state_dict=shown,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = tuple(str(key[0]) for key in loading["mismatched_keys"])
    return Loading(tuple(loading["missing_keys"]), mismatched)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers from showing a bar for weights that are not loaded."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    if shown:
        transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
