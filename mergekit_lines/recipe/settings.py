"""Settings of a recipe: its parameters by dotted keys, changed in a copy of the document."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mergekit.common import ModelReference

from mergekit_lines.errors import LinesError
from mergekit_lines.lines.schedule import plain

_NUMBERED = re.compile(r"\[(\d+)\]")


def full_key(key: str) -> str:
    """Return a key in full: ``beta`` is ``parameters.beta``, ``models[0].x`` is ``models.0.x``."""
    dotted = _NUMBERED.sub(r".\1", key)
    return dotted if "." in dotted else f"parameters.{dotted}"


def with_settings(document: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe with some of its parameters set.

    Args:
        document: the recipe, as YAML gives it.
        settings: values by key, e.g. ``parameters.beta``, in short ``beta``, or
            ``models.0.parameters.weight``; None takes a parameter out. ``weights`` is the
            ``weight`` of every listed model but the base, in their order.

    Raises:
        LinesError: a key is not that of a parameter, or names a model that is not there.
    """
    result = copy.deepcopy(dict(document))
    for key, value in settings.items():
        if key == "weights":
            _set_weights(result, value)
        else:
            _set(result, full_key(key), _plain(value))
    return result


def _plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else plain(value)


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    *path, name = key.split(".")
    if not name or path.count("parameters") != 1 or path[-1] != "parameters":
        raise LinesError(
            f"{key}: found a key outside of parameters, wanted one such as parameters.beta or "
            f"models.0.parameters.weight: everything else needs another model on the device."
        )
    holder: Any = document
    for place, part in enumerate(path):
        where = ".".join(path[: place + 1])
        if isinstance(holder, list):
            if not part.isdecimal() or int(part) >= len(holder):
                raise LinesError(
                    f"{key}: the recipe has no {where}, wanted a number from 0 to "
                    f"{len(holder) - 1}."
                )
            holder = holder[int(part)]
        elif not isinstance(holder, dict):
            raise LinesError(f"{key}: the recipe has no {where}. Write it as it stands there.")
        elif part == "parameters":
            holder[part] = holder.get(part) or {}
            holder = holder[part]
        elif part not in holder:
            raise LinesError(
                f"{key}: the recipe has no {where}, wanted one of {', '.join(sorted(holder))}."
            )
        else:
            holder = holder[part]
    if value is None:
        holder.pop(name, None)
    else:
        holder[name] = value


def tuned_entries(document: Mapping[str, Any]) -> list[int]:
    """Return the places in ``models`` of those that are not the base."""
    models = document.get("models") or []
    base = str(document.get("base_model"))
    return [n for n, entry in enumerate(models) if str(entry.get("model")) != base]


def _set_weights(document: dict[str, Any], weights: Any) -> None:
    places = tuned_entries(document)
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise LinesError(f"weights: found {weights!r}, wanted a list of {len(places)} numbers.")
    if len(weights) != len(places):
        raise LinesError(
            f"weights: found {len(weights)} numbers, wanted {len(places)}: one for each model of "
            f"the recipe's `models` that is not the base."
        )
    for place, weight in zip(places, weights, strict=True):
        _set(document, f"models.{place}.parameters.weight", _plain(weight))


def without_parameters(document: Any) -> Any:
    """Return a recipe without what can be set on a live model."""
    if isinstance(document, Mapping):
        return {k: without_parameters(v) for k, v in document.items() if k != "parameters"}
    if isinstance(document, (list, tuple)):
        return [without_parameters(item) for item in document]
    return document


def without_words(part: Any, words: Collection[str]) -> Any:
    """Return a recipe, or a part of one, without these words of its parameters, wherever."""
    if isinstance(part, Mapping):
        return {
            key: (
                {name: each for name, each in inner.items() if name not in words}
                if key == "parameters" and isinstance(inner, Mapping)
                else without_words(inner, words)
            )
            for key, inner in part.items()
        }
    if isinstance(part, (list, tuple)):
        return [without_words(item, words) for item in part]
    return part


def with_words_of_models(part: Any, words: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a recipe, or a part of one, with words under each model, wherever it is listed.

    Args:
        part: of the recipe.
        words: parameters by model, as mergekit writes its reference.
    """
    if isinstance(part, (list, tuple)):
        return [with_words_of_models(item, words) for item in part]
    if not isinstance(part, Mapping):
        return part
    result = {key: with_words_of_models(inner, words) for key, inner in part.items()}
    for key in ("models", "sources"):  # a token's source names a model too
        for entry in result.get(key) or []:
            own = words.get(str(ModelReference.model_validate(entry["model"])))
            if own is not None:
                entry["parameters"] = {**(entry.get("parameters") or {}), **own}
    return result
