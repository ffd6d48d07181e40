"""A layout for mergekit's planner made of the checkpoints' own names.

mergekit describes the architectures that it knows, or infers a description from transformers'
names; where that fails or has no place for a tensor, the names in the headers say all that a
merge of like models needs: which tensors there are, and which belong to one block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergekit.architecture import (
    ModelArchitecture,
    ModuleArchitecture,
    ModuleDefinition,
    WeightInfo,
    get_architecture_info,
)
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.headers import Headers
from mergekit_lines.checkpoint.loading import ModelNames, meta_model
from mergekit_lines.checkpoint.ties import model_class, tied_names
from mergekit_lines.errors import LinesError, Problem, reason, some
from mergekit_lines.host.process import silent
from mergekit_lines.host.state import names_from_indexes
from mergekit_lines.lines.depth import block_depths, natural_key
from mergekit_lines.plan.configs import AT_RANDOM, are_trunks, is_whole
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.plan.planner import LayoutError
from mergekit_lines.plan.renames import Convertible, HeldNames, converted, held_names
from mergekit_lines.recipe.models import models_in_order

# Buffers that old checkpoints hold and every architecture recomputes.
RECOMPUTED = (r"rotary_emb\.inv_freq$", r"\.position_ids$", r"\.masked_bias$", r"\.attn\.bias$")

# Those of them that no class has learnt under this name.
UNLEARNT = re.compile(r"rotary_emb\.inv_freq$|\.position_ids$")

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


def mergekits_layout(config: MergeConfiguration, options: MergeOptions) -> Any:
    """Return mergekit's own layout of the recipe's models.

    Raises:
        LayoutError: it has none.
    """
    try:
        with names_from_indexes():
            layout = get_architecture_info(config, options)
            first = models_in_order(config)[0]
            key = vocabulary_key(first.config(trust_remote_code=options.trust_remote_code))
            if key and layout.vocab_size_config_key is None:  # an inferred one's
                layout = layout.model_copy(update={"vocab_size_config_key": key})
            return layout
    except Exception as error:
        raise LayoutError(
            f"mergekit cannot tell the models' architecture ({reason(error)}). Is it one that "
            f"mergekit merges?"
        ) from error


def headers_layout(
    config: MergeConfiguration, options: MergeOptions, headers: Mapping[ModelReference, Headers]
) -> Any:
    """Return a layout made of the checkpoints' names, or None where they do not tell enough.

    Without mergekit's description nothing else says which tensors a model needs: a base that
    transformers would fill up with random ones is not whole.
    """
    base = config.base_model
    if base is None or config.models is None:
        return None
    names = {model: list(LoaderCache().get(model).index.tensor_paths) for model in headers}
    whole = is_whole(base, headers, options)
    if whole is False:
        whole = are_trunks(base, headers, options)
    if whole is None:
        _check_names(base, names)
    elif not whole:
        return None
    held = held_names(base, names, options)
    if not all(is_whole(model, headers, options) for model in held.other_heads):
        return None
    return layout_from_names(held, options)


def _check_names(base: ModelReference, names: Mapping[ModelReference, Sequence[str]]) -> None:
    """Refuse models of unlike names where no class says what a model needs.

    Raises:
        LinesError: names the tensors.
    """
    own = {name for name in names[base] if not UNLEARNT.search(name)}
    for model, held in names.items():
        others = {name for name in held if not UNLEARNT.search(name)}
        lost, more = sorted(own - others), sorted(others - own)
        if lost or more:
            parts = [f"lacks {some(lost, 3)}"] * bool(lost) + [f"has {some(more, 3)}"] * bool(more)
            raise LinesError(
                f"model {model}: {' and '.join(parts)}, unlike base_model {base}; transformers "
                f"makes no such class, which would say what is needed, wanted models of the same "
                f"tensors. Use the base that it was fine-tuned from."
            )


def layout_from_names(held: HeldNames, options: MergeOptions) -> ModelArchitecture:
    """Return a layout of every tensor that the base has, under the base's own names.

    What only the base has of tied tensors and of buffers that are computed anew stays as it is;
    so do its heads, where a model is of another class over the same trunk.

    Args:
        held: the names.
        options: mergekit's flags.

    Raises:
        LinesError: the names of the blocks have gaps, or mean two things.
    """
    config = held.base.config(trust_remote_code=options.trust_remote_code)
    of_base = held.stored[held.base]
    depths = block_depths(of_base)
    held.check_blocks()
    aliases = held.aliases()
    common = set.intersection(
        *(set(names.values()) for model, names in held.stored.items() if model != held.base),
        set(of_base.values()),
    )
    of_one_class = set.intersection(
        *(
            set(names.values())
            for model, names in held.stored.items()
            if model not in held.other_heads
        )
    )
    declared = getattr(model_class(config), "_keys_to_ignore_on_load_unexpected", None) or []
    twins = held.twins()
    loose: list[WeightInfo] = []
    blocks: dict[str, dict[int, list[WeightInfo]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(of_base, key=natural_key):
        own = of_base[name]
        spare = own in held.ties or own in of_one_class or recomputed(name, declared)
        weight = WeightInfo(
            name=name,
            aliases=aliases[name] or None,
            tied_names=twins.get(name),
            optional=spare and own not in common,
            vocabulary_axis=held.axes.get(own),
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
        vocab_size_config_key=vocabulary_key(config),
    )


def vocabulary_key(config: Any) -> str | None:
    """Return where a config counts its tokens, if not at its top."""
    text = config.get_text_config()
    places = (key for key, value in vars(config).items() if value is text)
    return next((f"{key}.vocab_size" for key in places), None)


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


def needed_all_the_same(
    headers: Mapping[ModelReference, Headers],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> Iterator[Problem]:
    """Yield what models lack that mergekit's layout calls optional, and their classes need.

    A layout that mergekit infers calls every tensor so that not all of the models have.
    """
    modules = (module.architecture for module in arch_info.modules.values())
    if any(isinstance(one, HeaderModule) for one in modules):
        return
    losses = {model: _optional_losses(model, arch_info, options) for model in headers}
    if not any(losses.values()):
        return  # what follows asks transformers, which takes half a second
    base = config.base_model or next(iter(headers))
    if losses[base] and are_trunks(base, headers, options):
        return
    if len({*map(tuple, losses.values())}) == 1 and is_whole(base, headers, options):
        return  # all of them lack a pooler that their class does without
    for model, names in losses.items():
        if names:
            own = model.config(trust_remote_code=options.trust_remote_code)
            yield Problem(
                f"model {model}",
                f"lacks tensors of {', '.join(own.architectures or [])}, which its config.json "
                f"names",
                tuple(names),
                AT_RANDOM,
            )


def _optional_losses(model: ModelReference, arch_info: Any, options: MergeOptions) -> list[str]:
    """Return what a model lacks of a layout's optional tensors, and its class has."""
    trust = options.trust_remote_code
    own = model.config(trust_remote_code=trust)
    index, convertible = LoaderCache().get(model).index.tensor_paths, Convertible(options)
    lost = [
        weight.name
        for weight in arch_info.all_weights(own)
        if weight.optional
        and not any(name in index for name in names_of(weight))
        and not recomputed(weight.name)
        and not convertible(model, weight.name)
    ]
    if not lost:
        return []
    try:
        with silent():
            return ModelNames(meta_model(own, trust_remote_code=trust)).needed(lost)
    except Exception:  # noqa: BLE001 - a class that is not there, which needs nothing
        return []


