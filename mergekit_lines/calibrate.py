"""``alpha: auto`` of a recipe: the norms of Eq. 2, streamed over the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergekit.graph import Executor

from mergekit_lines.alpha import Calibration, NormCollector, find_alpha
from mergekit_lines.tasks import NormTask
from mergekit_lines.ties import tied_names

if TYPE_CHECKING:
    from mergekit_lines.planner import PlannedTensor


def calibrate(
    planned: Sequence[PlannedTensor], seed: int, options: Any, out_model_config: Any
) -> Calibration | None:
    """Return α of Eq. 2, or None where no tensor asks for it.

    Every output tensor counts once, a tied one once, those outside the blocks included.

    Raises:
        LinesError: a norm is zero, or tensors are merged from different models.
    """

    def collect(collector: NormCollector) -> None:
        tied = tied_names(out_model_config, [item.weight.name for item in planned])
        values = {"coefficient": 1.0, "seed": seed, "collector": collector}
        executor = Executor(
            [
                item.task.with_values(values, NormTask)
                for item in planned
                if item.weight.name not in tied
            ],
            math_device=options.device,
            storage_device=options.device if options.low_cpu_memory else "cpu",
        )
        for _ in executor.run(quiet=options.quiet, desc="Calibrating alpha"):
            pass

    return find_alpha(planned, collect)
