"""What a loss gains by one tensor's coefficient: its gradient multiplied by the task vector."""

from __future__ import annotations

import math

import torch
from mergekit.common import ModelReference

from mergekit_lines.checkpoint.sources import HeldTensor, Source, whole
from mergekit_lines.engine.engine import Engine
from mergekit_lines.engine.jobs import Job, prepared
from mergekit_lines.engine.pieces import TensorPieces
from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.engine.vectors import VectorSink
from mergekit_lines.errors import LinesError
from mergekit_lines.kernels.merge import Merge


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


def model_products(
    engine: Engine,
    task: LinesTask,
    gradient: torch.Tensor,
    first: int = 0,
    tensors: dict[ModelReference, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Return ⟨g, τ_t⟩ of each model in one tensor, as its weight of 1 adds it to the merge.

    Args:
        engine: that sets the weights.
        task: the tensor's; the merge is a sum, whatever it drops of each model before.
        gradient: see :func:`task_product`.
        first: likewise.
        tensors: likewise.

    Returns:
        By model; none of a tensor in which no model differs from the base.

    Raises:
        LinesError: names the tensor.
    """
    sources = engine.inputs(task, tensors)
    with task.failures(sources):
        streamed = engine.streamed(task, sources)
        if streamed is None:
            return {}
        job, pieces = streamed
        products = vector_products(job, pieces, gradient, first)
        return {str(model): one for model, one in zip(job.models[1:], products, strict=True)}


def vector_product(
    job: Job,
    pieces: TensorPieces,
    gradient: torch.Tensor,
    first: int = 0,
    vector: Source | None = None,
) -> float:
    """Return ⟨g, M(θ…) − θ_0⟩ of one tensor, multiplied and added in float64.

    Args:
        job: the tensor.
        pieces: its inputs.
        gradient: g of a run of the tensor's entries in C order, or of all, 1-D.
        first: where in the tensor the run begins.
        vector: the task vector that :func:`merge_tensor` gave away, where it was kept.

    Raises:
        LinesError: an input cannot be read.
    """
    state = None if vector else prepared(job, pieces)

    def product(index: int) -> float:
        start, stop = pieces.bounds[index]
        left, right = max(start, first), min(stop, first + len(gradient))
        if left >= right:
            return 0.0
        if vector is None:
            tau = job.merge.task_vector(pieces, state, index, *pieces.load(index))
        else:
            _, tau = pieces.load_with(index, vector)
        own = gradient[left - first : right - first].to(tau.device)
        return float(torch.dot(tau[left - start : right - start].double(), own.double()))

    return math.fsum(pieces.map(product))


def vector_products(
    job: Job, pieces: TensorPieces, gradient: torch.Tensor, first: int = 0
) -> list[float]:
    """Return ⟨g, v⟩ of each model in one tensor, v being what its weight of 1 adds.

    Args:
        job: the tensor; its merge is a sum.
        pieces: its inputs.
        gradient: see :func:`vector_product`.
        first: likewise.

    Raises:
        LinesError: the merge is no sum, or an input cannot be read.
    """
    merge = job.merge
    if not isinstance(merge, Merge) or not merge.weighted:
        raise LinesError(f"tensor {job.name}: wrap {job.wrap} adds no task vectors up by weights.")
    state = prepared(job, pieces)

    def products(index: int) -> list[float]:
        start, stop = pieces.bounds[index]
        left, right = max(start, first), min(stop, first + len(gradient))
        if left >= right:
            return [0.0] * pieces.models
        vectors = merge.vectors(pieces, state, index, *pieces.load(index))
        own = gradient[left - first : right - first].to(vectors[0].device).double()
        run = slice(left - start, right - start)
        return [float(torch.dot(vector[run].double(), own)) for vector in vectors]

    return [math.fsum(each) for each in zip(*pieces.map(products), strict=True)]
