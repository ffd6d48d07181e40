"""Passes over a whole model before it is merged: each model's cut, and the sign of sums of 0.

A look at some of the pieces, a pass that counts magnitudes near the rank (more where the look was
wrong), and a pass that counts signs.

Source: TIES-Merging, arXiv 2306.01708, as its authors' code merges flattened task vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from mergekit_lines.engine.jobs import Job
from mergekit_lines.engine.pieces import TensorPieces
from mergekit_lines.kernels import floors
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.compiled.voting import votes
from mergekit_lines.kernels.floors import Ranking
from mergekit_lines.kernels.merge import Merge

Walk = Callable[["Count", str], None]
LOOK = "Looking at magnitudes"  # the pass that reads but some of the pieces


class Count(Protocol):
    """What a pass counts: of a tensor where it is called, of others where it joins another's."""

    def __call__(self, job: Job, pieces: TensorPieces) -> None:
        """Count one tensor."""

    def join(self, other: Any) -> None:
        """Add what another process has counted of other tensors."""


@dataclass(eq=False)  # each is one of its own, by which mergekit knows tasks apart
class Look:
    """A look at some of the entries, by which the next pass knows where to count."""

    rankings: dict[str, Ranking]
    dtypes: set[torch.dtype] = field(default_factory=set)

    def __call__(self, job: Job, pieces: TensorPieces) -> None:
        """Look at one tensor."""
        self.dtypes.add(pieces.dtype)
        floors.look(pieces, _of(job, self.rankings))

    def join(self, other: Look) -> None:
        """Add what another process has seen."""
        self.dtypes |= other.dtypes
        _join(self.rankings, other.rankings)


@dataclass(eq=False)
class Tally:
    """Magnitudes near the rank, counted over all entries."""

    rankings: dict[str, Ranking]

    def __call__(self, job: Job, pieces: TensorPieces) -> None:
        """Count one tensor."""
        floors.take(pieces, _of(job, self.rankings))

    def join(self, other: Tally) -> None:
        """Add what another process has counted."""
        _join(self.rankings, other.rankings)


@dataclass(eq=False)
class Votes:
    """The sum of all signs of sums of what stays."""

    total: int = 0

    def __call__(self, job: Job, pieces: TensorPieces) -> None:
        """Count one tensor."""
        kernel = job.merge.merge if isinstance(job.merge, Agreement) else job.merge
        if isinstance(kernel, Merge):
            self.total += sum(pieces.map(lambda n: _votes(kernel, pieces, n)))

    def join(self, other: Votes) -> None:
        """Add what another process has counted."""
        self.total += other.total


def find(densities: Mapping[str, float], walk: Walk) -> dict[str, float]:
    """Return the magnitude of each model's cut.

    Args:
        densities: share of the entries to keep, by model; of those at 1 all stay.
        walk: lets something count every tensor's job and pieces, and tells people why.
    """
    searched = {model: density for model, density in densities.items() if density < 1}
    if not searched:
        return {}
    rankings = {model: Ranking(density) for model, density in searched.items()}
    look = Look(rankings)
    walk(look, LOOK)
    if torch.float64 in look.dtypes:
        rankings = {model: Ranking(density, wide=True) for model, density in searched.items()}
    else:
        for ranking in rankings.values():
            ranking.guess()
    while still := {model: one for model, one in rankings.items() if not one.done}:
        walk(Tally(still), "Counting magnitudes")
        for ranking in still.values():
            ranking.settle()
    return {model: ranking.magnitude for model, ranking in rankings.items()}


def majority(walk: Walk) -> int:
    """Return the sign of the sum of all signs of sums of what stays; the jobs know the cuts."""
    count = Votes()
    walk(count, "Counting signs")
    return (count.total > 0) - (count.total < 0)


def _join(rankings: Mapping[str, Ranking], others: Mapping[str, Ranking]) -> None:
    for model, ranking in rankings.items():
        ranking.join(others[model])


def _votes(merge: Merge, pieces: TensorPieces, index: int) -> int:
    if pieces.library is not None:
        return votes(pieces.library, merge, *pieces.stored(index))
    return merge.votes(*pieces.load(index))


def _of(job: Job, rankings: Mapping[str, Ranking]) -> dict[int, Ranking]:
    """Return the rankings of a tensor's models, by their numbers among those that are tuned."""
    names = enumerate(map(str, job.models[1:]))
    return {number: rankings[name] for number, name in names if name in rankings}
