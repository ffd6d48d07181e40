"""The weights of a recipe's models, read once: how far each is from the base, block by block.

Sums over entries are of fp32 differences, in pieces, added in a fixed order in float64.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from mergekit.common import ModelReference
from tqdm import tqdm

from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.sources import Source
from mergekit_lines.host.process import available_cores
from mergekit_lines.inspection.ranks import sampled_ranks
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.plan.planned import PlannedTensor

PIECE = 1 << 17  # entries
EVERY = 16  # of so many pieces one is looked at for signs


@dataclass(frozen=True)
class Depth:
    """One block, or all that is outside; sequences have a value per model, in their order.

    Attributes:
        container: of the block; empty outside.
        index: of the block, from 1; 0 outside.
        coefficient: λ, the mean over the block's tensors; None where only the weights tell α, or
            nothing is scaled by depth.
        base: ‖θ_0‖.
        changes: ‖τ_t‖.
        cosines: of τ_s and τ_t, for the pairs (0, 1), (0, 2), … (1, 2), …; None where one is 0.
        conflict: of sampled entries that two or more models change, the share whose signs
            differ; None where there is none.
        ranks: effective rank of τ_t, exp of the entropy of σ²/Σσ², as a share of the rows of
            sampled matrices, their mean; None where nothing changed.
    """

    container: str
    index: int
    coefficient: float | None
    base: float
    changes: tuple[float, ...]
    cosines: tuple[float | None, ...]
    conflict: float | None
    ranks: tuple[float | None, ...]

    @property
    def name(self) -> str:
        """What the block is called in a table."""
        return f"{self.container} {self.index}" if self.index else "outside"

    @property
    def shares(self) -> tuple[float, ...]:
        """‖τ_t‖/‖θ_0‖; infinite where the base is 0 and the model is not."""
        if not self.base:
            return tuple(math.inf if change else 0.0 for change in self.changes)
        return tuple(change / self.base for change in self.changes)


@dataclass(frozen=True)
class Look:
    """All blocks of a recipe's models.

    Attributes:
        models: the fine-tuned ones.
        depths: blocks in the order of their containers, what is outside last.
        total: the same over the whole model.
        largest: per model, the tensor with most of ‖τ_t‖², and its share.
        kept: ‖λ·τ‖/‖τ‖ of the sum of the task vectors: how much of the update is left; None
            where λ is not known.
        unseen: models that do not stand beside those: of other slices.
        nonfinite: tensors with NaN or infinity, with their model; they count nowhere.
        left_out: tensors whose shape differs from the base's.
    """

    models: tuple[str, ...]
    depths: tuple[Depth, ...]
    total: Depth
    largest: tuple[tuple[str, float], ...]
    kept: float | None
    unseen: tuple[str, ...]
    nonfinite: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The models by the last part of their names, where these differ."""
        ends = [model.rstrip("/").rsplit("/", 1)[-1] for model in self.models]
        return tuple(ends) if len(set(ends)) == len(ends) else self.models


class _Sums:
    """Sums over some tensors: products of θ_0 and the τ_t, signs, ranks."""

    def __init__(self, models: int) -> None:
        self.base = 0.0
        self.products = np.zeros((models, models))
        self.signs = [0, 0]  # entries that differ in sign, entries that two or more change
        self.ranks: list[list[float]] = [[] for _ in range(models)]

    def add(self, other: _Sums) -> None:
        self.base += other.base
        self.products += other.products
        self.signs = [a + b for a, b in zip(self.signs, other.signs, strict=True)]
        for own, more in zip(self.ranks, other.ranks, strict=True):
            own.extend(more)

    def depth(self, container: str, index: int, coefficient: float | None) -> Depth:
        changes = np.sqrt(self.products.diagonal()).tolist()
        cosines: list[float | None] = []
        for first in range(len(changes)):
            for second in range(first + 1, len(changes)):
                length = changes[first] * changes[second]
                product = float(self.products[first, second])
                cosines.append(max(-1.0, min(1.0, product / length)) if length else None)
        differ, both = self.signs
        return Depth(
            container,
            index,
            coefficient,
            math.sqrt(self.base),
            tuple(changes),
            tuple(cosines),
            differ / both if both else None,
            tuple(sum(own) / len(own) if own else None for own in self.ranks),
        )


@dataclass(frozen=True)
class _Tensor:
    """One output tensor's inputs."""

    item: PlannedTensor
    base: Source
    tuned: Sequence[Source]


