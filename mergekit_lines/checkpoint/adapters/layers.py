"""Which tensors of a base checkpoint an adapter changes, and how, by both their headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from mergekit_lines.checkpoint.adapters.changes import Change, Saved, Shift, Tokens, Update
from mergekit_lines.checkpoint.adapters.config import LoraConfig
from mergekit_lines.checkpoint.adapters.tied import PREFIX, TOKENS, UNTIE, shared_names
from mergekit_lines.checkpoint.sources import Source, whole
from mergekit_lines.checkpoint.ties import model_class, tied_sources
from mergekit_lines.errors import LinesError, some

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_embedding_[AB]|lora_[AB]\.(weight|bias)|lora_magnitude_vector)"
    r"(\.weight)?"
)
_FUSED = ""  # in the place of a checkpoint's name: transformers makes the tensor of several

Shapes = Mapping[str, tuple[int, ...]]


class Unsupported(Exception):  # noqa: N818 - no error: PEFT can merge it
    """Why PEFT has to merge an adapter."""


class AdapterPlan:
    """The changes of one adapter, from its headers and the base's."""

    def __init__(
        self, file: Path, config: LoraConfig, base_names: Shapes, base_config: Any
    ) -> None:
        self.file, self.config, self.base = file, config, base_names
        self._base_config = base_config
        self._orientations = _orientations(base_names)

    def changes(self, tensors: Mapping[str, Source]) -> dict[str, list[Change]]:
        """Return the changes by the base's tensor names."""
        parts, tokens, saved = self._sorted(tensors)
        shared = {f"{module}.weight" for module in tokens}
        if self.config.tying:
            shared |= self._as_one(parts, saved)
        names = {*saved, *(f"{module}.weight" for module in (*parts, *tokens))}
        names |= {f"{module}.bias" for module in parts if "lora_B.bias" in parts[module]}
        base_names = self._locate(names)
        self._check_ties(base_names, shared)
        changes: dict[str, list[Change]] = {base_names[name]: [] for name in sorted(names)}
        for name, source in saved.items():
            self._check_shape(name, source, self.base[base_names[name]])
            changes[base_names[name]].append(Saved(source))
        for module, source in tokens.items():
            name = base_names[f"{module}.weight"]
            changes[name].append(self._tokens(module, source, self.base[name]))
        for module, held in parts.items():
            self._check_parts(module, held)
            name = base_names[f"{module}.weight"]
            changes[name].append(self._update(module, held, name))
            if "lora_B.bias" in held:
                bias, name = held["lora_B.bias"], base_names[f"{module}.bias"]
                self._check_shape(f"{module}.lora_B.bias", bias, self.base[name])
                changes[name].append(Shift(bias, self.config.scale(module)))
        return changes

    def _sorted(
        self, tensors: Mapping[str, Source]
    ) -> tuple[dict[str, dict[str, Source]], dict[str, Source], dict[str, Source]]:
        """Sort the adapter's tensors: LoRA's parts by module, trained rows, tensors saved whole."""
        parts: dict[str, dict[str, Source]] = {}
        tokens: dict[str, Source] = {}
        saved: dict[str, Source] = {}
        whole: set[str] = set()
        for key, source in sorted(tensors.items()):
            name = key.removeprefix(PREFIX)
            match = _PART.fullmatch(name)
            # The base's own layer lies below LoRA's, and is saved with it if it was trained
            # (biases), resized or an embedding; a layer saved whole once was below a wrapper.
            layer = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if name == key:
                raise LinesError(
                    f"{self.file}: found a tensor {key}, wanted names that begin with {PREFIX}, as "
                    f"PEFT saves them. Save the adapter with PEFT's save_pretrained."
                )
            if match:
                parts.setdefault(match["module"], {})[match["part"]] = source
            elif name.endswith(TOKENS):
                tokens[name.removesuffix(TOKENS)] = source
            elif ".lora_" in name or "_adapter." in name:
                raise Unsupported(f"it holds {key}")
            elif ".original_module." in name:
                continue  # the base's own, which the trained copy replaces
            elif layer == name:
                saved[layer] = source
                whole.add(layer)
            elif layer not in whole:
                saved[layer] = source
        for module in parts:
            if "base_layer" in module.split(".") or module in tokens or f"{module}.weight" in whole:
                raise Unsupported(f"it changes {module} twice")
        if not (parts or tokens or saved):
            raise LinesError(f"{self.file}: holds no tensors. Save the adapter again.")
        return parts, tokens, saved

    def _as_one(self, parts: dict[str, dict[str, Source]], saved: dict[str, Source]) -> set[str]:
        """Leave one update of a tensor that two layers share, which PEFT saves for each of them.

        Return the names of the model's tensors that are changed in all their places. DoRA's are
        none of these: it gives an embedding and a head different lengths.
        """
        low_rank = {f"{module}.weight" for module in parts}
        changed = saved.keys() - low_rank if self.config.dora else saved.keys() | low_rank
        for name, source in tied_sources(self._base_config, {*saved, *low_rank}).items():
            layer, other = name.removesuffix(".weight"), source.removesuffix(".weight")
            if name not in changed or name in self.base:
                continue
            same = name not in saved or _equal(saved.pop(name), saved.get(source))
            if layer in parts:
                head, embedding = parts.pop(layer), parts.get(other, {})
                for side, turned in (("A", "B"), ("B", "A")):
                    same &= _equal(
                        head.get(f"lora_{side}.weight"), embedding.get(f"lora_embedding_{turned}")
                    )
            if not same:
                raise LinesError(
                    f"{self.file}: holds different updates of {source} and {name}, which the base "
                    f"ties and {self.config.file.name} says were trained as one "
                    f"(ensure_weight_tying). Save the adapter again."
                )
        return changed

    def _locate(self, names: Collection[str]) -> dict[str, str]:
        """Return the names in the base checkpoint of a model's tensors.

        Beside the names themselves those that transformers knows them by are tried, and both
        with and without the name of the inner model, as transformers does on loading.
        """
        lookup = {name: name for name in self.base}
        located = _located(names, lookup, self.base)
        if len(located) < len(names) and self._base_config is not None:
            lookup = {**_renamed(self._base_config, self.base), **lookup}
            located = _located(names, lookup, self.base)
        missing = [name for name in names if name not in located]
        if not missing:
            if _FUSED in located.values():
                raise Unsupported("transformers fuses tensors that it changes")
            return located
        for name in missing:
            if name.replace(".weight", ".in_proj_weight") in lookup:
                raise Unsupported(f"{name.removesuffix('.weight')} is a MultiheadAttention")
        hint = "Use the base that the adapter was made for."
        if any(name.endswith("lm_head.weight") for name in missing):
            hint = f"An output head that is tied to the embedding is no tensor of its own. {UNTIE}"
        raise LinesError(
            f"{self.file}: changes {len(names)} tensors, {len(missing)} of which the base has not "
            f"({some(missing, 3)}). {hint}"
        )

    def _check_ties(self, base_names: Mapping[str, str], everywhere: Collection[str]) -> None:
        """Refuse to change a tensor that two layers share, as PEFT trains only one of them.

        Args:
            base_names: the tensors that are changed.
            everywhere: those that were trained in all their places, as rows of an embedding are.
        """
        shared = shared_names(self._base_config, self.base)
        for name in sorted(set(base_names) - set(everywhere)):
            if name in shared or base_names[name] in shared:
                raise LinesError(
                    f"{self.file}: changes {base_names[name]}, which the base uses in two layers; "
                    f"merged, the adapter would change both, and was trained on one. {UNTIE}"
                )

    def _update(self, module: str, held: Mapping[str, Source], name: str) -> Update:
        embedding = "lora_embedding_A" in held
        ends = ("lora_embedding_A", "lora_embedding_B")
        a, b = (held[end] for end in (ends if embedding else ("lora_A.weight", "lora_B.weight")))
        shape, rank = self.base[name], self.config.rank(module)
        if len(a.shape) < 2 or len(a.shape) != len(b.shape) or 0 in a.shape + b.shape:
            raise LinesError(
                f"{self.file}: A and B of {module} have the shapes {a.shape} and {b.shape}, wanted "
                f"two whole matrices. The adapter was saved in pieces; save it again."
            )
        outputs, inputs = b.shape[0], a.shape[1]
        straight = (outputs, inputs, *a.shape[2:])
        grouped = len(shape) > 2 and b.shape[1] != rank == a.shape[0]
        if grouped and inputs * b.shape[1] == shape[1] * rank:
            raise LinesError(
                f"{self.file}: adapts {module}, a convolution in groups, whose LoRA cannot be "
                f"merged into its weight. Train an adapter that leaves this layer alone."
            )
        if a.shape[0] != rank or prod(b.shape) != outputs * rank:
            raise LinesError(
                f"{self.file}: A and B of {module} have the shapes {a.shape} and {b.shape}, and "
                f"{self.config.file.name} gives them rank {rank}. Save the adapter again."
            )
        backwards = len(shape) == 2 and shape == straight[::-1]
        transposed = embedding or (backwards and self._transposed(module))
        if shape != (straight[::-1] if transposed else straight):
            raise LinesError(
                f"{self.file}: the update of {module} has the shape {straight}, and the base's "
                f"{name} has {shape}. Use the base that the adapter was made for."
            )
        magnitude = held.get("lora_magnitude_vector")
        if magnitude is not None and prod(magnitude.shape) != outputs:
            raise LinesError(
                f"{self.file}: lora_magnitude_vector of {module} has the shape {magnitude.shape}, "
                f"wanted {outputs} entries. Save the adapter again."
            )
        return Update(a, b, self.config.scale(module), transposed, magnitude)

    def _transposed(self, module: str) -> bool:
        """Tell whether a matrix that may be stored as [in, out] is.

        PEFT's flag is that of the last layer it saw; the base's layers of the same name whose
        bias shows which side is the output are better evidence.
        """
        seen = self._orientations.get(module.rpartition(".")[2], set())
        return seen == {True} or (self.config.transposed and seen != {False})

    def _tokens(self, module: str, rows: Source, shape: tuple[int, ...]) -> Tokens:
        indices = self.config.token_indices(module)
        rows_shape = (len(indices), *shape[1:])
        if rows.shape != rows_shape or len(shape) != 2 or max(indices, default=0) >= shape[0]:
            raise LinesError(
                f"{self.file}: the trained rows of {module} have the shape {rows.shape}, and "
                f"replace {len(indices)} rows up to number {max(indices, default=0)} of a tensor "
                f"of shape {shape}. Use the base that the adapter was made for."
            )
        return Tokens(indices, rows)

    def _check_parts(self, module: str, held: Mapping[str, Source]) -> None:
        embedding = "lora_embedding_A" in held or "lora_embedding_B" in held
        needed = {f"lora_embedding_{side}" if embedding else f"lora_{side}.weight" for side in "AB"}
        needed |= {"lora_magnitude_vector"} if self.config.dora else set()
        needed |= {"lora_B.bias"} if self.config.bias and not embedding else set()
        if set(held) != needed:
            raise LinesError(
                f"{self.file}: of {module} it holds {some(held)}, and by {self.config.file.name} "
                f"it should hold {some(needed)}. Save the adapter again."
            )

    def _check_shape(self, name: str, tensor: Source, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise LinesError(
                f"{self.file}: {name} has the shape {tensor.shape}, and the base's has {shape}. "
                f"Use the base that the adapter was made for, with its vocabulary resized if that "
                f"is where they differ."
            )


def _equal(one: Source | None, other: Source | None) -> bool:
    """Tell whether two sources hold the same matrix, or one is the other's transpose."""
    if one is None or other is None:
        return False
    left, right = whole(one), whole(other)
    return torch.equal(left, right) or (left.dim() == 2 and torch.equal(left, right.T))


def _renamed(base_config: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the checkpoint's names by those that transformers gives its tensors on loading."""
    cls = model_class(base_config)
    if cls is None:
        return {}
    with torch.device("meta"):
        model = cls(base_config)
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if not isinstance(one, WeightRenaming)]
    inner, tensors = model.base_model_prefix, model.state_dict()
    result = {}
    for name in names:
        renamed, fused = rename_source_key(name, renamings, converters, inner, tensors)
        result[renamed] = name if fused is None else _FUSED
    return result


def _located(
    names: Collection[str], lookup: Mapping[str, str], base: Iterable[str]
) -> dict[str, str]:
    """Return what the names are in the base, by the rule that finds most of them."""
    tries = [
        {name: lookup[rule(name)] for name in names if rule(name) in lookup}
        for rule in _rules(names, base)
    ]
    return max(tries, key=len)


def _rules(names: Iterable[str], base: Iterable[str]) -> Iterator[Callable[[str], str]]:
    """Yield how a model's names may differ from its checkpoint's: by one inner model's name."""
    yield lambda name: name
    inner = {name.partition(".")[0] for name in base}
    for first in sorted({name.partition(".")[0] for name in names} - inner):
        yield lambda name, first=first: name.removeprefix(f"{first}.")  # type: ignore[misc]
    for first in sorted(inner):
        yield lambda name, first=first: f"{first}.{name}"  # type: ignore[misc]


def _orientations(base: Shapes) -> dict[str, set[bool]]:
    """Return whether layers store [in, out], by the last part of their names."""
    seen: dict[str, set[bool]] = {}
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        bias = base.get(f"{module}.bias")
        oblong = len(shape) == 2 and shape[0] != shape[1]
        if oblong and bias in (shape[:1], shape[1:]):
            seen.setdefault(module.rpartition(".")[2], set()).add(bias == shape[1:])
    return seen
