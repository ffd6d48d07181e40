"""``alpha: auto`` of a recipe: the norms of Eq. 2, streamed over the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mergekit.graph import Executor

from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.engine.tasks import NormTask, engine_task
from mergekit_lines.lines.alpha import Calibration, NormCollector, find_alpha
from mergekit_lines.lines.placed import AUTO
from mergekit_lines.plan.planned import MergeRun, PlannedTensor


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
        tasks = [
            engine_task(
                item.task,
                NormTask,
                engine=run.engine,
                number=number,
                seed=seed,
                collector=collector,
            )
            for number, item in enumerate(planned)
            if item.weight.name not in tied
        ]
        run.engine.order(tasks)
        executor = Executor(
            tasks,
            math_device=options.device,
            storage_device=options.device if options.low_cpu_memory else "cpu",
        )
        for _ in executor.run(quiet=options.quiet, desc="Calibrating alpha"):
            pass

    if not any(item.placed.words.alpha == AUTO for item in planned):
        return None
    contributions = [item.contribution() for item in planned]
    calibration = find_alpha(contributions, planned[0].norm, collect)
    if calibration is not None and run.partial:
        run.partial.keep("alpha", asdict(calibration))
    return calibration