def look(
    planned: Sequence[PlannedTensor],
    opened: OpenedModels,
    depths: Mapping[str, BlockDepth | None],
    coefficients: Mapping[str, float | None],
    threads: int | None,
) -> Look:
    """Read the weights once, and return how the models lie to the base and to each other.

    Args:
        planned: the recipe's output tensors.
        opened: its models.
        depths: the block of every tensor; None outside.
        coefficients: λ by tensor, None where it is not known.
        threads: that read and compute; None for one per core.

    Raises:
        LinesError: an input cannot be read.
    """
    base = planned[0].task.base_model
    models = [model for model in planned[0].task.model_order if model != base]
    by_depth: dict[tuple[str, int], _Sums] = defaultdict(lambda: _Sums(len(models)))
    values: dict[tuple[str, int], list[float | None]] = defaultdict(list)
    largest = [("", 0.0)] * len(models)
    nonfinite: list[str] = []
    left_out: list[str] = []
    kept = 0.0
    with ThreadPoolExecutor(
        threads or available_cores(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for item in tqdm(planned, desc="Reading the weights", unit="tensor", delay=2, disable=None):
            tensor = _inputs(item, opened, base, models)
            if tensor is None:
                left_out.append(item.weight.name)
                continue
            sums, bad = _measured(tensor, pool)
            if bad:
                nonfinite += [f"{item.weight.name} of {([base, *models])[one]}" for one in bad]
                continue
            depth = depths[item.weight.name]
            place = (depth.container, depth.index + 1) if depth else ("", 0)
            by_depth[place].add(sums)
            value = coefficients.get(item.weight.name)
            values[place].append(value)
            kept += math.nan if value is None else value**2 * float(sums.products.sum())
            for number, square in enumerate(sums.products.diagonal().tolist()):
                if square > largest[number][1]:
                    largest[number] = (item.weight.name, square)
    whole = _Sums(len(models))
    for sums in by_depth.values():
        whole.add(sums)
    total = whole.depth("", 0, None)
    update = float(whole.products.sum())
    listed = dict.fromkeys(model for item in planned for model in item.task.model_order)
    places = sorted(by_depth, key=lambda place: (not place[1], place))
    return Look(
        tuple(map(str, models)),
        tuple(by_depth[place].depth(*place, _mean(values[place])) for place in places),
        total,
        tuple(
            (name, square / change**2 if change else 0.0)
            for (name, square), change in zip(largest, total.changes, strict=True)
        ),
        math.sqrt(kept / update) if update > 0 and math.isfinite(kept) else None,
        tuple(str(model) for model in listed if model not in (base, *models)),
        tuple(nonfinite),
        tuple(left_out),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if len(told) == len(values) else None


def _inputs(
    item: PlannedTensor,
    opened: OpenedModels,
    base: ModelReference,
    models: Sequence[ModelReference],
) -> _Tensor | None:
    """Return a tensor of base and models, or None where their shapes differ or one has none."""
    sources = {model: opened.source(model, weight) for model, weight in item.task.inputs.items()}
    listed = [sources.get(model) for model in (base, *models)]
    present = [source for source in listed if source is not None]
    if len(present) < len(listed) or len({source.shape for source in present}) > 1:
        return None
    if not all(source.dtype.is_floating_point for source in present):
        return None
    return _Tensor(item, present[0], present[1:])


def _measured(tensor: _Tensor, pool: ThreadPoolExecutor) -> tuple[_Sums, list[int]]:
    """Return a tensor's sums, and which of base (0) and models hold NaN or infinity."""
    size = math.prod(tensor.base.shape)
    starts = range(0, size, PIECE)
    jobs = [
        pool.submit(_piece, tensor, start, min(start + PIECE, size), signs=not number % EVERY)
        for number, start in enumerate(starts)
    ]
    rank = pool.submit(sampled_ranks, tensor.base, tensor.tuned)
    sums = _Sums(len(tensor.tuned))
    bad: set[int] = set()
    try:
        for job in jobs:
            part, strange = job.result()
            sums.add(part)
            bad.update(strange)
        sums.ranks = rank.result()
    finally:
        for job in jobs:
            job.cancel()
    return sums, sorted(bad)


_SCRATCH = threading.local()


def _buffer(name: str, rows: int, columns: int) -> torch.Tensor:
    held = _SCRATCH.__dict__.get(name)
    if held is None or held.numel() < rows * columns:
        held = _SCRATCH.__dict__[name] = torch.empty(rows * columns)
    return held[: rows * columns].view(rows, columns)


def _piece(tensor: _Tensor, start: int, stop: int, *, signs: bool) -> tuple[_Sums, list[int]]:
    sums = _Sums(len(tensor.tuned))
    base = _buffer("base", 1, stop - start)[0]
    deltas = _buffer("deltas", len(tensor.tuned), stop - start)
    tensor.base.read_into(start, stop, base)
    for row, source in zip(deltas, tensor.tuned, strict=True):
        source.read_into(start, stop, row)
        row.sub_(base)
    _set_products(sums, base, deltas)
    if not _finite(sums):
        strange = _strange(base, deltas)
        if strange:
            return _Sums(len(tensor.tuned)), strange
        _set_products(sums, base.double(), deltas.double())  # squares that fp32 does not have
    if signs and len(deltas) > 1:
        sums.signs = _signs(deltas)
    return sums, []


def _set_products(sums: _Sums, base: torch.Tensor, deltas: torch.Tensor) -> None:
    sums.base = float(torch.dot(base, base))
    for first, row in enumerate(deltas):
        for second in range(first, len(deltas)):
            product = float(torch.dot(row, deltas[second]))
            sums.products[first, second] = sums.products[second, first] = product


def _finite(sums: _Sums) -> bool:
    return math.isfinite(sums.base) and bool(np.isfinite(sums.products).all())


def _signs(deltas: torch.Tensor) -> list[int]:
    """Count the entries whose signs differ between rows, and those that two or more rows have."""
    positive, negative = deltas[0] > 0, deltas[0] < 0
    some = positive | negative
    both = torch.zeros_like(some)
    for row in deltas[1:]:
        more, less = row > 0, row < 0
        positive |= more
        negative |= less
        more |= less
        both |= some & more
        some |= more
    return [int(torch.count_nonzero(positive & negative)), int(torch.count_nonzero(both))]


def _strange(base: torch.Tensor, deltas: torch.Tensor) -> list[int]:
    """Return which of base (0) and models hold NaN or infinity."""
    if not bool(torch.isfinite(base).all()):
        return [0]
    return [number for number, row in enumerate(deltas, 1) if not bool(torch.isfinite(row).all())]
