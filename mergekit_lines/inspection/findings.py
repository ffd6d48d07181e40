"""What an inspection tells, as plain data: the same for tables, pictures and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mergekit_lines.errors import Problem
from mergekit_lines.inspection.deep import Look
from mergekit_lines.plan.memory import Memory

FORMAT = 1


@dataclass(frozen=True, order=True)
class Coefficient:
    """λ, or what is added to α where only the weights can tell α."""

    value: float
    plus_alpha: bool = False

    def __str__(self) -> str:
        """Return the text of a table's cell."""
        if not self.plus_alpha:
            return f"{self.value:.4g}"
        return f"α + {self.value:.4g}" if self.value else "α"


@dataclass(frozen=True)
class Block:
    """One residual block: 1-based index, distinct coefficients, and its share of the output.

    There is more than one coefficient where filters give several, and none where the recipe
    does not say any.
    """

    index: int
    coefficients: tuple[Coefficient, ...]
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Container:
    """A numbered list of blocks, first to last."""

    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Outside:
    """One output tensor outside the blocks."""

    name: str
    coefficient: Coefficient | None
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Input:
    """One model of a recipe, in bytes.

    Args:
        model: as the recipe names it.
        checkpoint: all its weights.
        download: those that a run fetches from the Hub first.
        merge: what the merge takes of it.
        calibration: what is read before for the coefficients: for ``alpha: auto`` and ``block``
            without a closed form, and a sample for ``schedule: larv``.
        cuts: what counting takes before, for ``trim: model``.
        adapter: the adapter's file.
        copy: BASE+ADAPTER of a kind that only peft can merge: the checkpoint that it makes of
            them, which lasts as long as the run; the merge reads that one.
        read: all that is read.
    """

    model: str
    checkpoint: int
    download: int
    merge: int
    calibration: int
    cuts: int
    adapter: int
    copy: int
    read: int


@dataclass(frozen=True)
class Totals:
    """Of a whole run, in bytes but for the first two; ``disk`` is output and adapter copies."""

    tensors: int
    parameters: int
    output: int
    read: int
    download: int
    disk: int
    memory: Memory | None


@dataclass(frozen=True)
class Inspection:
    """One recipe of a method of ours; ``totals`` is None without a plan.

    ``deep`` and ``troubles`` are of a look at the weights, where one was asked for.
    """

    name: str | None
    merge_method: str
    wraps: tuple[str, ...] = ()
    seed: int = 0
    alpha: float | None = None
    alpha_source: str = ""
    containers: tuple[Container, ...] = ()
    outside: tuple[Outside, ...] = ()
    inputs: tuple[Input, ...] = ()
    totals: Totals | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    deep: Look | None = None
    troubles: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {**asdict(self), "problems": [str(problem) for problem in self.problems]}
