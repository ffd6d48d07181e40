"""``trim: model`` of a recipe: each model's cut, and the sign of sums of 0, over all tensors.

A look at some of the pieces, a pass that counts magnitudes near the rank (more where the look was
wrong), and a pass that counts signs.

Source: TIES-Merging, arXiv 2306.01708, as its authors' code merges flattened task vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mergekit.common import ImmutableMap
from mergekit.graph import Executor

from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.engine.pieces import Job, TensorPieces
from mergekit_lines.engine.tasks import CountTask, engine_task
from mergekit_lines.errors import Problem, some
from mergekit_lines.kernels import floors
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.floors import Ranking
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.methods.trim import SETTLED, Settled, by_model
from mergekit_lines.methods.words import of_parameter
from mergekit_lines.plan.planned import MergeRun, PlannedTensor

Count = Callable[[Job, TensorPieces], object]
Walk = Callable[[Count, str], None]


def problems(planned: Sequence[PlannedTensor]) -> Iterator[Problem]:
    """Yield what differs between tensors, and a cut over the whole model cannot."""
    seen: dict[str, set[float]] = {}
    cut = [by_model(dict(item.task.parameters.items())) for item in planned]
    if any(cut) and not all(cut):
        names = [item.weight.name for item, one in zip(planned, cut, strict=True) if not one]
        yield of_parameter(
            "trim",
            f"found 'model' for some tensors and not for {some(names, 2)}, wanted one value: the "
            f"cut is over all of them. Give it, and wrap, without filter.",
        )
    for item, one in zip(planned, cut, strict=True):
        if one:
            for model, values in item.task.input_parameters.items():
                if "density" in values:
                    seen.setdefault(str(model), set()).add(values["density"])
    for values in seen.values():
        if len(values) > 1:
            listed = some([f"{value:g}" for value in sorted(values)], 3)
            yield of_parameter(
                "density",
                f"found {listed} for different tensors of one model, wanted one value: trim: model "
                f"cuts the whole task vector at one magnitude. Give it without filter or gradient.",
            )
            return


def settle(
    planned: Sequence[PlannedTensor], run: MergeRun, options: Any, out_model_config: Any
) -> Settled | None:
    """Return the cuts of every model, or None where no tensor asks for them.

    Every tensor counts once, a tied one once, as for α of Eq. 2.
    An interrupted run's are taken over.

    Raises:
        LinesError: an input cannot be read.
    """
    if not any(by_model(dict(item.task.parameters.items())) for item in planned):
        return None
    kept = run.partial.recall("trim") if run.partial else None
    if kept is not None:
        return Settled(tuple(kept["magnitudes"].items()), kept["zero_sign"])
    tied = tied_names(out_model_config, [item.weight.name for item in planned])
    counted = [item for item in planned if item.weight.name not in tied]

    def walk(items: Sequence[PlannedTensor], count: Count, text: str, *, ahead: bool) -> None:
        tasks = [
            engine_task(item.task, CountTask, engine=run.engine, number=number, count=count)
            for number, item in enumerate(items)
        ]
        run.engine.order(tasks if ahead else [])
        for _ in Executor(tasks, math_device=options.device).run(quiet=options.quiet, desc=text):
            pass

    densities: dict[str, float] = {}
    for item in counted:
        for model, values in item.task.input_parameters.items():
            if "density" in values:
                densities[str(model)] = values["density"]
    magnitudes = find(
        densities, lambda count, text: walk(counted, count, text, ahead="Looking" not in text)
    )
    settled = Settled(tuple(magnitudes.items()))
    items = [with_settled(item, settled) for item in counted]
    settled = replace(
        settled, zero_sign=majority(lambda count, text: walk(items, count, text, ahead=True))
    )
    if run.partial:
        run.partial.keep("trim", to_json(settled))
    return settled


def to_json(settled: Settled) -> dict[str, Any]:
    """Return the cuts as a state and a report hold them."""
    return {"magnitudes": dict(settled.floors), "zero_sign": settled.zero_sign}


def with_settled(item: PlannedTensor, settled: Settled) -> PlannedTensor:
    """Return a planned tensor whose kernel knows the cuts."""
    parameters = ImmutableMap({**dict(item.task.parameters.items()), SETTLED: settled})
    return replace(item, task=item.task.model_copy(update={"parameters": parameters}))


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

    walk(look, "Looking at magnitudes")
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
            votes = kernel.votes
            totals.append(sum(pieces.map(lambda n: votes(*pieces.load(n)))))

    walk(count, "Counting signs")
    total = sum(totals)
    return (total > 0) - (total < 0)


def _of(job: Job, rankings: Mapping[str, Ranking]) -> dict[int, Ranking]:
    """Return the rankings of a tensor's models, by their numbers among those that are tuned."""
    names = enumerate(map(str, job.models[1:]))
    return {number: rankings[name] for number, name in names if name in rankings}
