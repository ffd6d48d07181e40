"""Where the weights of a live model lie: on devices, in host memory, on disk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import (
    find_tied_parameters,
    get_max_memory,
    offload_weight,
    save_offload_index,
    set_module_tensor_to_device,
)
from torch import nn

from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.engine.pieces import HeldResult, Sink
from mergekit_lines.engine.vectors import OnDisk, reserve
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.live.architecture import Part, Parts

Device = int | str


@dataclass(frozen=True)
class DevicePlan:
    """A model without storage, and the device that each part of it will be on.

    Attributes:
        model: on the meta device, its parameters in the dtypes of the output.
        parts: every output tensor that the model holds.
        ties: for a parameter's name, the other names it goes by.
        device_map: module names to devices, as accelerate writes it.
        main: the device that computes.
    """

    model: nn.Module
    parts: Parts
    ties: Mapping[str, Sequence[str]]
    device_map: Mapping[str, Device]
    main: torch.device

    def device_of(self, name: str) -> Device:
        """Return the device of a parameter: the one of the nearest module in the map.

        Buffers are on the main device: accelerate offloads parameters alone.
        """
        holder, _, own = name.rpartition(".")
        if own in self.model.get_submodule(holder)._buffers:
            return _named(self.main)
        module = name
        while module not in self.device_map:
            if not module:
                raise ValueError(f"device map {dict(self.device_map)} has no place for {name}")
            module = module.rpartition(".")[0]
        return self.device_map[module]

    def bytes(self) -> dict[str, int]:
        """Return the bytes of weights per device, ``cpu`` and ``disk`` among them."""
        totals: dict[str, int] = {}
        for name, slot in self.parts.slots.items():
            device = str(self.device_of(name))
            totals[device] = totals.get(device, 0) + slot.bytes
        return totals

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients that a backward pass holds at once, at most.

        Each is freed when it was looked at. That of a tied matrix waits from the head's use of it
        for the embeddings' own, and the two are added into a third.
        """
        return 3 * max((slot.bytes for slot in self.parts.slots.values()), default=0)


def place_parts(
    model: nn.Module,
    parts: Parts,
    device: torch.device,
    max_memory: Mapping[Device, int | str] | None,
    working: int,
) -> DevicePlan:
    """Decide where each part of a model goes.

    Args:
        model: on the meta device.
        parts: of :func:`~mergekit_lines.live.architecture.parameter_parts`.
        device: where all of it goes, if there are no limits.
        max_memory: bytes per device as accelerate takes them, e.g. ``{0: "20GiB", "cpu": "8GiB"}``;
            what does not fit goes to disk.
        working: bytes of the device's limit that merging needs for itself.

    Raises:
        LinesError: a limit leaves no room for any block.
    """
    groups = find_tied_parameters(model)
    ties = {name: [n for n in group if n != name] for group in groups for name in group}
    if max_memory is None:
        return DevicePlan(model, parts, ties, {"": _named(device)}, device)
    try:
        limits = dict(get_max_memory(dict(max_memory)))
    except (ValueError, TypeError) as error:
        raise LinesError(
            f"max_memory: found {max_memory!r} ({reason(error)}), wanted bytes or a size per "
            f'device, e.g. {{0: "20GiB", "cpu": "16GiB"}}.'
        ) from error
    computing = [key for key in limits if key not in ("cpu", "disk")]
    main: Device = computing[0] if computing else "cpu"
    if limits.get(main, 0) <= working:
        raise LinesError(
            f"max_memory[{main!r}]: found {limits.get(main, 0):,} bytes, of which merging takes "
            f"{working:,} for itself, wanted more. Raise the limit."
        )
    limits[main] -= working
    whole = getattr(model, "_no_split_modules", None)
    device_map = infer_auto_device_map(
        model, max_memory=limits, no_split_module_classes=sorted(whole) if whole else None
    )
    return DevicePlan(model, parts, ties, device_map, _device(main))


def _device(main: Device) -> torch.device:
    """Return the device of a key of ``max_memory``; a plan may name one that is not there."""
    try:
        return torch.device(main)
    except RuntimeError:
        return torch.device("cuda", int(main))


def _named(device: torch.device) -> Device:
    if device.type == "cpu":
        return "cpu"
    return device.index if device.index is not None else 0 if device.type == "cuda" else device.type


def empty_model(make: Any) -> nn.Module:
    """Return the model that ``make()`` builds, its parameters on the meta device and tied."""
    with init_empty_weights(include_buffers=False):
        model: nn.Module = make()
    tie = getattr(model, "tie_weights", None)
    if tie is not None:  # its parameters were registered one by one
        tie()
    return model


def in_dtypes(model: nn.Module, slots: Mapping[str, Slot]) -> None:
    """Give a model's empty parameters the dtypes of the output."""
    ties = find_tied_parameters(model)
    for name, slot in slots.items():
        names = next((group for group in ties if name in group), [name])
        parameter: nn.Parameter | None = None
        for each in names:
            holder, _, own = each.rpartition(".")
            module = model.get_submodule(holder)
            if own not in module._parameters:
                continue
            if parameter is None:
                empty = torch.empty(slot.shape, dtype=slot.dtype, device="meta")
                parameter = nn.Parameter(empty, requires_grad=False)
            module._parameters[own] = parameter


