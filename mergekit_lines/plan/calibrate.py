"""What takes the whole model before a tensor of it is merged, streamed over all tensors.

``alpha: auto`` and ``block``: the norms of Eq. 2. ``schedule: larv``: a sample of the blocks'
matrices. ``trim: model``: the cuts of TIES as its paper has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mergekit.common import ImmutableMap

from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.engine.cuts import LOOK, Count, find, majority
from mergekit_lines.engine.tasks import CountTask, NormTask, SpectrumTask
from mergekit_lines.engine.walks import walk
from mergekit_lines.errors import Problem, some
from mergekit_lines.lines.alpha import NormCollector, find_alpha
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.larv import TermCollector, tiers
from mergekit_lines.lines.placed import LARV
from mergekit_lines.lines.readings import Calibration, Readings, Tier
from mergekit_lines.methods.trim import SETTLED, Settled
from mergekit_lines.methods.words import of_parameter
from mergekit_lines.plan.planned import MergeRun, PlannedTensor


def read_weights(
    planned: Sequence[PlannedTensor],
    run: MergeRun,
    seed: int,
    options: Any,
    out_model_config: Any,
) -> Readings:
    """Return what the coefficients need of the weights; nothing is read where none needs any.

    An interrupted run's values are taken over.

    Raises:
        LinesError: a norm is zero, or tensors are merged from different models.
    """
    return Readings(
        calibrate(planned, run, seed, options, out_model_config),
        find_tiers(planned, run, seed, options),
    )


def calibrate(
    planned: Sequence[PlannedTensor],
    run: MergeRun,
    seed: int,
    options: Any,
    out_model_config: Any,
) -> Calibration | None:
    """Return α of Eq. 2, or None where no tensor asks for it.

    Every output tensor counts once, a tied one once, those outside the blocks included.
    An interrupted run's α is taken over.

    Raises:
        LinesError: a norm is zero, or tensors are merged from different models.
    """
    kept = run.partial.recall("alpha") if run.partial else None
    if kept is not None:
        return Calibration(**kept)

    def collect(collector: NormCollector) -> None:
        tied = tied_names(out_model_config, [item.weight.name for item in planned])
        chosen = [item for item in planned if item.weight.name not in tied]
        tasks = [item.task.model_copy(update={"seed": seed}) for item in chosen]
        walk(tasks, run.engine, run.remote, NormTask, collector, options, "Calibrating alpha")

    if not any(item.placed.words.from_norms for item in planned):
        return None
    contributions = [item.contribution() for item in planned]
    calibration = find_alpha(contributions, planned[0].norm, collect)
    if calibration is not None and run.partial:
        run.partial.keep("alpha", asdict(calibration))
    return calibration


def find_tiers(
    planned: Sequence[PlannedTensor], run: MergeRun, seed: int, options: Any
) -> Mapping[str, Sequence[Tier]] | None:
    """Return LARV's tiers of all blocks, or None where no tensor asks for them.

    The matrices that ask for them are looked at, and no others. An interrupted run's tiers are
    taken over.

    Raises:
        LinesError: an input holds NaN or infinity.
    """
    depths: dict[str, BlockDepth] = {
        item.weight.name: item.placed.depth
        for item in planned
        if item.placed.words.shape == LARV and item.placed.depth
    }
    if not any(item.placed.words.shape == LARV for item in planned):
        return None
    kept = run.partial.recall("larv") if run.partial else None
    if kept is not None:
        return {name: [Tier(**tier) for tier in blocks] for name, blocks in kept.items()}
    collector = TermCollector()
    chosen = [item for item in planned if item.weight.name in depths]
    if tasks := [item.task.model_copy(update={"seed": seed}) for item in chosen]:
        # Of these only rows are read.
        text = "Looking at the updates"
        walk(tasks, run.engine, run.remote, SpectrumTask, collector, options, text, ahead=False)
    result = tiers(collector.terms, depths)
    if run.partial:
        run.partial.keep(
            "larv", {name: [asdict(tier) for tier in blocks] for name, blocks in result.items()}
        )
    return result


def trim_problems(planned: Sequence[PlannedTensor]) -> Iterator[Problem]:
    """Yield what differs between tensors, and a cut over the whole model cannot."""
    seen: dict[str, set[float]] = {}
    cut = [item.cut for item in planned]
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
    if not any(item.cut for item in planned):
        return None
    kept = run.partial.recall("trim") if run.partial else None
    if kept is not None:
        return Settled(tuple(kept["magnitudes"].items()), kept["zero_sign"])
    tied = tied_names(out_model_config, [item.weight.name for item in planned])
    counted = [item for item in planned if item.weight.name not in tied]

    def pass_over(items: Sequence[PlannedTensor], count: Count, text: str) -> None:
        tasks = [item.task for item in items]
        label = f"{text} (trim: model)"
        ahead = text != LOOK
        walk(tasks, run.engine, run.remote, CountTask, count, options, label, ahead=ahead)

    densities: dict[str, float] = {}
    for item in counted:
        for model, values in item.task.input_parameters.items():
            if "density" in values:
                densities[str(model)] = values["density"]
    magnitudes = find(densities, lambda count, text: pass_over(counted, count, text))
    settled = Settled(tuple(magnitudes.items()))
    items = [with_settled(item, settled) for item in counted]
    sign = majority(lambda count, text: pass_over(items, count, text))
    settled = replace(settled, zero_sign=sign)
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
