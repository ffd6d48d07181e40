"""Passes over a whole model before it is merged: each model's cut, and the sign of sums of 0.

A look at some of the pieces, a pass that counts magnitudes near the rank (more where the look was
wrong), and a pass that counts signs.

Source: TIES-Merging, arXiv 2306.01708, as its authors' code merges flattened task vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mergekit_lines.engine.pieces import Job, TensorPieces
from mergekit_lines.kernels import floors
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.compiled.voting import votes
from mergekit_lines.kernels.floors import Ranking
from mergekit_lines.kernels.merge import Merge

Count = Callable[[Job, TensorPieces], object]
Walk = Callable[[Count, str], None]
LOOK = "Looking at magnitudes"  # the pass that reads but some of the pieces


def find(densities: Mapping[str, float], walk: Walk) -> dict[str, float]:
    """Return the magnitude of each model's cut.

    Args:
        densities: share of the entries to keep, by model; of those at 1 all stay.
        walk: calls a function for every tensor's job and pieces, and tells people why.
    """
    searched = {model: density for model, density in densities.items() if density < 1}
    if not searched:
        return {}
    rankings = {model: Ranking(density) for model, density in searched.items()}
    dtypes: set[torch.dtype] = set()

    def look(job: Job, pieces: TensorPieces) -> None:
        dtypes.add(pieces.dtype)
        floors.look(pieces, _of(job, rankings))

    walk(look, LOOK)
    if torch.float64 in dtypes:
        rankings = {model: Ranking(density, wide=True) for model, density in searched.items()}
    else:
        for ranking in rankings.values():
            ranking.guess()
    while still := {model: one for model, one in rankings.items() if not one.done}:
        walk(
            lambda job, pieces, still=still: floors.take(pieces, _of(job, still)),  # type: ignore[misc]
            "Counting magnitudes",
        )
        for ranking in still.values():
            ranking.settle()
    return {model: ranking.magnitude for model, ranking in rankings.items()}


def majority(walk: Walk) -> int:
    """Return the sign of the sum of all signs of sums of what stays; the jobs know the cuts."""
    totals: list[int] = []

    def count(job: Job, pieces: TensorPieces) -> None:
        kernel = job.merge.merge if isinstance(job.merge, Agreement) else job.merge
        if isinstance(kernel, Merge):
            totals.append(sum(pieces.map(lambda n: _votes(kernel, pieces, n))))

    walk(count, "Counting signs")
    total = sum(totals)
    return (total > 0) - (total < 0)


def _votes(merge: Merge, pieces: TensorPieces, index: int) -> int:
    if pieces.library is not None:
        return votes(pieces.library, merge, *pieces.stored(index))
    return merge.votes(*pieces.load(index))


def _of(job: Job, rankings: Mapping[str, Ranking]) -> dict[int, Ranking]:
    """Return the rankings of a tensor's models, by their numbers among those that are tuned."""
    names = enumerate(map(str, job.models[1:]))
    return {number: rankings[name] for number, name in names if name in rankings}
