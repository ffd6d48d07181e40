"""From a config to an empty model, and from output tensors to its parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from accelerate.utils import find_tied_parameters
from mergekit.common import get_auto_cls
from torch import nn
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.ties import model_class
from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.errors import LinesError, reason, some


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
                f"architecture {', '.join(names) or 'unknown'}: transformers cannot build this "
                f"model ({reason(error)}). Install what it needs, or give trust_remote_code."
            ) from error
        finally:
            torch.set_default_dtype(before)

    return make


def parameter_names(model: nn.Module, slots: Sequence[Slot]) -> dict[str, Slot]:
    """Return the parameter, or persistent buffer, that each output tensor is.

    A checkpoint without the prefix of its base model is understood. Tied parameters stand under
    the one name that is stored; where several are, they are untied, as transformers does on
    loading where they differ.

    Raises:
        LinesError: names are not one-to-one with the model's, or shapes differ.
    """
    held: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    prefix = getattr(model, "base_model_prefix", "")
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    stored: dict[str, Slot] = {}
    strange, unlike = [], []
    for slot in slots:
        names = [slot.name, f"{prefix}.{slot.name}"]
        name = next((name for name in names if name in held), None)
        if name is None:
            if not any(re.search(pattern, slot.name) for pattern in ignored):
                strange.append(slot.name)
        elif tuple(held[name].shape) != slot.shape:
            unlike.append(f"{slot.name} {slot.shape} and {tuple(held[name].shape)}")
        else:
            stored[name] = slot
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
    _untie(model, stored)
    groups = find_tied_parameters(model)
    shared = {name for group in groups if any(n in stored for n in group) for name in group}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    empty = [name for name in parameters if name not in stored and name not in shared]
    if empty:
        raise LinesError(
            f"architecture {kind}: {some(empty, 3)} of the model are not in the recipe's output, "
            f"wanted a value for every parameter. Is config.json that of these checkpoints?"
        )
    return stored


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