class LiveWeights:
    """The places of a live model's weights, for the engine to write to.

    Args:
        plan: where each part goes; its model gets its storage here.
        folder: for what goes to disk.
    """

    def __init__(self, plan: DevicePlan, folder: Path) -> None:
        self._plan = plan
        self._host: dict[str, torch.Tensor] = {}
        self._files: dict[str, OnDisk] = {}
        self.model = plan.model
        self._allocate(folder)
        self._dispatch(folder)

    def _allocate(self, folder: Path) -> None:
        index: dict[str, Any] = {}
        for name, slot in self._plan.parts.slots.items():
            device = self._plan.device_of(name)
            names = [name, *self._plan.ties.get(name, ())]
            if device == "disk":
                self._files[name] = _on_disk(names, slot, folder, index)
            elif device == "cpu" and self._plan.main.type != "cpu":
                tensor = torch.empty(slot.shape, dtype=slot.dtype)
                self._host |= dict.fromkeys(names, tensor)
            else:
                place = torch.device(device)
                value = torch.empty(slot.shape, dtype=slot.dtype, device=place)
                set_module_tensor_to_device(self.model, name, place, value=value, dtype=slot.dtype)
                self._tie(names)
        save_offload_index(index, str(folder))
        for name, value in self._plan.parts.computed.items():
            part = Part(name, self._plan.parts.slots[name])
            self._place(part).write(0, value.flatten())

    def _tie(self, names: Sequence[str]) -> None:
        first, *others = names
        parameter = self.model.get_parameter(first) if others else None
        for name in others:
            holder, _, own = name.rpartition(".")
            self.model.get_submodule(holder)._parameters[own] = parameter

    def _dispatch(self, folder: Path) -> None:
        self.model.requires_grad_(requires_grad=False)
        self.model.eval()
        main = self._plan.main
        if self._files or self._host or len(set(self._plan.device_map.values())) > 1:
            with warnings.catch_warnings():
                # Of what stands in no module, which accelerate has named itself.
                warnings.filterwarnings("ignore", "The following device_map keys", UserWarning)
                dispatch_model(
                    self.model,
                    dict(self._plan.device_map),
                    main_device=_named(main),  # accelerate compares it with "cpu"
                    state_dict=self._host or None,
                    offload_dir=str(folder) if self._files else None,
                    force_hooks=bool(self._files),  # older releases refuse a whole model
                )
        else:
            self.model.to(main)  # buffers that were computed on the CPU

    def wants(self, name: str) -> bool:
        """Tell whether the model has a parameter, or a part of one, for an output tensor."""
        return name in self._plan.parts.of_output

    def slot(self, name: str) -> Slot:
        """Return what the tensor has to be."""
        return self._plan.parts.of_output[name][0].slot

    def sink(self, name: str) -> Sink:
        """Return the place of a tensor."""
        parts = self._plan.parts.of_output[name]
        places = [self._place(part) for part in parts]
        return places[0] if len(parts) == 1 else _Runs(parts, places)

    def _place(self, part: Part) -> Sink:
        own = part.parameter
        if own in self._files:
            return _DiskSink(self._files[own], part.offset)
        if own in self._host:
            return HeldResult(self._host[own].view(-1).narrow(0, part.offset, part.count))
        holder, _, last = own.rpartition(".")
        module = self.model.get_submodule(holder)
        tensor: torch.Tensor = getattr(module, last)
        slot = self._plan.parts.slots[own]
        if (tuple(tensor.shape), tensor.dtype) != (slot.shape, slot.dtype) or tensor.is_meta:
            raise LinesError(
                f"the live model's {own} was changed from outside: found {tensor.dtype} "
                f"{tuple(tensor.shape)}, wanted {slot.dtype} {slot.shape}. Let evaluators work on "
                f"a copy, and open the model again."
            )
        return HeldResult(tensor.detach().view(-1).narrow(0, part.offset, part.count))

    def finished(self, name: str) -> None:
        """Take note of nothing: a weight in its place is there."""

    def close(self) -> None:
        """Leave the model to whoever holds it."""

    def settle(self) -> None:
        """Wait for nothing."""

    def abandon(self) -> None:
        """Leave the weights as they are; the next setting writes all of them."""


@dataclass(frozen=True)
class _Runs:
    """The places of a tensor that goes to several parameters, one run after another."""

    parts: Sequence[Part]
    places: Sequence[Sink]

    def write(self, start: int, piece: torch.Tensor) -> None:
        for part, place in zip(self.parts, self.places, strict=True):
            begin = max(start, part.start)
            end = min(start + len(piece), part.start + part.count)
            if begin < end:
                place.write(begin - part.start, piece[begin - start : end - start])


@dataclass(frozen=True)
class _DiskSink:
    file: OnDisk
    offset: int

    def write(self, start: int, piece: torch.Tensor) -> None:
        self.file.write(self.offset + start, piece.cpu())


def _on_disk(names: Sequence[str], slot: Slot, folder: Path, index: dict[str, Any]) -> OnDisk:
    """Make the files from which accelerate reads an offloaded parameter, one for all its names."""
    first, *others = names
    offload_weight(torch.zeros((), dtype=slot.dtype), first, str(folder), index)
    entry = {**index[first], "shape": list(slot.shape)}
    path = folder / f"{first}.dat"
    reserve(path, max(slot.bytes, 1))
    for name in names:
        index[name] = entry
    for name in others:
        (folder / f"{name}.dat").symlink_to(path.name)
    return OnDisk(path, slot.shape, slot.dtype)
