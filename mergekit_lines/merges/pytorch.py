"""``lines`` in ``mergekit-pytorch``, which plans nothing and merges one tensor at a time.

The command resolves the parameters of our recipe method's spec and keeps the checkpoints it
has opened; from the base's names the depth of the one tensor is known.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from mergekit.merge_methods.base import ParameterScope, TensorGroup
from mergekit.options import MergeOptions
from tqdm import tqdm

from mergekit_lines.errors import LinesError, nearest, some, tell
from mergekit_lines.lines.alpha import Contribution, NormCollector, find_alpha
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.larv import MatrixTerms, tiers
from mergekit_lines.lines.outside import checked_depths, described
from mergekit_lines.lines.placed import LARV, Placed, ScheduleWords
from mergekit_lines.lines.readings import UNREAD, Readings
from mergekit_lines.merges.groups import bind, check_groups, with_weights
from mergekit_lines.merges.state_dicts import group_spectrum, merge_group
from mergekit_lines.methods.registry import method_for, postprocess_method
from mergekit_lines.methods.trim import ONE_TENSOR, cuts_whole_model
from mergekit_lines.methods.words import LINES_WORDS, plain_sum_factors
from mergekit_lines.methods.wrapped import LinesMethod, Scaling

COMMAND = "mergekit.scripts.merge_raw_pytorch"


def merge_raw(
    name: str,
    group: TensorGroup,
    resolved: Mapping[str, Any],
    dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """Merge one tensor of ``mergekit-pytorch``.

    Args:
        name: ``lines`` or ``lines_postprocess``.
        group: the tensor's inputs; their ids are mergekit's model references.
        resolved: the values of the recipe method's spec, wrapped methods' by model.
        dtype: inputs are cast to it first.
        out_dtype: dtype of the result.

    Raises:
        LinesError: the command is another one, or a word is at fault.
    """
    names = _names(group.base.id) if group.base else None
    if names is None:
        raise LinesError(
            f"merge_method {name} needs the whole model's tensor names to know each block's "
            f"depth, and this command shows it one tensor at a time. Run the recipe with "
            f"mergekit-yaml or mergekit-multi."
        )
    check_groups(name, [group], dtype, out_dtype)
    method = postprocess_method() if name == "lines_postprocess" else method_for(resolved["wrap"])
    (values,) = bind(method, [group], _given(method, group, resolved))
    if cuts_whole_model(values):
        raise LinesError(ONE_TENSOR)
    tensor = str(group.metadata.name)
    depth = _depth(tensor, names, values["blocks"], values["num_blocks"])
    values = with_weights(values, depth)
    placed = Placed(tensor, depth, ScheduleWords.of(values))
    measured = MEASURED.get()
    if measured is not None:
        models = [entry.id for entry in group.non_base]
        factors = plain_sum_factors(method.wrapped.spec.name, values, models)
        measured.contributions.append(Contribution(placed, frozenset(models), factors))
        measured.wraps.add(method.wrapped.spec.name)
        norm = values["norm"]
        collector = measured.collectors.setdefault(norm, NormCollector(1 if norm == "l1" else 2))
        if placed.words.shape == LARV and depth is not None:
            measured.depths[tensor] = depth
            if (own := group_spectrum(group, dtype)) is not None:
                measured.terms[tensor] = own
        scaling = Scaling(1.0, _seed(values), collector=collector)
        return merge_group(method, group, values, scaling, dtype, out_dtype)
    readings = UNREAD
    if placed.words.from_norms or placed.words.shape == LARV:
        context = click.get_current_context(silent=True)
        if context is None:
            raise LinesError(
                f"parameters.alpha: found {placed.words.alpha!r}, schedule {placed.words.shape!r} "
                f"and no command whose recipe says what else is merged, wanted numbers: they are "
                f"found over the whole model."
            )
        readings = _readings(context)
    scaling = Scaling(placed.coefficient(readings), _seed(values))
    return merge_group(method, group, values, scaling, dtype, out_dtype)


@dataclass
class Measured:
    """What Eq. 2 asks of the whole model, gathered tensor by tensor."""

    contributions: list[Contribution] = field(default_factory=list)
    collectors: dict[str, NormCollector] = field(default_factory=dict)
    wraps: set[str] = field(default_factory=set)
    depths: dict[str, BlockDepth] = field(default_factory=dict)  # where the schedule is larv
    terms: dict[str, MatrixTerms] = field(default_factory=dict)  # likewise, of the matrices


MEASURED: ContextVar[Measured | None] = ContextVar("mergekit_lines_measured", default=None)


@lru_cache(maxsize=1)
def _readings(context: click.Context) -> Readings:
    """Return what the whole recipe's weights give: they are read once more, one at a time.

    Raises:
        LinesError: the norms give no α, or it would be compared over unlike merges.
    """
    script: Any = sys.modules[COMMAND]
    loaders = script.SimpleLoaderCache()
    text = Path(context.params["config_path"]).read_text(encoding="utf-8")
    tasks = script.plan_flat_merge(
        script.RawPyTorchMergeConfig.model_validate(yaml.safe_load(text)),
        out_path=context.params["out_path"],
        tensor_union=context.params["tensor_union"],
        tensor_intersection=context.params["tensor_intersection"],
        options=MergeOptions(lazy_unpickle=loaders.lazy_unpickle),
    )
    measured = Measured()
    token = MEASURED.set(measured)
    try:
        saves = [task for task in tasks if isinstance(task, script.SaveTensor)]
        for save in tqdm(saves, desc="Measuring task vectors", delay=2):
            merge = save.tensor_task
            loads = merge.gather_tensors.tensors
            tensors = {model: load.execute() for model, load in loads.items()}
            merge.execute({m: tensor for m, tensor in tensors.items() if tensor is not None})
    finally:
        MEASURED.reset(token)
    by_norms = any(one.placed.words.from_norms for one in measured.contributions)
    if by_norms and (len(measured.wraps) > 1 or len(measured.collectors) > 1):
        raise LinesError(
            f"parameters.alpha: found 'auto' over {some(sorted(measured.wraps))} and norms "
            f"{some(sorted(measured.collectors))}, wanted one wrap and one norm: Eq. 2 compares "
            f"the norms of one merge over the whole model. Give alpha as a number."
        )
    norm, collected = next(iter(measured.collectors.items()))
    calibration = find_alpha(
        measured.contributions, norm, lambda own: own.terms.update(collected.terms)
    )
    if calibration is not None:
        tell(f"alpha = {calibration.alpha} (auto: Eq. 2, {calibration.models} models)")
    larv = tiers(measured.terms, measured.depths) if measured.depths else None
    return Readings(calibration, larv)


def _names(base: Hashable) -> tuple[str, ...] | None:
    """Return the names in the base's checkpoint, where ``mergekit-pytorch`` has opened it."""
    cache: Any = getattr(sys.modules.get(COMMAND), "SimpleLoaderCache", None)
    path = getattr(getattr(base, "model", None), "path", None)
    loader = cache().loaders.get(path) if cache else None
    return tuple(loader.index.tensor_paths) if loader else None


