"""The recipe's inputs as they are, in the place of the merge."""

from __future__ import annotations

import math
from typing import Any

import torch
from mergekit.graph import Executor
from mergekit.io.tasks import GatherTensors

from mergekit_lines.checkpoint.sources import Source, whole
from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.engine.engine import Engine
from mergekit_lines.engine.pieces import PIECE, Sink
from mergekit_lines.engine.tasks import WriteTask, engine_task
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.live.blueprint import Blueprint


def input_problem(blueprint: Blueprint, model: Any = None) -> str | None:
    """Return why an input cannot be loaded as it is, or None: slices may stack other blocks.

    Args:
        blueprint: the recipe's.
        model: mergekit's reference; the base if it is not given.
    """
    model = model or blueprint.recipe.base_model
    shifted = []
    for item in blueprint.prepared.planned:
        source = dict(item.task.inputs.items()).get(model)
        if source is None or source.name != item.weight.name:
            shifted.append(item.weight.name)
    trust = blueprint.options.trust_remote_code
    blocks = {
        getattr(config, "num_hidden_layers", None)
        for config in (blueprint.config, model.config(trust_remote_code=trust))
    }
    if not shifted and len(blocks) == 1:
        return None
    return (
        f"model {model}: has other blocks than the output of this recipe's slices, so that it "
        f"cannot be measured as it is in the same model. Give an objective that needs no "
        f"input's own numbers."
    )


def aligned_tensors(engine: Engine, task: Any) -> Any:
    """Return a tensor's inputs where their vocabularies have to be aligned, else None.

    Args:
        engine: reads them.
        task: the tensor's.
    """
    if isinstance(task.gather_tensors, GatherTensors):
        return None
    aligned = engine_task(task, WriteTask, engine=engine, number=0).gather_tensors
    ((_, tensors),) = Executor([aligned]).run(quiet=True)
    return tensors


def copy_tensor(source: Source, cast: torch.dtype | None, slot: Slot, sink: Sink) -> None:
    """Write a tensor to its place, piece by piece, by way of the recipe's dtype."""
    if not source.dtype.is_floating_point:
        sink.write(0, whole(source).to(slot.dtype).flatten())
        return
    entries = math.prod(source.shape)
    buffer = torch.empty(min(entries, PIECE), dtype=work_dtype(source.dtype))
    for start in range(0, entries, PIECE):
        piece = buffer[: min(PIECE, entries - start)]
        source.read_into(start, start + len(piece), piece)
        sink.write(start, piece.to(cast or piece.dtype).to(slot.dtype))
