"""A layout for mergekit's planner made of the checkpoints' own names.

mergekit describes the architectures that it knows, or infers a description from transformers'
names; where that fails or has no place for a tensor, the names in the headers say all that a
merge of like models needs: which tensors there are, and which belong to one block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.architecture import (
    ModelArchitecture,
    ModuleArchitecture,
    ModuleDefinition,
    WeightInfo,
)
from mergekit.architecture.auto import infer_vocabulary_axes
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelReference, get_auto_cls
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.initialization import no_init_weights

from mergekit_lines.checkpoint.headers import Headers
from mergekit_lines.checkpoint.ties import model_class, tied_names
from mergekit_lines.lines.depth import block_depths, natural_key
from mergekit_lines.plan.planned import PlannedTensor

# Buffers that old checkpoints hold and every architecture recomputes.
RECOMPUTED = (r"rotary_emb\.inv_freq$", r"\.position_ids$", r"\.masked_bias$", r"\.attn\.bias$")

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


def layout_fits(
    planned: Sequence[PlannedTensor],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> bool:
    """Tell whether a layout has a place for every tensor of the base, and every tensor it wants."""
    convertible = Convertible(options)
    for item in planned:
        for model, weight in item.task.inputs.items():
            index = LoaderCache().get(model).index.tensor_paths
            held = weight.optional or any(name in index for name in names_of(weight))
            if not held and not convertible(model, weight.name):
                return False
    return not lost_tensors(planned, config, arch_info, options)


def models_hold(names: Sequence[str], headers: Mapping[ModelReference, Headers]) -> bool:
    """Tell whether there is a name among these that every model has."""
    indexes = [LoaderCache().get(model).index.tensor_paths for model in headers]
    return any(all(name in index for index in indexes) for name in names)


def names_of(weight: WeightInfo) -> list[str]:
    """Return every name under which a checkpoint may have the tensor."""
    return [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]


class Convertible:
    """What mergekit can make of the tensors of a checkpoint in an older layout (fused experts).

    mergekit looks through all names that it is given for every tensor it is asked for. Those
    with the tensor's own number, which is its block's, most often are enough.
    """

    def __init__(self, options: MergeOptions) -> None:
        self._options = options
        self._known: dict[ModelReference, tuple[str, dict[str, set[str]]]] = {}

    def __call__(self, model: ModelReference, name: str) -> bool:
        """Tell whether the model's tensors give the one that it has not under this name."""
        if model not in self._known:
            kind = model.config(trust_remote_code=self._options.trust_remote_code).model_type
            numbered: dict[str, set[str]] = defaultdict(set)
            for held in LoaderCache().get(model).index.tensor_paths:
                numbered[_number(held)].add(held)
            self._known[model] = (kind, numbered)
        kind, numbered = self._known[model]
        few = numbered.get(_number(name), set())
        return can_convert_checkpoint_keys(kind, few, name) or can_convert_checkpoint_keys(
            kind, set().union(*numbered.values()), name
        )


def _number(name: str) -> str:
    """Return the first number of a name, or nothing."""
    return next((part for part in name.split(".") if part.isdecimal()), "")


def lost_tensors(
    planned: Sequence[PlannedTensor],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> list[str]:
    """Return the tensors of the base that are not taken, tied, ignorable or converted."""
    base = base_of(planned, config)
    if base is None:
        return []
    model_config = base.config(trust_remote_code=options.trust_remote_code)
    taken = {name for item in planned for name in names_of(item.weight)}
    # Layers that `slices:` leaves out are left out on purpose, if the layout knows them.
    if config.slices or any(module.slices for module in (config.modules or {}).values()):
        for weight in arch_info.all_weights(model_config):
            taken.update(names_of(weight))
    cls = model_class(model_config)
    declared = getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or []
    index = LoaderCache().get(base).index.tensor_paths
    tied = tied_names(model_config, taken | set(index))
    return [
        name
        for name in index
        if name not in taken
        and not recomputed(name, declared)
        and name not in tied
        and not _converted(model_config.model_type, name, taken)
    ]


def base_of(planned: Sequence[PlannedTensor], config: MergeConfiguration) -> ModelReference | None:
    """Return what the recipe's models were fine-tuned from."""
    return config.base_model or (planned[0].task.base_model if planned else None)


def recomputed(name: str, declared: Sequence[str] = ()) -> bool:
    """Tell whether a tensor is a buffer that its architecture computes anew."""
    return any(re.search(pattern, name) for pattern in (*RECOMPUTED, *declared))


def _converted(model_type: str, name: str, taken: set[str]) -> bool:
    """Tell whether transformers converts ``name`` on loading into a tensor that is taken."""
    for transform in get_checkpoint_conversion_mapping(model_type) or []:
        renamed, pattern = transform.rename_source_key(name)
        if pattern is None:
            continue
        if isinstance(transform, WeightRenaming):
            name = renamed
            continue
        first, *others = transform.target_patterns
        targets = {renamed, *(renamed.replace(first, other) for other in others)}
        if targets & taken:
            return True
    return name in taken
