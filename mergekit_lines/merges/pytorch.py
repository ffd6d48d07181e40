"""``lines`` in ``mergekit-pytorch``, which plans nothing and merges one tensor at a time.

The command resolves the parameters of our recipe method's spec and keeps the checkpoints it
has opened; from the base's names the depth of the one tensor is known.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import click
import torch
from mergekit.merge_methods.base import ParameterScope, TensorGroup

from mergekit_lines.errors import LinesError, nearest, tell
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.outside import checked_depths, described
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.merges.groups import bind, check_groups
from mergekit_lines.merges.state_dicts import merge_group
from mergekit_lines.methods.registry import method_for, postprocess_method
from mergekit_lines.methods.words import LINES_WORDS
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
        LinesError: the command is another one, a word is at fault, or ``alpha`` is ``auto``.
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
    if values["alpha"] == "auto":
        raise LinesError(
            "parameters.alpha: found 'auto', wanted a finite number: Eq. 2 compares norms over the "
            "whole model, and mergekit-pytorch shows one tensor at a time. Give alpha (for "
            "task_arithmetic of N models with one weight w, Eq. 2 is 1/(N*w)), or merge with "
            "merge_state_dicts in Python."
        )
    tensor = str(group.metadata.name)
    depth = _depth(tensor, names, values["blocks"], values["num_blocks"])
    placed = Placed(tensor, depth, ScheduleWords.of(values))
    scaling = Scaling(placed.coefficient(), _seed(values))
    return merge_group(method, group, values, scaling, dtype, out_dtype)


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
