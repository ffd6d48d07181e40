"""What transformers would make of a checkpoint: it is shown every tensor, without bytes."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from mergekit.common import get_auto_cls
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.headers import TensorHeader, read_shard
from mergekit_lines.checkpoint.ties import is_untied, model_class

# Of classes of trunks: classes with a head build and save some of them so.
NO_POOLER: Mapping[str, Any] = {"add_pooling_layer": False}


@dataclass(frozen=True)
class Loading:
    """How tensors and a config fit.

    Attributes:
        missing: parameters of the config's model that no tensor gives; loaded, they are random.
        mismatched: those whose tensor has another shape.
        options: of the class, beside the config, without which more would be missing.
    """

    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def pickled_headers(folder: Path, files: Iterable[str]) -> dict[str, TensorHeader] | None:
    """Return what a pickled checkpoint holds by name, its weights unread; None: it does not tell.

    Args:
        folder: where the files are.
        files: their names. What torch wrote before 1.6 is mapped by no release.
    """
    tensors: dict[str, TensorHeader] = {}
    try:
        for file in sorted(set(files)):
            held = torch.load(folder / file, map_location="meta", weights_only=True, mmap=True)
            for name, tensor in held.items():
                tensors[name] = TensorHeader(f"{tensor.dtype}", tuple(tensor.shape), file)
    except Exception:  # noqa: BLE001 - pickle and torch raise a dozen kinds
        return None
    return tensors


def tried_loading(config: Any, tensors: Mapping[str, TensorHeader]) -> Loading:
    """Return what transformers says of a checkpoint's tensors; nothing is read or allocated.

    A trunk that is whole without a pooler is taken for that.

    Args:
        config: transformers', whose ``architectures`` name a class of transformers.
        tensors: the headers.

    Raises:
        Exception: of any kind, where transformers cannot make that model.
    """
    loading = _tried(config, tensors, {})
    if loading.missing and does_without_pooler(model_class(config)):
        bare = _tried(config, tensors, NO_POOLER)
        return loading if bare.missing else bare
    return loading


def does_without_pooler(cls: Any) -> bool:
    """Tell whether a class is one of trunks that are built without a pooler where that is said."""
    return isinstance(cls, type) and NO_POOLER.keys() <= inspect.signature(cls).parameters.keys()


def _tried(config: Any, tensors: Mapping[str, TensorHeader], options: Mapping[str, Any]) -> Loading:
    loader: Any = getattr(transformers, (config.architectures or [""])[0])
    if getattr(config, "quantization_config", None):  # left over plain weights
        config = copy.deepcopy(config)
        del config.quantization_config
    shown = {name: torch.empty(header.shape, device="meta") for name, header in tensors.items()}
    with _quiet():
        _, loading = loader.from_pretrained(
            None,
            config=config,
            state_dict=shown,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    mismatched = tuple(str(key[0]) for key in loading["mismatched_keys"])
    return Loading(tuple(loading["missing_keys"]), mismatched, options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from a bar for weights that are not loaded, and from warning of them."""
    log = transformers.utils.logging
    shown, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()


def meta_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """Return a config's model on the meta device, its parameters tied as the config says.

    Raises:
        Exception: of any kind, where transformers cannot make that model.
    """
    cls = model_class(config)
    with torch.device("meta"), no_init_weights():
        if cls is not None:
            model = cls(config)
        else:
            auto = get_auto_cls(config.architectures[0])
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def class_heads(
    config: Any, stored: Iterable[str], *, trust_remote_code: bool = False
) -> set[str] | None:
    """Return those of stored tensors that have a row for each class, or None.

    With one class more, they have another shape.

    Args:
        config: transformers'.
        stored: the tensors' names.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        The names; None: transformers cannot make that model, and any tensor may be one.
    """
    more = copy.deepcopy(config)
    try:
        more.num_labels = config.num_labels + 1
        model = meta_model(config, trust_remote_code=trust_remote_code)
        wider = meta_model(more, trust_remote_code=trust_remote_code).state_dict()
        own, names = model.state_dict(), ModelNames(model).of(stored)
    except Exception:  # noqa: BLE001 - a class that transformers cannot make, of many kinds
        return None
    unlike = {name for name, tensor in own.items() if tensor.shape != wider[name].shape}
    return {one for one, name in names.items() if name in unlike}


def trunk_without_head(
    config: Any, tensors: Mapping[str, TensorHeader] | None, *, trust_remote_code: bool = False
) -> str | None:
    """Return the class of the trunk that a checkpoint is where it lacks its class's head, or None.

    A language model that lacks a head of its own, under the names that it has with one, is none.

    Args:
        config: transformers'.
        tensors: the headers; None for a pickled checkpoint, of which nothing is known.
        trust_remote_code: whether code that comes with the model may run.
    """
    try:
        model = meta_model(config, trust_remote_code=trust_remote_code)
        if _has_all(model, tensors or {}):
            return None  # what follows asks for transformers' renamings, which takes half a second
        names = ModelNames(model)
        if names.trunk is None or names.heads(names.of(tensors or {}).values()):
            return None
        loading = tried_loading(config, tensors or {})
    except Exception:  # noqa: BLE001 - a class that transformers cannot make, of many kinds
        return None
    lost = {*loading.missing}
    whole_once = any(map(names.in_trunk, tensors or {}))  # the class with the head named them
    if whole_once and any(is_untied(config, name) for name in lost):
        return None
    unfit = names.heads(loading.mismatched)
    return names.trunk if lost and not unfit and names.heads(lost) == lost else None


