"""Whether models are what their configs say, and compute the same: the base's alone is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.bounded import read_config
from mergekit_lines.checkpoint.headers import Headers, TensorHeader
from mergekit_lines.checkpoint.loading import (
    Loading,
    ModelNames,
    class_heads,
    does_without_pooler,
    meta_model,
    pickled_headers,
    text_tower,
    tried_loading,
    trunk_without_head,
)
from mergekit_lines.checkpoint.ties import model_class
from mergekit_lines.errors import Problem
from mergekit_lines.files import names_no_class
from mergekit_lines.host.process import silent
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.recipe.models import models_in_order

# Not a part of what a finished model computes from its weights, or checked elsewhere (shapes,
# names of classes, ties, vocabularies, layers).
WITHOUT_EFFECT = re.compile(
    r"_name_or_path|transformers_version|architectures|model_type|auto_map|_?dtype|torch_dtype|use_cache"
    r"|.*token_ids?|id2label|label2id|num_labels|problem_type|.*dropout.*|.*drop_path.*|layerdrop"
    r"|.*initializer.*|init_.*|output_.*|return_dict|task_specific_params|finetuning_task"
    r"|vocab_size|tie_word_embeddings|pretraining_tp|gradient_checkpointing|_attn_implementation.*"
    r"|.*loss.*|.*aux.*coef.*|num_hidden_layers|n_layer|num_layers|chunk_size_feed_forward"
    r"|quantization_config|bos_token|eos_token|pad_token|unsloth.*|.*_version"
)
# With these another, a matrix of the same shape means something else.
NOT_THE_SAME_WEIGHTS = re.compile(
    r"num_attention_heads|num_key_value_heads|n_heads?|num_heads|(en|de)coder_attention_heads"
    r"|num_kv_heads|n_head_kv|multi_query|head_dim|hidden_act|hidden_activation|activation"
    r"|activation_function|dense_act_fn|act_fn|ffn_act_fn|feed_forward_proj"
)

UNNAMED_CLASS = re.compile(r"label_\d+")  # as transformers numbers those that nobody named
CLASSES_SHOWN = 3  # of a note; there are models of a thousand

AT_RANDOM = ", which loading would draw at random. Download or save it again."


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return where two configs differ in what is computed, by dotted key."""
    left, right = _flat(base), _flat(other)
    keys = sorted(set(left) | set(right))
    return {
        key: (left.get(key), right.get(key))
        for key in keys
        if left.get(key) != right.get(key)
        and not any(WITHOUT_EFFECT.fullmatch(part) for part in key.split("."))
    }


def refused_configs(
    config: MergeConfiguration, options: MergeOptions, planned: Sequence[PlannedTensor]
) -> Iterator[Problem]:
    """Yield which models' weights cannot mean what the base's do, by their configs."""
    for model, pairs in _by_model(config, options):
        values = {k: v for k, v in pairs.items() if _last(k, NOT_THE_SAME_WEIGHTS)}
        if values:
            yield Problem(
                f"model {model}",
                f"its config.json says {_listed(values)}, so that the same entries mean something "
                f"else in it. Use models fine-tuned from base_model; mend its config.json where "
                f"that is wrong.",
            )
    yield from _reordered_classes(config, options, planned)


def config_notes(
    config: MergeConfiguration, options: MergeOptions, planned: Sequence[PlannedTensor]
) -> Iterator[str]:
    """Yield what the models' configs say otherwise than the base's, which is kept."""
    yield from _left_over(config, options)
    yield from _class_notes(config, options, planned)
    sliced = config.models is None  # other layers have other lists of layers
    for model, pairs in _by_model(config, options):
        values = {
            key: pair
            for key, pair in pairs.items()
            if not _last(key, NOT_THE_SAME_WEIGHTS)
            and not (sliced and any(isinstance(value, (list, tuple)) for value in pair))
        }
        if values:
            yield (
                f"model {model}: its config.json says {_listed(values)}; the merged model "
                f"computes as base_model's config.json says"
            )


def trunk_note(base: ModelReference, headers: Headers, options: MergeOptions) -> Iterator[str]:
    """Yield that the base is stored without the head of its class, or without its pooler."""
    config = base.config(trust_remote_code=options.trust_remote_code)
    if trunk := _trunk(base, headers, options):
        yield (
            f"model {base}: its files hold the {trunk} alone, and no head of "
            f"{', '.join(config.architectures or [])}, which its config.json names; nor does OUT"
        )
    elif does_without_pooler(model_class(config)):
        loading = _loading(base, headers, options)
        if loading is not None and loading.options:
            yield (
                f"model {base}: its files hold no pooler, nor does OUT, which is loaded with "
                f"add_pooling_layer=False"
            )