def _given(method: LinesMethod, group: TensorGroup, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the recipe gave, in the scopes of this method's own parameters."""
    ours = {word.name for word in LINES_WORDS}
    specs = {parameter.name: parameter for parameter in method.spec.parameters}
    parameters: dict[str, Any] = {}
    for key, value in resolved.items():
        if not isinstance(value, Mapping):
            parameters[key] = value
            continue
        by_model = {model: one for model, one in value.items() if one is not None}
        if not by_model:
            continue
        if key not in specs:
            raise LinesError(
                f"parameters.{key}: wrap {method.wrapped.spec.name} has no parameter of this name."
                f"{nearest(key, specs.keys() - ours)}"
            )
        parameter = specs[key]
        if parameter.scope != ParameterScope.SHARED:
            default = None if parameter.required else parameter.default
            parameters[key] = {entry.id: by_model.get(entry.id, default) for entry in group.entries}
        elif len(by_model) < len(value) or len(set(map(repr, by_model.values()))) > 1:
            raise LinesError(
                f"parameters.{key}: found under one model, where it has no effect, wanted under "
                f"the recipe's own parameters. Move it there."
            )
        else:
            parameters[key] = next(iter(by_model.values()))
    return {key: value for key, value in parameters.items() if value is not None}


def _depth(
    tensor: str, names: tuple[str, ...], blocks: str | None, num_blocks: int | None
) -> BlockDepth | None:
    depths = _depths(names, blocks, num_blocks)
    if tensor not in depths:
        raise LinesError(f"tensor {tensor}: the base has no such tensor.")
    return depths[tensor]


@lru_cache(maxsize=2)
def _depths(
    names: tuple[str, ...], blocks: str | None, num_blocks: int | None
) -> dict[str, BlockDepth | None]:
    # Asked for every tensor of a model with the same arguments, of which the first is told.
    depths = checked_depths(dict.fromkeys(names, 1), blocks, num_blocks)
    for line in described(depths):
        tell(line)
    return depths


def _seed(values: Mapping[str, Any]) -> int:
    context = click.get_current_context(silent=True)
    flag = context.params.get("random_seed") if context else None
    seed = values.get("seed")
    if seed is not None and flag is not None:
        raise LinesError(
            f"parameters.seed: found {seed} and --random-seed {flag} too, wanted one of them. "
            f"Drop the flag or the parameter."
        )
    return int(seed if seed is not None else flag or 0)