def _has_all(model: Any, names: Iterable[str]) -> bool:
    """Tell whether a model's own names of all its tensors are there, of tied ones any."""
    stored, lacking, held = set(names), set[int](), set[int]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        (held if name in stored else lacking).add(id(tensor))
    return lacking <= held


def stored_trunk(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return the class of the trunk that a merge wrote without head or pooler, or None.

    Args:
        folder: OUT, or its partial folder, whose shards have names of their own.

    Returns:
        With the class, the options with which it takes the tensors and makes none up: classes
        with a head build some trunks without the pooler that these have by themselves.
    """
    tensors: dict[str, TensorHeader] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_shard(folder, file.name, [])
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        trunk = trunk_without_head(config, tensors)
        if trunk is not None:
            config.architectures = [trunk]
        elif not does_without_pooler(model_class(config)):
            return None
        loading = tried_loading(config, tensors)
    except Exception:  # noqa: BLE001 - transformers raises a dozen kinds; then nothing is known
        return None
    if loading.missing or loading.mismatched or not (trunk or loading.options):
        return None
    return str(config.architectures[0]), loading.options


def text_tower(config: Any, other: Any) -> Any:
    """Return the part of a config that another config's model is a tower of, or None.

    Of a vision-language model that is its language model's.

    Args:
        config: of the whole model.
        other: of the model that may be a part of it.
    """
    part = config.get_text_config()
    is_part = part is not config and part.model_type == other.model_type != config.model_type
    return part if is_part else None


def names_in_tower(model: Any, config: Any, names: Iterable[str]) -> dict[str, str]:
    """Return what a whole model calls the tensors of a checkpoint of its language model.

    Args:
        model: the whole one, of transformers, on any device.
        config: of the checkpoint.
        names: of the checkpoint's tensors.

    Raises:
        Exception: of any kind, where transformers cannot make the checkpoint's model.
    """
    decoder = model.get_decoder()
    place = next(name for name, module in model.named_modules() if module is decoder)
    part = meta_model(config)
    prefix = f"{part.base_model_prefix}." if hasattr(part, part.base_model_prefix) else ""
    return {
        stored: f"{place}.{name.removeprefix(prefix)}" if name.startswith(prefix) else name
        for stored, name in ModelNames(part).of(names).items()
    }


def _loads_alone(module: Any) -> bool:
    """Tell whether a part of a model is one by itself, as DINOv3's bare encoder is not."""
    kind = type(module)
    return hasattr(transformers, kind.__name__) or not kind.__module__.startswith("transformers.")


class ModelNames:
    """A model's names for what checkpoints hold under its own names or older ones.

    transformers renames tensors on loading: what a class is called in files changed over the
    years, and a checkpoint of a class with a head has a prefix that one without has not. Tensors
    that it also fuses (experts) are renamed and stay by themselves.

    Args:
        model: of transformers, on any device.
    """

    def __init__(self, model: Any) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if not isinstance(one, WeightRenaming)]
        self._prefix = getattr(model, "base_model_prefix", "") or ""
        self._state = dict(model.state_dict())
        self._tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self._made_up = getattr(model, "_keys_to_ignore_on_load_missing", None) or []
        trunk = getattr(model, self._prefix, None) if self._prefix else None
        self._has_trunk = trunk is not None and _loads_alone(trunk)
        self.trunk = type(trunk).__name__ if self._has_trunk else None

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Return the model's name of each stored one; unknown ones keep theirs.

        Two tensors never get one name: where they would, both keep their own.
        """
        renamed = {name: self._name(name) for name in sorted(names)}  # as transformers sorts them
        counts: dict[str, int] = {}
        for name in renamed.values():
            counts[name] = counts.get(name, 0) + 1
        return {stored: name if counts[name] == 1 else stored for stored, name in renamed.items()}

    def _name(self, stored: str) -> str:
        renamed, _ = rename_source_key(stored, self._renamings, [])
        fused, _ = rename_source_key(stored, self._renamings, self._converters)
        if not self._prefix:
            return renamed
        loaded, _ = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, self._state
        )
        if loaded == f"{self._prefix}.{fused}":
            return f"{self._prefix}.{renamed}"
        if fused == f"{self._prefix}.{loaded}":
            return renamed.removeprefix(f"{self._prefix}.")
        return renamed

    def loaded(self, stored: str) -> tuple[str, Any, str | None]:
        """Return which parameter a stored tensor becomes, or becomes a part of.

        Returns:
            The model's name; the conversion that fuses the tensor with others, or None; and the
            pattern of the conversion's that the tensor has.
        """
        fused, pattern = rename_source_key(stored, self._renamings, self._converters)
        if self._prefix:
            fused, _ = rename_source_key(
                stored, self._renamings, self._converters, self._prefix, self._state
            )
        converter = next(
            (one for one in self._converters if pattern and pattern in one.source_patterns), None
        )
        return fused, converter, pattern

    def heads(self, names: Iterable[str]) -> set[str]:
        """Return those of the model's names whose parameters are in no trunk."""
        return {name for name in names if name in self._state and not self.in_trunk(name)}

    def needed(self, names: Iterable[str]) -> list[str]:
        """Return those of stored names that the model has, and neither ties nor computes."""
        return [
            stored
            for stored, name in self.of(names).items()
            if name in self._state
            and name not in self._tied
            and not any(re.search(pattern, name) for pattern in self._made_up)
        ]

    def in_trunk(self, name: str) -> bool:
        """Tell whether a tensor, by the model's name, is of the part that heads stand on."""
        return not self._has_trunk or name.startswith(f"{self._prefix}.")
