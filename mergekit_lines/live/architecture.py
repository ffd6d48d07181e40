"""From a config to an empty model, and from output tensors to its parameters."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import find_tied_parameters
from mergekit.common import get_auto_cls
from torch import nn
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.loading import ModelNames, does_without_pooler
from mergekit_lines.checkpoint.ties import model_class
from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.lines.depth import natural_key
from mergekit_lines.plan.layout import recomputed

_ALIGNED = "Force16BytesAlignment"  # of transformers' conversions: where in memory, not what


def maker(
    config: Any,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool,
    class_options: Mapping[str, Any] = {},
) -> Callable[[], nn.Module]:
    """Return what builds the model of a config, without weights.

    Args:
        config: of transformers.
        dtype: the default while it is built: buffers that the model computes have it.
        trust_remote_code: whether code that comes with the model may run.
        class_options: of a class of transformers, beside the config.

    Raises:
        LinesError: when called: transformers knows no such model.
    """
    names = getattr(config, "architectures", None) or []

    def make() -> nn.Module:
        if not names:
            raise LinesError(
                "the live model: config.json names no class of transformers, which would be built "
                "and set. Merge to disk with mergekit-yaml, and load what that writes with the "
                "models' own library."
            )
        cls = model_class(config)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with no_init_weights():
                if cls is not None:
                    return cls(config, **class_options)
                auto = get_auto_cls(names[0])
                return auto.from_config(config, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise LinesError(
                f"architecture {', '.join(names)}: transformers cannot build this "
                f"model ({reason(error)}). Install what it needs, or give trust_remote_code."
            ) from error
        finally:
            torch.set_default_dtype(before)

    return make


def without_its_head(model: nn.Module, outputs: Sequence[Slot]) -> str | None:
    """Return the class of a model's trunk, where the output holds the trunk and no head; or None.

    Sentence encoders are stored so, under the class that they were trained with first.
    """
    names = ModelNames(model)
    held = {names.loaded(slot.name)[0] for slot in outputs}
    shared = {name for group in find_tied_parameters(model) if held & {*group} for name in group}
    empty = [name for name, _ in model.named_parameters() if name not in held | shared]
    if not empty or names.heads(held) or any(map(names.in_trunk, empty)):
        return None
    return names.trunk


def without_its_pooler(model: nn.Module, outputs: Sequence[Slot]) -> bool:
    """Tell whether the output holds a trunk but for the pooler, which its class does without."""
    names = ModelNames(model)
    held = {names.loaded(slot.name)[0] for slot in outputs}
    empty = [name for name, _ in model.named_parameters() if name not in held]
    poolers = [name for name in empty if name.startswith("pooler.")]
    return bool(empty) and empty == poolers and does_without_pooler(type(model))


@dataclass(frozen=True)
class Part:
    """Where an output tensor, or a run of its entries, goes in a model.

    Attributes:
        parameter: or persistent buffer, by its name in the model.
        slot: the output tensor.
        offset: entries of the parameter that stand before it: experts that a class fuses are
            parts of one parameter.
        start: entries of the output tensor that go elsewhere before this run: a class that
            splits what the files hold as one has several parts of it.
        entries: of the run; all of the tensor's if it is not given.
    """

    parameter: str
    slot: Slot
    offset: int = 0
    start: int = 0
    entries: int | None = None

    @property
    def count(self) -> int:
        """Entries of the run."""
        return math.prod(self.slot.shape) if self.entries is None else self.entries


@dataclass(frozen=True)
class Parts:
    """The output tensors in a model.

    Attributes:
        slots: the parameters, by their names in the model.
        of_output: the parts of them that each output tensor is, by the output's name.
        computed: values of parameters that no file holds, as the class computes them.
    """

    slots: Mapping[str, Slot]
    of_output: Mapping[str, Sequence[Part]]
    computed: Mapping[str, torch.Tensor]


def parameter_parts(model: nn.Module, outputs: Sequence[Slot]) -> Parts:
    """Return the parameter, persistent buffer, or part of one that each output tensor is.

    Names are the model's after transformers' own renamings. Tied parameters stand under the one
    name that is stored; where several are, they are untied, as transformers does on loading
    where they differ.

    Raises:
        LinesError: names are not one-to-one with the model's, or shapes differ.
    """
    held: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    names = ModelNames(model)
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    parts: dict[str, list[Part]] = {}
    fused: dict[str, list[tuple[Slot, str, Any]]] = {}
    strange, unlike = [], []
    for slot in sorted(outputs, key=lambda slot: slot.name):  # as transformers sorts them
        name, converter, pattern = names.loaded(slot.name)
        if name not in held:
            if not recomputed(slot.name) and not any(re.search(one, slot.name) for one in ignored):
                strange.append(slot.name)
        elif converter is not None:
            fused.setdefault(name, []).append((slot, str(pattern), converter))
        elif tuple(held[name].shape) != slot.shape:
            unlike.append(f"{slot.name} {slot.shape} and {tuple(held[name].shape)}")
        else:
            parts[slot.name] = [Part(name, slot)]
    slots = {part.parameter: part.slot for (part,) in parts.values()}
    twice = [name for name, (part,) in parts.items() if slots[part.parameter].name != name]
    for name, members in fused.items():
        own = [*_fused_parts(name, tuple(held[name].shape), members), *_split(name, held, members)]
        if not own or any(part.parameter in slots for part in own):
            strange += [slot.name for slot, _, _ in members]
            continue
        for part in own:
            shape = tuple(held[part.parameter].shape)
            slots[part.parameter] = Slot(part.parameter, shape, part.slot.dtype)
            parts.setdefault(part.slot.name, []).append(part)
    _check(model, strange + twice, unlike)
    _untie(model, slots)
    groups = find_tied_parameters(model)
    shared = {name for group in groups if any(n in slots for n in group) for name in group}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    empty = [name for name in parameters if name not in slots and name not in shared]
    computed = {name: value for name in empty if (value := _computed(model, name)) is not None}
    slots |= {name: Slot(name, tuple(each.shape), each.dtype) for name, each in computed.items()}
    if empty := [name for name in empty if name not in computed]:
        raise LinesError(
            f"architecture {type(model).__name__}: {some(empty, 3)} of the model are not in the "
            f"recipe's output, wanted a value for every parameter. Is config.json that of these "
            f"checkpoints?"
        )
    return Parts(slots, parts, computed)


def _check(model: nn.Module, strange: Sequence[str], unlike: Sequence[str]) -> None:
    kind = type(model).__name__
    if strange:
        raise LinesError(
            f"architecture {kind}: {some(strange, 3)} of the checkpoint are no parameters of the "
            f"model, which builds its own from them on loading, wanted names that are one-to-one. "
            f"Merge such a model to disk with mergekit-yaml, and evaluate what that writes."
        )
    if unlike:
        raise LinesError(
            f"architecture {kind}: {some(unlike, 3)} differ between recipe and config. Save the "
            f"models again, with the config that belongs to them."
        )


def _fused_parts(
    name: str, shape: tuple[int, ...], members: Sequence[tuple[Slot, str, Any]]
) -> Iterator[Part]:
    """Yield where the tensors stand that one parameter is made of; none where they do not.

    A list of modules is stacked, and stacks of several patterns are joined along one dimension:
    each tensor is an unbroken run of entries then. Conversions that turn entries about are not.
    """
    converter = members[0][2]
    kinds = [type(operation).__name__ for operation in converter.operations]
    kinds = [kind for kind in kinds if kind != _ALIGNED]
    stacked = kinds[:1] == ["MergeModulelist"] and converter.operations[0].dim == 0
    joined = kinds[-1:] == ["Concatenate"]
    if len(kinds) != stacked + joined or len({slot.dtype for slot, _, _ in members}) > 1:
        return
    whole = torch.empty(shape, device="meta")
    lists: dict[str, list[Slot]] = {pattern: [] for pattern in converter.source_patterns}
    for slot, pattern, _ in members:
        lists[pattern].append(slot)
    start, entries, parts = 0, 0, []
    for slots in (lists[pattern] for pattern in converter.source_patterns if lists[pattern]):
        slots.sort(key=lambda slot: natural_key(slot.name))
        stack = whole
        if joined:
            dim = converter.operations[-1].dim
            width = slots[0].shape[dim - stacked]
            if start + width > shape[dim]:
                return
            stack = whole.narrow(dim, start, width)
            start += width
        if len(slots) != (len(stack) if stacked else 1):
            return
        for place, slot in enumerate(slots):
            view = stack[place] if stacked else stack
            if tuple(view.shape) != slot.shape or not view.is_contiguous():
                return
            entries += view.numel()
            parts.append(Part(name, slot, int(view.storage_offset())))
    if entries == whole.numel():
        yield from parts


def _split(
    name: str, held: Mapping[str, torch.Tensor], members: Sequence[tuple[Slot, str, Any]]
) -> Iterator[Part]:
    """Yield where the rows of a tensor stand that a class splits (a gated MLP's two matrices)."""
    (slot, _, converter), *others = members
    first, *_ = targets = list(converter.target_patterns)
    names = [name.replace(first, target) for target in targets]
    kinds = [(type(one).__name__, getattr(one, "dim", None)) for one in converter.operations]
    if others or kinds != [("Chunk", 0)] or len({*names}) < 2 or not {*names} <= held.keys():
        return
    shapes = [tuple(held[one].shape) for one in names]
    rows, *rest = shapes[0]
    if {*shapes} != {shapes[0]} or (rows * len(names), *rest) != slot.shape:
        return
    entries = math.prod(shapes[0])
    for number, one in enumerate(names):
        yield Part(one, slot, start=number * entries, entries=entries)


def _computed(model: nn.Module, name: str) -> torch.Tensor | None:
    """Return a parameter's value that a class computes and no file holds (Marian's positions).

    The class says that its files lack it; what it would draw at random is none of these.
    """
    declared = getattr(model, "_keys_to_ignore_on_load_missing", None) or []
    initialize: Any = getattr(model, "_init_weights", None)
    if initialize is None or not any(re.fullmatch(pattern, name) for pattern in declared):
        return None
    holder, _, own = name.rpartition(".")
    values = []
    for seed in range(2):
        module = copy.deepcopy(model.get_submodule(holder)).to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            getattr(module, own).fill_(seed)  # what is left as it was is not computed
            initialize(module)
        values.append(getattr(module, own).detach())
    return values[0] if torch.equal(*values) else None


def _untie(model: nn.Module, stored: Collection[str]) -> None:
    """Give tied parameters that are stored under several names one parameter for each of these.

    The others stay with the one that the model's class names as their source, or with the first.
    """
    declared: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for group in find_tied_parameters(model):
        order = dict.fromkeys([*declared.values(), *declared, *group])
        _, *others = [name for name in order if name in group and name in stored] or [""]
        for name in others:
            holder, _, own = name.rpartition(".")
            module = model.get_submodule(holder)
            module._parameters[own] = nn.Parameter(
                torch.empty_like(getattr(module, own)), requires_grad=False
            )
            declared.pop(name, None)
