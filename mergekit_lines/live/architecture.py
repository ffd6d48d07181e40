"""From a config to an empty model, and from output tensors to its parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import find_tied_parameters
from mergekit.common import get_auto_cls
from torch import nn
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.loading import ModelNames
from mergekit_lines.checkpoint.ties import model_class
from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.lines.depth import natural_key
from mergekit_lines.plan.layout import recomputed


def maker(config: Any, dtype: torch.dtype, *, trust_remote_code: bool) -> Callable[[], nn.Module]:
    """Return what builds the model of a config, without weights.

    Args:
        config: of transformers.
        dtype: the default while it is built: buffers that the model computes have it.
        trust_remote_code: whether code that comes with the model may run.

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
                    return cls(config)
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


@dataclass(frozen=True)
class Part:
    """Where an output tensor goes in a model.

    Attributes:
        parameter: or persistent buffer, by its name in the model.
        slot: the output tensor.
        offset: entries of the parameter that stand before it: experts that a class fuses are
            parts of one parameter.
    """

    parameter: str
    slot: Slot
    offset: int = 0


@dataclass(frozen=True)
class Parts:
    """The output tensors in a model.

    Attributes:
        slots: the parameters, by their names in the model.
        of_output: the part of one that each output tensor is, by the output's name.
    """

    slots: Mapping[str, Slot]
    of_output: Mapping[str, Part]


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
    parts: dict[str, Part] = {}
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
            parts[slot.name] = Part(name, slot)
    slots = {part.parameter: part.slot for part in parts.values()}
    twice = [name for name, part in parts.items() if slots[part.parameter].name != name]
    for name, members in fused.items():
        own = list(_fused_parts(name, tuple(held[name].shape), members))
        if not own or name in slots:
            strange += [slot.name for slot, _, _ in members]
            continue
        slots[name] = Slot(name, tuple(held[name].shape), members[0][0].dtype)
        parts |= {part.slot.name: part for part in own}
    _check(model, strange + twice, unlike)
    _untie(model, slots)
    groups = find_tied_parameters(model)
    shared = {name for group in groups if any(n in slots for n in group) for name in group}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    empty = [name for name in parameters if name not in slots and name not in shared]
    if empty:
        raise LinesError(
            f"architecture {type(model).__name__}: {some(empty, 3)} of the model are not in the "
            f"recipe's output, wanted a value for every parameter. Is config.json that of these "
            f"checkpoints?"
        )
    return Parts(slots, parts)


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