def models_agree(
    planned: Sequence[PlannedTensor], lost: Sequence[str], headers: Mapping[ModelReference, Headers]
) -> bool:
    """Tell whether the models say otherwise than a layout, so that it is at fault.

    It has no place for a tensor that all of them have, or wants one that none of them has.

    Args:
        planned: by the layout.
        lost: tensors of the base that it has no place for.
        headers: of the models.
    """
    indexes = [LoaderCache().get(model).index.tensor_paths for model in headers]
    if any(all(name in index for index in indexes) for name in lost):
        return True
    needed = [item.weight for item in planned if not item.weight.optional]
    held = set().union(*indexes)
    return any(held.isdisjoint(names_of(weight)) for weight in needed)


def names_of(weight: WeightInfo) -> list[str]:
    """Return every name under which a checkpoint may have the tensor."""
    return [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]


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
        and not converted(model_config.model_type, name, taken)
    ]


def base_of(planned: Sequence[PlannedTensor], config: MergeConfiguration) -> ModelReference | None:
    """Return what the recipe's models were fine-tuned from."""
    return config.base_model or (planned[0].task.base_model if planned else None)


def recomputed(name: str, declared: Sequence[str] = ()) -> bool:
    """Tell whether a tensor is a buffer that its architecture computes anew."""
    return any(re.search(pattern, name) for pattern in (*RECOMPUTED, *declared))
