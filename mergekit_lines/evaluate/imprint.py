"""What an evaluator leaves behind: the model and the process are compared before and after.

A hook, a mode or a setting that stays would spoil what is measured next: it is put back, and named.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = 1 << 16  # words of eight bytes that are summed at a time: they fit the cache
# What stands in a module under names; its other dictionaries that are called so hold hooks.
_PARTS = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "module"}
_HOOKS = "hook"


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was.

    Attributes:
        kind: ``parameter``, ``buffer``, ``module``, ``hook on`` or ``setting``.
        place: which one, e.g. by its name in the model.
    """

    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind} {self.place}"


class Imprint:
    """A model and the process as they are when this is made.

    Args:
        model: a ``torch.nn.Module``. Parameters that accelerate keeps away from the devices stand
            on the meta device here: an evaluator cannot write to them, and they are not read.
    """

    def __init__(self, model: Any) -> None:
        self._modules = [_Module(name, module) for name, module in model.named_modules()]
        self._configs = list(_configs(self._modules))
        self._methods = {
            (type(part.module), word): vars(type(part.module)).get(word)
            for part in self._modules
            for word in ("forward", "generate")
        }
        self._settings = {name: read() for name, (read, _) in _process().items()}
        self._hooks = [(hooks, dict(hooks)) for hooks in _global_hooks()]
        self._numbers = self._read()

    def undo(self) -> list[Change]:
        """Put back what is not as it was, and return what that is.

        Numbers that were written into parameters are not put back; see :meth:`overwritten`.
        """
        undone = [change for part in self._modules for change in part.undo()]
        undone += [change for config in self._configs for change in config.undo()]
        for (kind, word), method in self._methods.items():
            if vars(kind).get(word) is not method:
                undone.append(Change("setting", f"{kind.__name__}.{word}"))
                delattr(kind, word) if method is None else setattr(kind, word, method)
        for name, (read, write) in _process().items():
            if read() != self._settings[name]:
                undone.append(Change("setting", name))
                write(self._settings[name])
        for hooks, entries in self._hooks:
            if hooks != entries:
                undone.append(Change("hook on", "every module"))
                _refill(hooks, entries)
        return list(dict.fromkeys(undone))

    def overwritten(self) -> list[Change]:
        """Return the parameters that hold other numbers than when this was last asked."""
        before, self._numbers = self._numbers, self._read()
        names = (name for name, number in self._numbers.items() if number != before[name])
        return [Change("parameter", name) for name in names]

    def _read(self) -> dict[str, int]:
        return {name: content(tensor) for part in self._modules for name, tensor in part.weights()}


class _Module:
    """One module: what stands in it, and in the collections that stand in it."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module = name, module
        self.fields = dict(vars(module))
        self._inner: dict[str, Any] = {
            key: copy.copy(value)
            for key, value in self.fields.items()
            if isinstance(value, (dict, list, set))
        }
        self._parameters = {
            key: (parameter, parameter.data, parameter.requires_grad)
            for key, parameter in self._inner["_parameters"].items()
            if parameter is not None and not parameter.is_meta
        }
        self._tensors = {
            key: (tensor, tensor.detach().clone())
            for key, tensor in {**self.fields, **self._inner["_buffers"]}.items()
            if hasattr(tensor, "is_meta") and not tensor.is_meta
        }

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Yield the parameters, by their names in the model."""
        for key, (parameter, _, _) in self._parameters.items():
            yield self._path(key), parameter

    def undo(self) -> Iterator[Change]:
        """Put back what is not as it was, and yield what that is."""
        for key in _put_back(vars(self.module), self.fields):
            yield Change("setting", "training" if key == "training" else self._path(key))
        for key, entries in self._inner.items():
            yield from self._undo_inner(key, entries)
        for key, (tensor, values) in self._tensors.items():
            if _form(tensor) != _form(values) or content(tensor) != content(values):
                yield Change("buffer", self._path(key))
                tensor.data = values.clone()
        for key, (parameter, data, gradient) in self._parameters.items():
            if _form(parameter) != _form(data) or parameter.data_ptr() != data.data_ptr():
                yield Change("parameter", self._path(key))
                parameter.data = data
            if parameter.requires_grad != gradient or parameter.grad is not None:
                yield Change("setting", f"requires_grad of {self._path(key)}")
                parameter.requires_grad_(gradient)
                parameter.grad = None

    def _undo_inner(self, key: str, entries: Any) -> Iterator[Change]:
        collection = self.fields[key]
        if not isinstance(entries, dict):
            if collection != entries:
                yield Change("setting", self._path(key))
                collection.clear()
                (collection.extend if isinstance(entries, list) else collection.update)(entries)
            return
        for name in _put_back(collection, entries):
            if key in _PARTS:
                yield Change(_PARTS[key], self._path(name))
            elif _HOOKS in key:
                yield Change("hook on", self.name or "the model")
            else:
                yield Change("setting", self._path(key))

    def _path(self, key: Any) -> str:
        return f"{self.name}.{key}" if self.name else str(key)


