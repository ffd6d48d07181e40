"""What a merge of a model that is not there would read and write: headers over holes, planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _benchmark_models as models
import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.writer import lay_out
from mergekit_lines.host.state import ONE_AT_A_TIME, fresh_caches
from mergekit_lines.inspection.blocks import with_coefficients
from mergekit_lines.inspection.findings import Inspection
from mergekit_lines.inspection.traffic import inputs
from mergekit_lines.plan.memory import working_bytes
from mergekit_lines.plan.planned import MergeRun
from mergekit_lines.plan.prepare import Prepared, prepare
from mergekit_lines.plan.sizes import Sizes


@dataclass(frozen=True)
class Hollow(models.Shape):
    """A LLaMA with grouped queries, whose checkpoints are headers, and holes for weights."""

    groups: int = 8

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield every tensor's name and shape."""
        rows = self.hidden // self.heads * self.groups
        for name, shape in super().tensors():
            narrow = name.endswith(("k_proj.weight", "v_proj.weight"))
            yield name, (rows, self.hidden) if narrow else shape

    def real(self, entries: int) -> int:
        """Return how many of a tensor's entries are written: none."""
        return 0

    def config(self) -> dict[str, Any]:
        """Return the model's config.json."""
        return {**super().config(), "num_key_value_heads": self.groups}


# Llama-3.1-405B (arXiv 2407.21783, table 3): 405,853,388,800 parameters.
LLAMA_405B = Hollow(16384, 53248, 128256, 126, 128, filled=0)


@dataclass(frozen=True)
class Shard:
    """What the work on one shard of the output moves, in bytes.

    Args:
        norms: read for the norms of Eq. 2, before anything is merged.
        read: by the merge.
        size: of the shard's file.
    """

    norms: int
    read: int
    size: int


@dataclass(frozen=True)
class Plan:
    """A merge as our planner has it."""

    sizes: Sizes
    calibrated: frozenset[str]  # the tensors that Eq. 2 reads
    prepared: Prepared
    options: MergeOptions

    def shards(self, most: int) -> list[Shard]:
        """Return the output's shards, each of so many bytes at most."""
        tensors = {one.item.weight.name: one for one in self.sizes.tensors}
        result = []
        for layout in lay_out([one.slot for one in tensors.values()], most):
            own = [tensors[name] for name in layout.offsets]
            read = inputs(own, self.calibrated, self.prepared, self.options)
            norms, merge = sum(one.calibration for one in read), sum(one.merge for one in read)
            result.append(Shard(norms, merge, layout.size))
        return result

    def memory(self, threads: int) -> int:
        """Return what one worker holds beside the packages it has imported, in bytes."""
        return working_bytes(self.sizes, self.calibrated, torch.device("cpu"), threads)


def ties_recipe(made: Sequence[models.Checkpoint]) -> dict[str, Any]:
    """Return a recipe: TIES of all models, α by Eq. 2."""
    base, *tuned = (str(checkpoint.folder) for checkpoint in made)
    each = {"weight": 1.0, "density": 0.5}
    return {
        "merge_method": "lines",
        "base_model": base,
        "models": [{"model": model, "parameters": each} for model in tuned],
        "parameters": {"wrap": "ties", "alpha": "auto", "beta": 0.5},
        "dtype": made[0].shape.dtype,
    }


def planned(made: Sequence[models.Checkpoint]) -> Plan:
    """Plan the recipe over checkpoints, of which headers alone are read."""
    config = MergeConfiguration.model_validate(ties_recipe(made))
    options = MergeOptions(quiet=True)
    with ONE_AT_A_TIME, fresh_caches():
        prepared = prepare(config, options, MergeRun.of(config, options))
        sizes = Sizes(prepared.planned, prepared.headers, config, options, None)
        _, calibrated = with_coefficients(Inspection(None, "lines"), prepared, sizes)
    return Plan(sizes, frozenset(calibrated), prepared, options)


def plan_of(shape: models.Shape, count: int, folder: Path) -> Plan:
    """Plan the merge of a base and so many models of a shape, made of holes in a folder."""
    made = models.checkpoints(shape, count, folder)
    for checkpoint in made:
        models.make(checkpoint, made[0], lambda _: None)
    return planned(made)
