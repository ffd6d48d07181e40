"""Which output tensors are one parameter under two names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import transformers


def model_class(config: Any) -> Any:
    """Return the transformers class a config names, or None when there is none."""
    names = getattr(config, "architectures", None) or []
    return getattr(transformers, names[0], None) if names else None


def tied_names(config: Any, names: Iterable[str]) -> set[str]:
    """Return those of ``names`` that are tied to another name, by the config and its class.

    Only declared ties count: ``tie_word_embeddings`` with the class's own table. Two
    tensors that happen to be equal are two tensors.
    """
    distinct = set(names)
    head_tied = any(_said(config))
    tied = set()
    for name in distinct:
        for source in _sources(config, name):
            # T5 and BART always share their input embeddings; a head only where the config says.
            if not head_tied and not name.endswith("embed_tokens.weight"):
                continue
            if source is None or source in distinct:
                tied.add(name)
    return tied


def tied_sources(config: Any, names: Iterable[str]) -> dict[str, str]:
    """Return those of ``names`` that are tied to another of them, with the other's name."""
    listed = set(names)
    sources = {
        name: next((source for source in _sources(config, name) if source in listed), None)
        for name in tied_names(config, listed)
    }
    return {name: source for name, source in sources.items() if source is not None}


def is_untied(config: Any, name: str) -> bool:
    """Tell whether the class can tie ``name`` to another tensor and the config says it is not."""
    said = _said(config)
    return False in said and True not in said and bool(list(_sources(config, name)))


def _said(config: Any) -> list[Any]:
    """Return what a config and its text part say of tied embeddings; None: they do not."""
    text = getattr(config, "get_text_config", lambda: config)()
    return [getattr(part, "tie_word_embeddings", None) for part in (config, text)]


def _sources(config: Any, name: str) -> Iterator[str | None]:
    declared = getattr(model_class(config), "_tied_weights_keys", None) or {}
    return (source for pattern, source in _pairs(declared) if re.fullmatch(pattern, name))


def _pairs(declared: Any) -> list[tuple[str, str | None]]:
    if isinstance(declared, dict):
        return [(str(key), str(value)) for key, value in declared.items()]
    return [(str(key), None) for key in declared]