class _Config:
    """A config, or the settings of generation, that stands in a model or in its config."""

    def __init__(self, name: str, config: Any) -> None:
        self._name, self._config = name, config
        self._entries = {
            key: value if _is_config(value) else copy.deepcopy(value)
            for key, value in vars(config).items()
        }

    def undo(self) -> Iterator[Change]:
        """Put back what is not as it was, and yield what that is."""
        now = vars(self._config)
        for key in list({**now, **self._entries}):
            if key not in self._entries:
                del now[key]
            elif key in now and _equal(now[key], self._entries[key]):
                continue
            else:
                entry = self._entries[key]
                now[key] = entry if _is_config(entry) else copy.deepcopy(entry)
            yield Change("setting", f"{self._name}.{key}")


def _configs(modules: list[_Module]) -> Iterator[_Config]:
    """Yield every config once, under the name that it is first met by."""
    pending: list[tuple[str, Mapping[str, Any]]] = [(part.name, part.fields) for part in modules]
    seen: set[int] = set()
    for place, fields in pending:
        for key, value in fields.items():
            if _is_config(value) and id(value) not in seen:
                seen.add(id(value))
                name = f"{place}.{key}" if place else key
                pending.append((name, vars(value)))
                yield _Config(name, value)


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not callable(value)


def _put_back(now: dict[Any, Any], before: Mapping[Any, Any]) -> list[Any]:
    """Make a dictionary what it was, its order too, and return the keys that were not."""
    unlike = [
        key
        for key in {**before, **now}
        if key not in now or key not in before or not _same(now[key], before[key])
    ]
    if unlike or list(now) != list(before):
        _refill(now, before)
    return unlike


def _refill(now: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    now.clear()
    now.update(before)


def _same(one: Any, other: Any) -> bool:
    """Whether a field holds what it held: the same thing, or an equal number or text."""
    if one is other:
        return True
    if type(one) is type(other) and isinstance(one, (int, float, str)):
        return bool(one == other)
    # accelerate puts another empty parameter in the place of one that it took to a device.
    away = getattr(one, "is_meta", False) and getattr(other, "is_meta", False)
    return bool(away and _form(one) == _form(other))


def _equal(one: Any, other: Any) -> bool:
    return one is other if _is_config(other) else bool(one == other)


def _form(tensor: Any) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def content(tensor: Any) -> int:
    """Return 64 bits of a tensor's bytes: a change of any eight of them changes the number.

    It is a sum of the words times odd numbers, modulo 2⁶⁴; several changes cancel out by a chance
    of 2⁻⁶⁴ or so.
    """
    import torch

    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    flat = flat.view(torch.uint8)
    whole = len(flat) // 8 * 8
    words = flat[:whole]
    if words.storage_offset() % 8:
        words = words.clone()
    factors, products = _factors(tensor.device)
    sums = [
        torch.mul(part, factors[: len(part)], out=products[: len(part)]).sum()
        for part in (*words.view(torch.int64).split(_WORDS), flat[whole:].long())
    ]
    return int((torch.stack(sums) * factors[: len(sums)]).sum())


@functools.lru_cache(maxsize=16)
def _factors(device: Any) -> tuple[Any, Any]:
    """Return odd numbers of 64 bits, the same on every device, and room for products of them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**63), 2**63 - 1, (_WORDS,), generator=generator)
    factors = (numbers | 1).to(device)
    return factors, torch.empty_like(factors)


def _global_hooks() -> Iterator[dict[Any, Any]]:
    import torch

    for name, hooks in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield hooks


def _process() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Return what a process has one of, each with what reads it and what writes it."""
    import torch

    return {
        "the current directory": (os.getcwd, os.chdir),
        "torch's dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's threads": (torch.get_num_threads, torch.set_num_threads),
        "torch's gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's precision of products": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
    }
