"""Whether the plan and the checkpoints fit together, by their headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.headers import BUFFERS, FLOATS, Headers, TensorHeader
from mergekit_lines.checkpoint.ties import is_untied, tied_names
from mergekit_lines.errors import Problem, some, together
from mergekit_lines.plan.layout import (
    base_of,
    lost_tensors,
    names_of,
    needed_all_the_same,
    recomputed,
)
from mergekit_lines.plan.planned import PlannedTensor
from mergekit_lines.plan.renames import Convertible, converted
from mergekit_lines.recipe.models import models_in_order


def check_layers(
    config: MergeConfiguration, arch_info: Any, options: MergeOptions
) -> Iterator[str]:
    """Yield what is wrong with modules, layer ranges and layer counts, before planning."""
    modules = dict(config.modules or {})
    for name in modules:
        if name not in arch_info.modules:
            names = ", ".join(arch_info.modules)
            yield f"modules.{name}: this architecture has no such module (it has: {names})."
            return
    if config.models or config.slices:
        modules = dict.fromkeys(arch_info.modules, config)
    for name, definition in modules.items():
        layout = arch_info.modules[name].architecture

        def layers(model: ModelReference, layout: Any = layout) -> int:
            config = model.config(trust_remote_code=options.trust_remote_code)
            return int(layout.num_layers(config))

        place = f"modules.{name}." if config.modules else ""
        for number, output_slice in enumerate(definition.slices or []):
            yield from _check_slice(f"{place}slices[{number}]", output_slice, layers)
        models = [entry.model for entry in definition.models or []]
        counts = {model: layers(model) for model in [config.base_model, *models] if model}
        if models and len(set(counts.values())) > 1:
            numbers = ", ".join(f"{model} has {count}" for model, count in counts.items())
            yield (
                f"{place}models: the numbers of layers differ: {numbers}; wanted models fine-tuned "
                f"from base_model. Pick layers with `slices:` if that is what you mean."
            )


def _check_slice(place: str, output_slice: Any, layers: Any) -> Iterator[str]:
    lengths = {}
    for number, source in enumerate(output_slice.sources):
        first, last = source.layer_range
        count = layers(source.model)
        if not 0 <= first < last <= count:
            yield (
                f"{place}.sources[{number}].layer_range: found [{first}, {last}], wanted two "
                f"rising numbers from 0 to {count}, the layers of {source.model}."
            )
            return
        lengths[f"{source.model} gives {last - first}"] = last - first
    if len(set(lengths.values())) > 1:
        yield (
            f"{place}.sources: the layer_range differ in length ({', '.join(lengths)}), wanted the "
            f"same number of layers from each source."
        )


def check_plan(
    planned: Sequence[PlannedTensor],
    headers: Mapping[ModelReference, Headers],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> list[Problem]:
    """Return what does not fit between the plan and the checkpoints' headers.

    Tensors that are missing, of different shapes or of a dtype that cannot be merged;
    tensors of the base that no output tensor takes; heads that only the base ties.
    """
    convertible = Convertible(options)
    problems: list[str | Problem] = [
        *together(
            problem for item in planned for problem in _check_tensor(item, headers, convertible)
        )
    ]
    problems += _check_lost(planned, config, arch_info, options)
    problems += _check_ties(planned, config, options)
    problems += _check_heads(planned, config, arch_info, options)
    problems += _check_own_heads(planned, options)
    listed = list(map(Problem.of, problems))
    blamed = {problem.key.removeprefix("base_") for problem in listed}
    losses = needed_all_the_same(headers, config, arch_info, options)
    return listed + [problem for problem in losses if problem.key not in blamed]


def dropped_tensors(
    planned: Sequence[PlannedTensor], config: MergeConfiguration, options: MergeOptions
) -> dict[ModelReference, list[str]]:
    """Return, per fine-tuned model, its tensors that the base has not and the merge drops."""
    bases = {item.task.base_model for item in planned} | {config.base_model}
    kept = {name for item in planned for name in names_of(item.weight)}
    for base in bases - {None}:
        kept |= set(LoaderCache().get(base).index.tensor_paths)
    result = {}
    for model in models_in_order(config):
        index = LoaderCache().get(model).index.tensor_paths
        if model in bases:
            continue
        kind = model.config(trust_remote_code=options.trust_remote_code).model_type
        extra = [
            name
            for name in index
            if name not in kept and not recomputed(name) and not converted(kind, name, kept)
        ]
        if extra:
            result[model] = extra
    return result


def half_tied(
    planned: Sequence[PlannedTensor], config: MergeConfiguration, options: MergeOptions
) -> list[str]:
    """Return tied tensors of the output that some models store twice, and others once.

    A layout that does not know of the tie would merge such a copy of some models alone, and
    what loads the output would take it for untied.
    """
    base = base_of(planned, config)
    if base is None:
        return []
    outputs = [item.weight.name for item in planned]
    tied = tied_names(base.config(trust_remote_code=options.trust_remote_code), outputs)
    half = []
    for item in planned:
        if item.weight.name in tied:
            indexes = {m: LoaderCache().get(m).index.tensor_paths for m in item.task.inputs}
            held = {
                any(name in index for name in names_of(item.weight)) for index in indexes.values()
            }
            if held == {True, False}:
                half.append(item.weight.name)
    return half


def renamed_tensors(planned: Sequence[PlannedTensor], config: MergeConfiguration) -> list[str]:
    """Return the tensors of the output that have another name than in the base's files.

    mergekit's layouts name some after transformers' classes: experts that a class fuses stand
    one by one in files, and old files have old names.
    """
    base = base_of(planned, config)
    if base is None:
        return []
    index = LoaderCache().get(base).index.tensor_paths
    strange = []
    for item in planned:
        weight = item.weight
        # A tied tensor that the base does not store is no other name of it.
        is_alias = any(name in index for name in weight.aliases or ())
        is_held = weight.optional or any(name in index for name in names_of(weight))
        if weight.name not in index and (is_alias or not is_held):
            strange.append(weight.name)
    return strange


def _check_tensor(
    item: PlannedTensor, headers: Mapping[ModelReference, Headers], convertible: Convertible
) -> Iterator[Problem]:
    held: dict[ModelReference, TensorHeader] = {}
    for model, weight in item.task.inputs.items():
        index = LoaderCache().get(model).index.tensor_paths
        name = next((name for name in names_of(weight) if name in index), None)
        if name is None:
            if convertible(model, weight.name):
                continue
            if not weight.optional:
                yield Problem(
                    f"model {model}",
                    "lacks tensors that the merge needs",
                    (weight.name,),
                    ". Is it of the same architecture and size as the others, and whole?",
                )
            elif model == item.task.base_model:
                yield Problem(
                    f"base_model {model}",
                    "lacks tensors that other models have",
                    (weight.name,),
                    ", so their change cannot be measured. Use the base they were fine-tuned from.",
                )
            continue
        tensors = headers[model].tensors
        if tensors is None:
            continue
        if tensors[name].dtype in FLOATS | BUFFERS:
            held[model] = tensors[name]
        else:
            yield Problem(
                f"model {model}",
                f"holds tensors of dtype {tensors[name].dtype}",
                (name,),
                ", wanted fp16, bf16, fp32 or fp64. Convert the model first.",
            )
    yield from _check_alike(item, held, item.task.aligned)


def _check_alike(
    item: PlannedTensor, held: dict[ModelReference, TensorHeader], aligned: bool
) -> Iterator[Problem]:
    axis, name = item.weight.vocabulary_axis, item.weight.name
    # Against the base, which the others were fine-tuned from.
    first = item.task.base_model if item.task.base_model in held else next(iter(held), None)
    for model, header in held.items():
        left, right = list(held[first].shape), list(header.shape)
        example = f": {tuple(left)} and {tuple(right)}"
        if axis is not None and len(left) == len(right) > axis and left[axis] != right[axis]:
            if not aligned:
                yield Problem(
                    "",
                    f"the vocabulary sizes of {first} and {model} differ",
                    (name,),
                    ". Align the vocabularies with `tokenizer: {source: union}`, which keeps every "
                    f"model's tokens, or `{{source: {model}}}`; of `{{source: base}}` the tokens "
                    f"that only {model} has would be lost.",
                    example,
                )
            left[axis] = right[axis]
        if left != right:
            yield Problem(
                "",
                f"the shapes of {first} and {model} differ",
                (name,),
                ". The models of one merge must be fine-tuned from one base_model.",
                example,
            )
        elif (held[first].dtype in FLOATS) != (header.dtype in FLOATS):
            yield Problem(
                "",
                f"{first} holds {held[first].dtype} where {model} holds {header.dtype}",
                (name,),
                ", wanted the same kind in all models.",
            )


def _check_lost(
    planned: Sequence[PlannedTensor],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> Iterator[str]:
    """Check that no tensor of the base is lost."""
    lost = lost_tensors(planned, config, arch_info, options)
    if lost:
        base: Any = base_of(planned, config)
        names = base.config(trust_remote_code=options.trust_remote_code).architectures
        index = LoaderCache().get(base).index.tensor_paths
        yield (
            f"base_model {base}: {len(lost)} of its {len(index)} tensors would be lost, for "
            f"mergekit's layout of {', '.join(names or ['this model'])} has no place for them: "
            f"{some(lost)}. Save the model again without them, or use models that have them too."
        )


def _check_ties(
    planned: Sequence[PlannedTensor], config: MergeConfiguration, options: MergeOptions
) -> Iterator[str]:
    """Check that no model unties what the output's config will tie again on loading."""
    if config.base_model is None:
        return
    base_config = config.base_model.config(trust_remote_code=options.trust_remote_code)
    names = [item.weight.name for item in planned]
    tied = tied_names(base_config, names)
    for model in models_in_order(config):
        own = model.config(trust_remote_code=options.trust_remote_code)
        untied = tied - tied_names(own, names)
        held = sorted(untied & set(LoaderCache().get(model).index.tensor_paths))
        if held:
            yield (
                f"model {model}: unties {some(held)}, which base_model {config.base_model} ties to "
                f"its embedding, so that the merged tensor would be ignored on loading. Use models "
                f"that agree on tie_word_embeddings."
            )


