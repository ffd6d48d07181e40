"""The models' names for their tensors, brought together by transformers' own renamings.

Files of one architecture have other names from release to release, and with a head another
prefix. A merge takes the base's; what the other models call a tensor is an alias of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mergekit.architecture.auto import infer_vocabulary_axes
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelReference
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from mergekit_lines.checkpoint.loading import (
    ModelNames,
    meta_model,
    names_in_tower,
    text_tower,
)
from mergekit_lines.errors import LinesError, some
from mergekit_lines.host.process import silent
from mergekit_lines.lines.depth import block_depths, containers


@dataclass(frozen=True)
class HeldNames:
    """What the recipe's models call their tensors.

    Attributes:
        base: what the others were fine-tuned from.
        stored: per model, the base's model's name of every tensor by its name in the files; the
            base stands first.
        ties: per tied tensor what it is tied to, by the base's model's names.
        other_heads: models of another class over the same trunk.
        axes: of tokens, by the base's model's name of a tensor.
    """

    base: ModelReference
    ties: Mapping[str, str]
    stored: Mapping[ModelReference, Mapping[str, str]]
    other_heads: frozenset[ModelReference]
    axes: Mapping[str, int]

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Return the other models' names for each of the base's tensors, by the base's name."""
        of_base = self.stored[self.base]
        aliases: dict[str, dict[str, None]] = {name: {} for name in of_base}
        by_model_name = {model_name: name for name, model_name in of_base.items()}
        for names in self.stored.values():
            for name, model_name in names.items():
                own = by_model_name.get(model_name)
                if own is not None and own != name:
                    aliases[own][name] = None
        self._check(aliases)
        return {name: tuple(sorted(others)) for name, others in aliases.items()}

    def twins(self) -> dict[str, tuple[str, ...]]:
        """Return the names under which a model may store what the base stores, as it is tied.

        By the base's name of a tensor; those that are not tied are left out.
        """
        sources = self.ties
        groups: dict[str, set[str]] = {}
        for names in self.stored.values():
            for stored, name in names.items():
                if name in sources or name in sources.values():
                    groups.setdefault(sources.get(name, name), set()).add(stored)
        twins = {}
        for stored, name in self.stored[self.base].items():
            others = groups.get(sources.get(name, name), set()) - {stored}
            if others:
                twins[stored] = tuple(sorted(others))
        return twins

    def check_blocks(self) -> None:
        """Refuse models of another number of blocks than the base has in the same place.

        Raises:
            LinesError: names them, or the names of a model's blocks have gaps.
        """
        counts = {
            model: containers(block_depths(set(n.values()))) for model, n in self.stored.items()
        }
        for model, own in counts.items():
            for place, count in counts[self.base].items():
                if own.get(place, count) != count:
                    raise LinesError(
                        f"model {model}: has {own[place]} blocks where base_model {self.base} has "
                        f"{count} ({place}), wanted models fine-tuned from base_model."
                    )

    def _check(self, aliases: Mapping[str, Collection[str]]) -> None:
        """Refuse names that stand for one tensor in one model and for another in the next."""
        of_base = self.stored[self.base]
        for model, names in self.stored.items():
            for own, others in aliases.items():
                taken = next((name for name in (own, *others) if name in names), None)
                if taken is not None and names[taken] != of_base[own]:
                    raise LinesError(
                        f"model {model}: calls {taken} what base_model {self.base} calls "
                        f"otherwise, wanted names that mean one tensor in all models. Save the "
                        f"models again with one release of transformers."
                    )


def held_names(
    base: ModelReference, names: Mapping[ModelReference, Sequence[str]], options: MergeOptions
) -> HeldNames:
    """Bring the models' names together by transformers' own renamings.

    A model that transformers cannot build has the names that its files have.

    Args:
        base: what the others were fine-tuned from.
        names: of the tensors, by model.
        options: mergekit's flags.

    Raises:
        LinesError: base and a model of another class have heads of one name.
    """
    trust = options.trust_remote_code
    config = base.config(trust_remote_code=trust)
    order = [base, *(model for model in names if model != base)]
    kinds = {model: model.config(trust_remote_code=trust).architectures for model in order}
    others = frozenset(model for model in order if kinds[model] != kinds[base])
    try:
        with silent():
            model = meta_model(config, trust_remote_code=trust)
            model_names = ModelNames(model)
            axes = dict(infer_vocabulary_axes(model))
            ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    except Exception:  # noqa: BLE001 - a class that is not there; then no axis is known
        return HeldNames(base, {}, {m: {n: n for n in names[m]} for m in order}, others, {})
    stored = {one: model_names.of(names[one]) for one in order}
    configs = {one: one.config(trust_remote_code=trust) for one in others}
    towers = {one for one in others if text_tower(config, configs[one]) is not None}
    with silent():
        stored |= {one: names_in_tower(model, configs[one], names[one]) for one in towers}
    if others and not options.allow_crimes:
        of_base = set(stored[base].values())
        for one in others - towers:
            if kinds[one] == [model_names.trunk]:
                continue  # it has no heads; what it holds beside blocks is the trunk's
            heads = [
                name
                for name in stored[one].values()
                if name in of_base and not model_names.in_trunk(name)
            ]
            if heads:
                raise LinesError(
                    f"model {one}: is {', '.join(kinds[one] or [])}, and base_model {base} is "
                    f"{', '.join(kinds[base] or [])}; both have {some(heads, 3)}, which may mean "
                    f"two things. Use models of one class, or give --allow-crimes to merge them."
                )
    return HeldNames(base, ties, stored, others, axes)


class Convertible:
    """What mergekit can make of the tensors of a checkpoint in an older layout (fused experts).

    mergekit looks through all names that it is given for every tensor it is asked for. Those
    with the tensor's own number, which is its block's, most often are enough; and a name that no
    conversion makes of any is not asked for at all.
    """

    def __init__(self, options: MergeOptions) -> None:
        self._options = options
        self._known: dict[ModelReference, tuple[str, dict[str, set[str]], set[str]]] = {}

    def __call__(self, model: ModelReference, name: str) -> bool:
        """Tell whether the model's tensors give the one that it has not under this name."""
        if model not in self._known:
            kind = model.config(trust_remote_code=self._options.trust_remote_code).model_type
            numbered: dict[str, set[str]] = defaultdict(set)
            index = LoaderCache().get(model).index
            for held in index.tensor_paths:
                numbered[_number(held)].add(held)
            self._known[model] = (kind, numbered, _conversions(kind, index.tensor_paths))
        kind, numbered, conversions = self._known[model]
        if name not in conversions:
            return False
        few = numbered.get(_number(name), set())
        return can_convert_checkpoint_keys(kind, few, name) or can_convert_checkpoint_keys(
            kind, set().union(*numbered.values()), name
        )


def converted(model_type: str, name: str, taken: Collection[str]) -> bool:
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
        if not targets.isdisjoint(taken):
            return True
    return name in taken


def _conversions(kind: str, names: Iterable[str]) -> set[str]:
    """Return these names, and all that transformers' conversions may make of single ones."""
    results = set(names)
    for transform in get_checkpoint_conversion_mapping(kind) or []:
        for name in tuple(results):
            renamed, pattern = transform.rename_source_key(name)
            if pattern is None:
                continue
            results.add(renamed)
            first, *others = transform.target_patterns
            results.update(renamed.replace(first, other, 1) for other in others)
    return results


def _number(name: str) -> str:
    """Return the first number of a name, or nothing."""
    return next((part for part in name.split(".") if part.isdecimal()), "")
