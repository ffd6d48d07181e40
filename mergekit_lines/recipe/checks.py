"""Every problem of a recipe that can be seen without opening a model, all at once."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from mergekit import config as schema
from mergekit._data import chat_templates
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods
from mergekit.options import MergeOptions
from mergekit.tokenizer.config import TokenEmbeddingConfig, TokenizerConfig

from mergekit_lines.checkpoint.bounded import parse_documents
from mergekit_lines.checkpoint.out import check_out
from mergekit_lines.errors import Problem, TextError, nearest, nearest_name, reason
from mergekit_lines.host.names import ALONE, MERGED, METHODS
from mergekit_lines.methods.weights import WEIGHT_OUTSIDE
from mergekit_lines.methods.words import FOR_WRAP, LINES_WORDS, POSTPROCESS_WORDS
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.parameters import check_parameters

DTYPES = ("float32", "float16", "bfloat16", "float64")
WORDS = {word.name for word in (*LINES_WORDS, *POSTPROCESS_WORDS)}

# The recipe's nested mappings, by the key that leads to them.
_INNER = {
    "models": schema.InputModelDefinition,
    "slices": schema.OutputSliceDefinition,
    "sources": schema.InputSliceDefinition,
    "modules": schema.OutputModuleDefinition,
    "tokenizer": TokenizerConfig,
    "tokens": TokenEmbeddingConfig,
}


def check_recipe(
    config: MergeConfiguration, out: Path | None, options: MergeOptions, text: str | None
) -> list[Problem]:
    """Return every problem of the recipe, its options and OUT; no file of a model is opened."""
    keys = list(_check_keys(config.merge_method, text))
    problems: list[str | Problem] = [*keys]
    problems += [*(check_out(out) if out else ()), *_check_options(options)]
    problems += _check_structure(config)
    problems += _check_values(config)
    problems += check_parameters(config, names_known=not keys)
    return list(dict.fromkeys(map(Problem.of, problems)))


def check_method(method: str, recipe: Path) -> Iterator[Problem]:
    """Yield why this package does not merge recipes of a method, and what does.

    Args:
        method: the recipe's ``merge_method``.
        recipe: the file, for the command that does.
    """
    if method in MERGED:
        return
    registered = {one.spec.name for one in registered_methods()}
    if method not in registered:
        text = f"found {method!r}, which nobody has registered.{nearest(method, registered)}"
    else:
        text = (
            f"found {method!r}, for which this package has no kernel, wanted one of "
            f"{', '.join(MERGED)}; mergekit's own command merges it: mergekit-yaml {recipe} OUT."
        )
    yield Problem("merge_method", text)


def _check_keys(method: str, text: str | None) -> Iterator[Problem]:
    """Check the keys of the YAML itself: pydantic ignores the ones it does not know."""
    try:
        documents = parse_documents(text or _file_of_multi())
    except TextError as error:
        yield Problem("recipe", f"{reason(error)}. Write it plainly.")
        return
    for document in documents:
        if isinstance(document, dict) and document.get("merge_method") in (method, *METHODS):
            place = f"{document['name']}: " if document.get("name") and not text else ""
            yield from _unknown_keys(place, document, MergeConfiguration, {"name"})


def _file_of_multi() -> str:
    """Return what mergekit-multi merges: it keeps the text of its file from run_merge."""
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != "mergekit-multimerge":
        return ""
    return Path(context.params["config_file"]).read_text(encoding="utf-8")


def _unknown_keys(
    place: str, document: dict[Any, Any], model: Any, extra: set[str]
) -> Iterator[Problem]:
    keys = set(model.model_fields) | extra
    for key, value in document.items():
        if key not in keys and "parameters" in keys and key in _parameter_names():
            text = f"found outside of parameters. Move it to {place}parameters.{key}."
            yield Problem(f"{place}{key}", text, about=(str(key),))
        elif key not in keys:
            meant = nearest_name(str(key), keys)
            text = f"nobody declares this key.{nearest(str(key), keys)}"
            yield Problem(f"{place}{key}", text, about=(str(key), meant) if meant else (str(key),))
        elif key in _INNER:
            for where, entry in _entries(f"{place}{key}", key, value):
                if isinstance(entry, dict):
                    yield from _unknown_keys(where, entry, _INNER[key], set())


def _parameter_names() -> set[str]:
    names = {p.name for method in registered_methods() for p in method.spec.parameters}
    names |= {word.name for words in FOR_WRAP.values() for word in words}
    return names | WORDS | {WEIGHT_OUTSIDE}


def _entries(place: str, key: str, value: Any) -> list[tuple[str, Any]]:
    if key == "tokenizer":
        return [(f"{place}.", value)]
    if isinstance(value, dict):  # modules and tokens go by name
        return [(f"{place}.{name}.", entry) for name, entry in value.items()]
    if isinstance(value, list):
        return [(f"{place}[{number}].", entry) for number, entry in enumerate(value)]
    return []


def _check_options(options: MergeOptions) -> Iterator[str]:
    if not options.safe_serialization:
        yield (
            "--no-safe-serialization: lines writes safetensors only. Drop the flag, and convert "
            "the result if a pickled checkpoint is really wanted."
        )
    if options.unsafe_truncate_embeddings:
        yield (
            "--unsafe-truncate-embeddings: would write embeddings that do not match the config. "
            "Drop the flag and align the vocabularies with `tokenizer: {source: union}`."
        )
    if not hasattr(os, "preadv"):
        yield "this system has no preadv, by which weights are read: use Linux, WSL or macOS."
    if options.out_shard_size <= 0:
        yield f"--out-shard-size: found {options.out_shard_size}, wanted a size above 0, e.g. 5B."
    seed = options.random_seed
    if seed is not None and not 0 <= seed < 2**32:
        yield f"--random-seed: found {seed}, wanted a whole number from 0 to {2**32 - 1}."
    if options.lora_merge_dtype and options.lora_merge_dtype not in DTYPES:
        yield (
            f"--lora-merge-dtype: found {options.lora_merge_dtype!r}, wanted one of "
            f"{', '.join(DTYPES)}."
        )
    cache = options.lora_merge_cache
    if cache and Path(cache).exists() and not Path(cache).is_dir():
        yield f"--lora-merge-cache {cache}: found a file, wanted a folder. Choose another."
    yield from _check_device(options.device or "cpu")


def _check_device(name: str) -> Iterator[str]:
    if name == "cpu":
        return
    try:
        torch.zeros(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        flag = "--device cuda (or --cuda)" if name == "cuda" else f"--device {name}"
        lacks = "sees no CUDA device" if name.startswith("cuda") else "cannot compute on it"
        yield (
            f"{flag}: this torch ({torch.__version__}) {lacks} ({reason(error)[:100]}), wanted a "
            f"device that it can compute on. Drop the flag to merge on the CPU."
        )


def _check_values(config: MergeConfiguration) -> Iterator[str]:
    for key in ("dtype", "out_dtype"):
        value = getattr(config, key)
        if value is not None and value not in DTYPES:
            yield (
                f"{key}: found {value!r}, wanted one of {', '.join(DTYPES)}."
                f"{nearest(value.removeprefix('torch.'), DTYPES)}"
            )
    padding = config.tokenizer.pad_to_multiple_of if config.tokenizer else None
    if padding is not None and padding < 1:
        yield f"tokenizer.pad_to_multiple_of: found {padding}, wanted a whole number above 0."
    template = config.chat_template
    names = [
        entry.name.removesuffix(".jinja")
        for entry in importlib.resources.files(chat_templates).iterdir()
        if entry.name.endswith(".jinja")
    ]
    jinja = template and "{" in template and len(template) >= 20  # mergekit's own condition
    if template and template != "auto" and template not in names and not jinja:
        yield (
            f"chat_template: found {template!r}, wanted `auto`, one of {', '.join(sorted(names))}, "
            f"or a Jinja template of at least 20 letters.{nearest(template, [*names, 'auto'])}"
        )


def _check_structure(config: MergeConfiguration) -> Iterator[str]:
    method = config.merge_method
    does = f"{method} {'merges' if method in ALONE else 'scales'}"
    slices = [*(config.slices or [])]
    for module in (config.modules or {}).values():
        slices += module.slices or []
    if config.base_model is None:
        yield (
            f"base_model: found nothing, wanted the pre-trained model: {does} the change "
            f"from it, and takes config and tokenizer from it. Add `base_model: PATH-OR-HUB-ID`."
        )
    bases = {config.base_model, *(s.base_model for s in slices)}
    if all(model in bases for model in models_in_order(config)):
        yield (
            "models: found no model besides base_model, wanted at least one fine-tuned from it. "
            "Add it under models."
        )
    groups = {"models": [entry.model for entry in config.models or []]}
    for name, module in (config.modules or {}).items():
        groups[f"modules.{name}.models"] = [entry.model for entry in module.models or []]
    for number, output_slice in enumerate(slices):
        groups[f"slices[{number}].sources"] = [s.model for s in output_slice.sources]
        base = output_slice.base_model or config.base_model
        if base is not None and base not in groups[f"slices[{number}].sources"]:
            yield (
                f"slices[{number}].sources: base_model {base} is not among them, wanted it there "
                f"with its layer_range: {method} measures this slice's change from those layers."
            )
    for place, models in groups.items():
        yield from _check_twice(place, models, config.base_model)


def _check_twice(
    place: str, models: list[ModelReference], base: ModelReference | None
) -> Iterator[str]:
    """Check that no model stands twice in a list, nor the base under another spelling."""
    seen = {_identity(base): base} if base and base not in models else {}
    for model in models:
        first = seen.setdefault(_identity(model), model)
        if first is not model and first == base and model != base:
            yield (
                f"{place}: {model} is base_model {base} under another name, wanted it once. Write "
                f"{base} here, or leave it out."
            )
        elif first is not model:
            also = f" ({first} is the same folder)" if first != model else ""
            yield f"{place}: found {model} twice{also}, wanted each model once. Add up the weights."


def _identity(model: ModelReference) -> tuple[str, ...]:
    """Tell models apart by their folders where they have one, else by their names."""
    paths = [model.model, *([model.lora] if model.lora else [])]
    return tuple(
        os.path.realpath(path.path) if Path(path.path).exists() else str(path) for path in paths
    )
