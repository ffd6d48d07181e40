"""What a loss gains by one tensor's coefficient: its gradient multiplied by the task vector."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference

from mergekit_lines.checkpoint.sources import HeldTensor, whole
from mergekit_lines.engine.engine import Engine
from mergekit_lines.engine.pieces import vector_product
from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.engine.vectors import VectorSink


def task_product(
    engine: Engine,
    task: LinesTask,
    gradient: torch.Tensor,
    first: int = 0,
    tensors: dict[ModelReference, torch.Tensor] | None = None,
) -> float:
    """Return ⟨g, M(θ…) − θ_0⟩ of one tensor, multiplied and added in float64.

    Args:
        engine: that sets the weights, and keeps the task vectors of what is no plain sum.
        task: the tensor's; its coefficient does not matter.
        gradient: g of a run of the tensor's entries in C order, or of all, 1-D.
        first: where in the tensor the run begins.
        tensors: the inputs, where they are not read from the models as they are.

    Raises:
        LinesError: names the tensor.
    """
    sources = engine.inputs(task, tensors)
    with task.failures(sources):
        streamed, kept = engine.streamed(task, sources), None
        if engine.vectors is not None and not (streamed and streamed[0].merge.linear):
            kept = engine.vectors.find(task)
        pieces = streamed or (kept and engine.rescalable(task, sources))
        if pieces:
            return vector_product(*pieces, gradient, first, kept)
        held = {model: whole(source).to(engine.device) for model, source in sources.items()}
        vector = torch.zeros(max(map(torch.numel, held.values())), dtype=torch.float64)
        task.merge_whole(held, VectorSink("", "", HeldTensor(vector)))
        run = vector[first : first + len(gradient)]
        return float(torch.dot(run, gradient.cpu().double()))
