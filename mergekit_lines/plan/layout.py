"""A layout for mergekit's planner made of the checkpoints' own names.

mergekit describes the architectures that it knows, or infers a description from transformers'
names; where that fails or has no place for a tensor, the names in the headers say all that a
merge of like models needs: which tensors there are, and which belong to one block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.architecture import ModelArchitecture, ModuleArchitecture, ModuleDefinition
from mergekit.architecture.auto import infer_vocabulary_axes
from mergekit.architecture.base import WeightInfo
from mergekit.common import ModelReference, get_auto_cls
from mergekit.options import MergeOptions
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.ties import tied_names
from mergekit_lines.lines.depth import block_depths, natural_key

OUTSIDE = "outside"


class HeaderModule(ModuleArchitecture):
    """The tensors of one container, block by block, or those outside the blocks.

    Args:
        loose: tensors of no block.
        blocks: per block its tensors.
    """

    def __init__(self, loose: Sequence[WeightInfo], blocks: Sequence[Sequence[WeightInfo]]) -> None:
        self._loose, self._blocks = list(loose), [list(block) for block in blocks]

    def pre_weights(self, config: object) -> list[WeightInfo]:
        """Return the tensors of no block."""
        return self._loose

    def post_weights(self, config: object) -> list[WeightInfo]:
        """Return nothing: names do not tell what comes last."""
        return []

    def layer_weights(self, index: int, config: object) -> list[WeightInfo]:
        """Return the tensors of a block."""
        return self._blocks[index]

    def num_layers_config_key(self) -> Any:
        """Return None: the headers tell the number of blocks."""
        return

    def num_layers(self, config: object) -> int:
        """Return the number of blocks."""
        return len(self._blocks)


def layout_from_names(
    base: ModelReference, names: Mapping[ModelReference, Sequence[str]], options: MergeOptions
) -> ModelArchitecture:
    """Return a layout of every tensor that the base has, under the base's own names.

    Args:
        base: what the others were fine-tuned from.
        names: of the tensors, by model.
        options: mergekit's flags.

    Raises:
        LinesError: the names of the blocks have gaps.
    """
    config = base.config(trust_remote_code=options.trust_remote_code)
    base_names = sorted(names[base], key=natural_key)
    depths = block_depths(base_names)
    tied = tied_names(config, base_names)
    common = set.intersection(*(set(held) for held in names.values()))
    axes = _vocabulary_axes(config, options)
    loose: list[WeightInfo] = []
    blocks: dict[str, dict[int, list[WeightInfo]]] = defaultdict(lambda: defaultdict(list))
    for name in base_names:
        # A tied tensor may be stored in some models only.
        weight = WeightInfo(
            name=name,
            optional=name in tied and name not in common,
            vocabulary_axis=axes.get(name),
        )
        depth = depths[name]
        (loose if depth is None else blocks[depth.container][depth.index]).append(weight)
    modules = {OUTSIDE: HeaderModule(loose, [])} if loose else {}
    for container, inside in blocks.items():
        modules[container] = HeaderModule([], [inside[index] for index in sorted(inside)])
    return ModelArchitecture(
        modules={name: ModuleDefinition(architecture=module) for name, module in modules.items()},
        architectures=list(config.architectures or []),
        model_type=config.model_type or "",
    )


def _vocabulary_axes(config: Any, options: MergeOptions) -> dict[str, int]:
    """Return the axis of tokens by name, as far as transformers' names are the checkpoint's."""
    try:
        with torch.device("meta"), no_init_weights():
            model = get_auto_cls(config.architectures[0]).from_config(
                config, trust_remote_code=options.trust_remote_code
            )
        model.tie_weights()
        return dict(infer_vocabulary_axes(model))
    except Exception:  # noqa: BLE001 - a class that is not there; then no axis is known
        return {}