def is_whole(
    model: ModelReference, headers: Mapping[ModelReference, Headers], options: MergeOptions
) -> bool | None:
    """Tell whether a checkpoint gives every parameter of the class that its config names.

    None: transformers cannot make that class.
    """
    if _tensors(model, headers[model]) is None:
        return False
    loading = _loading(model, headers[model], options)
    return None if loading is None else not loading.missing and not loading.mismatched


def are_trunks(
    base: ModelReference, headers: Mapping[ModelReference, Headers], options: MergeOptions
) -> bool:
    """Tell whether the base is the trunk of its class, and the others are such or are of its kind.

    Sentence encoders are stored so: without the head that they were trained with first, and
    under its class.
    """
    trust = options.trust_remote_code
    kinds = {(one.config(trust_remote_code=trust).architectures or [""])[0] for one in headers}
    trunks = [_trunk(model, headers[model], options) for model in (base, *headers)]
    return trunks[0] is not None and (trunks[0] in kinds or len({*trunks}) == 1)


def lacking(headers: Mapping[ModelReference, Headers], options: MergeOptions) -> Iterator[Problem]:
    """Yield what the models lack of the classes that their configs name, by the files' names.

    Nothing is said of pickles that do not tell, nor of classes that transformers cannot make.
    """
    everything = {name for one in headers for name in LoaderCache().get(one).index.tensor_paths}
    for model, own in headers.items():
        loading = _loading(model, own, options) if _tensors(model, own) else None
        if loading is None or not (loading.missing or loading.mismatched):
            continue
        config = model.config(trust_remote_code=options.trust_remote_code)
        with silent():
            names = ModelNames(meta_model(config, trust_remote_code=options.trust_remote_code))
        stored = {name: one for one, name in names.of(everything).items()}
        rest = AT_RANDOM
        if trunk := _trunk(model, own, options):
            rest = (
                f": it is the {trunk} alone. Use models that all have the head, or that all lack "
                f"it."
            )
        if loading.missing:
            # Of tied tensors, the one that the others store.
            held = [stored[name] for name in loading.missing if name in stored]
            yield Problem(
                f"model {model}",
                f"lacks tensors of {config.architectures[0]}, which its config.json names",
                tuple(held or loading.missing),
                rest,
            )
        if loading.mismatched:
            yield Problem(
                f"model {model}",
                "holds tensors of another shape than by its config.json",
                tuple(stored.get(name, name) for name in loading.mismatched),
                ". Save the model again, with the config that belongs to it.",
            )


def _loading(model: ModelReference, headers: Headers, options: MergeOptions) -> Loading | None:
    """Return how a checkpoint fits the class that its config names; None: no such class."""
    try:
        with silent():
            config = model.config(trust_remote_code=options.trust_remote_code)
            return tried_loading(config, _tensors(model, headers) or {})
    except Exception:  # noqa: BLE001 - a class that transformers cannot make, of many kinds
        return None


def _trunk(model: ModelReference, headers: Headers, options: MergeOptions) -> str | None:
    trust = options.trust_remote_code
    with silent():
        config = model.config(trust_remote_code=trust)
        return trunk_without_head(config, _tensors(model, headers), trust_remote_code=trust)


def _tensors(model: ModelReference, headers: Headers) -> dict[str, TensorHeader] | None:
    """Return what a checkpoint holds, of a pickled one by its files: there is no header."""
    if headers.tensors is not None:
        return headers.tensors
    index = LoaderCache().get(model).index
    return pickled_headers(Path(index.base_path), index.tensor_paths.values())


def _left_over(config: MergeConfiguration, options: MergeOptions) -> Iterator[str]:
    """Yield which models' configs say that they are quantised: the weights were found plain."""
    for model in models_in_order(config):
        own = model.config(trust_remote_code=options.trust_remote_code)
        if getattr(own, "quantization_config", None):
            yield (
                f"model {model}: its config.json holds a quantization_config over plain weights, "
                f"left from a training on a quantised model; the merged model's holds none"
            )