def _check_heads(
    planned: Sequence[PlannedTensor],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> Iterator[str]:
    """Check that a head which no model holds is a tied one: loading draws another at random."""
    if config.base_model is None:
        return
    base_config = config.base_model.config(trust_remote_code=options.trust_remote_code)
    outputs = {item.weight.name for item in planned}
    for weight in arch_info.all_weights(base_config):
        if weight.optional and weight.name not in outputs and is_untied(base_config, weight.name):
            yield (
                f"base_model {config.base_model}: no model holds {weight.name}, and config.json "
                f"says tie_word_embeddings: false, so that loading would draw it at random. Save "
                f"the model whole, or set tie_word_embeddings: true where it is tied."
            )


def _check_own_heads(planned: Sequence[PlannedTensor], options: MergeOptions) -> Iterator[Problem]:
    """Check that no model's embedding stands in for a head that its own config does not tie.

    mergekit's layouts take the one where the other is not there, which is right of tied heads.
    """
    outputs = [item.weight.name for item in planned]
    for item in planned:
        name = item.weight.name
        for model, weight in item.task.inputs.items():
            index = LoaderCache().get(model).index.tensor_paths
            if any(one in index for one in (weight.name, *(weight.aliases or ()))):
                continue  # and no config is copied for each of thousands of tensors
            # What no name stands in for is missing, and said to be.
            passes = weight.optional or any(one in index for one in weight.tied_names or ())
            own = model.config(trust_remote_code=options.trust_remote_code)
            if passes and is_untied(own, name) and name not in tied_names(own, outputs):
                yield Problem(
                    f"model {model}",
                    f"lacks {name}, and its config.json says tie_word_embeddings: false",
                    (),
                    ". Download or save it again, or set tie_word_embeddings: true where its head "
                    "is its embedding.",
                )