def _reordered_classes(
    config: MergeConfiguration, options: MergeOptions, planned: Sequence[PlannedTensor]
) -> Iterator[Problem]:
    """Yield which models have the classes of one before them in another order."""
    before: list[tuple[str, dict[int, str]]] = []
    for model, own in _classes(config, options, planned):
        names = _alike(own)
        if all(map(UNNAMED_CLASS.fullmatch, names.values())):
            continue
        for whose, others in before:
            theirs = _alike(others)
            if names != theirs and sorted(names.values()) == sorted(theirs.values()):
                row = min(row for row in names if names[row] != theirs.get(row))
                yield Problem(
                    f"model {model}",
                    f"by id2label in its config.json its class {row} is {own[row]} where {whose} "
                    f"is {others.get(row)}, so that the same row of the head means something else "
                    f"in it. Permute the rows of its head, or mend its config.json where that is "
                    f"wrong.",
                )
                break
        before.append(("base_model's" if model == config.base_model else f"{model}'s", own))


def _class_notes(
    config: MergeConfiguration, options: MergeOptions, planned: Sequence[PlannedTensor]
) -> Iterator[str]:
    """Yield which models' classes have other names than the base's."""
    (_, kept), *others = _classes(config, options, planned)
    for model, own in others:
        base, names = _alike(kept), _alike(own)
        rows = [row for row in sorted({*kept, *own}) if base.get(row) != names.get(row)]
        if rows:
            values = {f"id2label.{n}": (kept.get(n), own.get(n)) for n in rows[:CLASSES_SHOWN]}
            more = len(rows) - len(values)
            yield (
                f"model {model}: its config.json says {_listed(values)}"
                f"{f' and {more} more' if more else ''}; the merged model calls its classes as "
                f"base_model's config.json says"
            )


def _classes(
    config: MergeConfiguration, options: MergeOptions, planned: Sequence[PlannedTensor]
) -> list[tuple[ModelReference, dict[int, str]]]:
    """Return the names of the classes of the base, and of all whose head is merged with its."""
    models = models_in_order(config)
    base = config.base_model or models[0]
    trust = options.trust_remote_code
    configs = {model: model.config(trust_remote_code=trust) for model in (base, *models)}
    names = {
        model: {row: str(name) for row, name in (getattr(own, "id2label", None) or {}).items()}
        for model, own in configs.items()
    }
    if all(own == names[base] for own in names.values()):
        return [(base, names[base])]
    with silent():
        stored = [item.weight.name for item in planned]
        heads = class_heads(configs[base], stored, trust_remote_code=trust)
    merged = {base}
    for item in planned:
        if heads is None or item.weight.name in heads:
            for model, weight in item.task.inputs.items():
                index = LoaderCache().get(model).index.tensor_paths
                if any(name in index for name in (weight.name, *(weight.aliases or ()))):
                    merged.add(model)
    return [(model, own) for model, own in names.items() if model in merged]


def _alike(names: Mapping[int, str]) -> dict[int, str]:
    """Return names of classes without what tells no class from another."""
    return {row: name.strip().casefold() for row, name in names.items()}


def _by_model(
    config: MergeConfiguration, options: MergeOptions
) -> Iterator[tuple[ModelReference, dict[str, tuple[Any, Any]]]]:
    models = models_in_order(config)
    base = config.base_model or models[0]
    trust = options.trust_remote_code
    whole = base.config(trust_remote_code=trust)
    for model in models:
        if model.model != base.model:
            own = model.config(trust_remote_code=trust)
            if names_no_class(Path(base.model.path)):
                pairs = differences(_in_file(base), _in_file(model))
                # What one of the files leaves out is a default, which is not known here.
                yield model, {key: pair for key, pair in pairs.items() if None not in pair}
            else:
                part = text_tower(whole, own) or whole
                yield model, differences(part.to_dict(), own.to_dict())


def _in_file(model: ModelReference) -> dict[str, Any]:
    """Return what the config.json of a model of no class holds; a model that is a file has none."""
    place = Path(model.model.path)
    content = read_config(place / "config.json") if place.is_dir() else {}
    # timm's, of where the weights come from.
    return {key: value for key, value in content.items() if key != "pretrained_cfg"}


def _flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys; what is None counts as not said."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{place}{key}.")
        elif value is not None:
            flat[f"{place}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _last(key: str, pattern: re.Pattern[str]) -> bool:
    return pattern.fullmatch(key.rsplit(".", 1)[-1]) is not None


def _listed(values: Mapping[str, tuple[Any, Any]]) -> str:
    def shown(value: Any) -> str:
        text = "nothing" if value is None else f"{value}"
        return text if len(text) <= 60 else f"{text[:57]}..."

    return ", ".join(
        f"{key} {shown(own)} where base_model says {shown(base)}"
        for key, (base, own) in values.items()
    )
