"""From a recipe to a plan by indexes and headers alone: no weight is read or downloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mergekit import merge as mergekit_merge
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.loader import LazyPickleLoader
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.headers import Headers, prefixed_names, read_headers
from mergekit_lines.checkpoint.remote.headers import remote_headers
from mergekit_lines.errors import LinesError, Problem, reason, some
from mergekit_lines.host.names import ALONE
from mergekit_lines.lines.outside import mostly_outside
from mergekit_lines.plan.configs import config_notes, lacking, refused_configs, trunk_note
from mergekit_lines.plan.fit import (
    check_layers,
    check_plan,
    dropped_tensors,
    half_tied,
    renamed_tensors,
)
from mergekit_lines.plan.layout import (
    headers_layout,
    layout_fits,
    lost_tensors,
    mergekits_layout,
    models_agree,
    names_of,
)
from mergekit_lines.plan.opening import adapter_of, loader_of, open_model
from mergekit_lines.plan.planned import MergeRun, PlannedTensor, planning
from mergekit_lines.plan.planner import LayoutError, LinesPlanner
from mergekit_lines.plan.tokenizer import OrderedTokenizer
from mergekit_lines.recipe.models import models_in_order

FROM_HEADERS = (
    "the layout is made of the tensors' own names: mergekit's description of this architecture "
    "does not fit the models"
)
NO_CLASS = (
    "the layout is made of the tensors' own names: the models name no class that transformers knows"
)
SEVERAL_CLASSES = (
    "the models are of several classes: what they share is merged by the tensors' own names, and "
    "what only the base has, its head for one, stays the base's"
)
OWN_NAMES = (
    "the layout is made of the tensors' own names, which the output keeps: mergekit's description "
    "has others ({example}). What a merge trims or drops is counted per tensor of the files"
)
OTHER_NAMES = (
    "the output has mergekit's names for {example} and others, which the base's files call "
    "otherwise: not all models hold them one by one. What a merge trims or drops is counted per "
    "tensor of the output"
)


@dataclass(frozen=True)
class Prepared:
    """A plan that fits its models, and what their headers say."""

    planned: list[PlannedTensor]
    arch_info: Any
    headers: dict[ModelReference, Headers]
    copied: set[ModelReference]  # adapted models that peft has to merge into a copy
    out_config: Any
    seed: int  # the recipe's, or that of the flag
    tokenizer: OrderedTokenizer | None  # builds the output's, where the recipe says `tokenizer`
    dropped: Mapping[ModelReference, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the user should know, and nothing to refuse
    refusals: tuple[Problem, ...] = ()  # why it is not merged, although there is a plan


def prepare(config: MergeConfiguration, options: MergeOptions, run: MergeRun) -> Prepared:
    """Plan the recipe, and check the plan against the models' headers.

    mergekit's loader cache is fed with loaders that know an index only, so that neither a
    download nor the merging of an adapter begins before the plan is known to fit. The caller
    empties the cache afterwards.

    Raises:
        LinesError: with every problem that indexes and headers show.
    """
    LoaderCache().setup(options=options)
    headers = {model: _feed(model, options) for model in models_in_order(config)}
    problems = [Problem.of(one) for header in headers.values() for one in header.problems]
    problems += _check_counts(headers, options)
    problems += [] if problems else [*_empty(headers), *_prefixed(headers)]
    copied = set() if problems else _check_adapters(headers, options, problems)
    if problems:
        raise LinesError(problems)
    prepared, notes = _fitting(config, options, run, headers, copied)
    # Last: other heads most often go with other shapes, which tell more.
    if problems := list(refused_configs(config, options, prepared.planned)):
        raise LinesError(problems)
    if config.base_model:
        notes += trunk_note(config.base_model, headers[config.base_model], options)
    notes += config_notes(config, options, prepared.planned)
    dropped = dropped_tensors(prepared.planned, config, options)
    for model, names in dropped.items():
        notes.append(
            f"{model}: {len(names)} tensors that the base lacks are dropped: {some(names, 3)}"
        )
    refusals = () if config.merge_method in ALONE else tuple(_depth_problems(prepared))
    return replace(prepared, dropped=dropped, notes=tuple(notes), refusals=refusals)


def _fitting(
    config: MergeConfiguration,
    options: MergeOptions,
    run: MergeRun,
    headers: dict[ModelReference, Headers],
    copied: set[ModelReference],
) -> tuple[Prepared, list[str]]:
    """Return a plan by mergekit's layout, or by the headers', and which of them it is.

    mergekit's is taken where it fits and gives every tensor the name that the base has for it.

    Raises:
        LinesError: neither fits.
    """
    kinds = {
        tuple(model.config(trust_remote_code=options.trust_remote_code).architectures or [])
        for model in headers
    }
    if len(kinds) > 1 and not options.allow_crimes:
        layout = headers_layout(config, options, headers)
        if layout is None:
            problem = (
                f"the models are of several classes ({some(sorted(map(', '.join, kinds)), 3)}), "
                f"and their files do not give every parameter of them, wanted whole models. "
                f"Use models of one class, or give --allow-crimes where their tensors fit."
            )
            raise LinesError([problem, *lacking(headers, options)])
        return _prepared(config, layout, options, run, headers, copied), [SEVERAL_CLASSES]
    if kinds == {()} and config.models is None:
        raise LinesError(
            "slices: the models name no class that transformers knows, by which mergekit counts "
            "layers, wanted `models:`: by their names alone tensors are merged whole model by "
            "whole model."
        )
    try:
        layout = mergekits_layout(config, options)
        prepared = _prepared(config, layout, options, run, headers, copied)
    except LayoutError as error:
        try:
            layout = headers_layout(config, options, headers)
            if layout is not None:
                plan = _prepared(config, layout, options, run, headers, copied)
                return plan, [FROM_HEADERS if kinds != {()} else NO_CLASS]
        except LinesError as of_headers:
            raise (of_headers if error.models_agree else error) from None
        if error.models_agree and (problems := [*lacking(headers, options)]):
            raise LinesError(problems) from None
        raise
    strange = renamed_tensors(prepared.planned, config)
    if half := half_tied(prepared.planned, config, options):
        layout = headers_layout(config, options, headers)
        if layout is None:
            raise LinesError(
                f"tensors {some(half, 3)}: are tied, and some models store them twice, others "
                f"once, wanted one of both in all. Save the models again with transformers."
            )
        return _prepared(config, layout, options, run, headers, copied), [FROM_HEADERS]
    if not strange or config.models is None:
        return prepared, []
    # By mergekit's layout they fit all the same, where a model holds experts fused.
    with suppress(LinesError):
        layout = headers_layout(config, options, headers)
        if layout is not None:
            own = _prepared(config, layout, options, run, headers, copied)
            return own, [OWN_NAMES.format(example=some(strange, 1))]
    return prepared, [OTHER_NAMES.format(example=strange[0])]


def _depth_problems(prepared: Prepared) -> Iterator[Problem]:
    """Yield that most of the model stands in lists that the depth does not count."""
    planned = prepared.planned
    if not planned or dict(planned[0].task.parameters.items()).get("blocks"):
        return
    entries = {item.weight.name: _entries(item, prepared.headers) for item in planned}
    if not all(entries.values()):  # of pickles and fused tensors; then tensors are counted
        entries = dict.fromkeys(entries, 1)
    depths = {item.placed.name: item.placed.depth for item in planned}
    problem = mostly_outside(depths, entries)
    if problem:
        yield problem


def _entries(item: PlannedTensor, headers: Mapping[ModelReference, Headers]) -> int:
    """Return the number of entries of a tensor, as far as a header of this name tells it."""
    for model, weight in item.task.inputs.items():
        tensors = headers[model].tensors or {}
        held = [tensors[name] for name in names_of(weight) if name in tensors]
        if held:
            return math.prod(held[0].shape)
    return 0


def _empty(headers: Mapping[ModelReference, Headers]) -> Iterator[Problem]:
    """Yield models whose files hold no tensor at all."""
    for model in headers:
        if not LoaderCache().get(model).index.tensor_paths:
            yield Problem(f"model {model}", "its files hold no tensor. Download or save it again.")


def _prefixed(headers: Mapping[ModelReference, Headers]) -> Iterator[Problem]:
    """Yield models whose names a wrapper has changed; transformers loads none of them."""
    for model in headers:
        text = prefixed_names(LoaderCache().get(model).index.tensor_paths)
        if text:
            yield Problem(f"model {model}", text)


def _check_counts(
    headers: Mapping[ModelReference, Headers], options: MergeOptions
) -> Iterator[Problem]:
    """Yield configs that count more blocks than there are tensors: a plan of them has no end."""
    for model, found in headers.items():
        config = model.config(trust_remote_code=options.trust_remote_code).get_text_config()
        count = getattr(config, "num_hidden_layers", None)
        if found.tensors and isinstance(count, int) and count > len(found.tensors):
            yield Problem(
                f"model {model}",
                f"its config.json counts {count:,} layers, and the checkpoint holds "
                f"{len(found.tensors):,} tensors in all. Download the model again.",
            )


def _prepared(
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
    run: MergeRun,
    headers: dict[ModelReference, Headers],
    copied: set[ModelReference],
) -> Prepared:
    """Plan by one layout.

    Raises:
        LayoutError: the layout does not fit the models.
        LinesError: the recipe or a model is at fault.
    """
    copy = config.model_copy(deep=True)  # mergekit's planner rewrites it
    try:
        layers = list(check_layers(config, arch_info, options))
        out_config = mergekit_merge._model_out_config(copy, arch_info, options.trust_remote_code)
    except RuntimeError as error:  # a config without the key that the layout counts blocks by
        raise LayoutError(
            f"mergekit's layout does not fit the models' configs ({reason(error)}). Is the "
            f"architecture one that mergekit merges?"
        ) from error
    if layers:
        raise LinesError(layers)
    with planning(run):
        planner = LinesPlanner(copy, arch_info, options, out_config)
        planned = planner.planned()
    problems = check_plan(planned, headers, config, arch_info, options)
    problems += refused_values(planned)[:1]
    if problems:
        fits = layout_fits(planned, config, arch_info, options)
        if fits and not half_tied(planned, config, options):
            raise LinesError(problems)
        lost = lost_tensors(planned, config, arch_info, options)
        raise LayoutError(problems, models_agree=models_agree(planned, lost, headers))
    return Prepared(
        planned, arch_info, headers, copied, out_config, planner.seed, planner.tokenizer
    )


def refused_values(planned: list[PlannedTensor]) -> list[Problem]:
    """Return which tensors' parameters our own kernel refuses."""
    problems: list[Problem] = []
    for item in planned:
        try:
            with item.task.failures({}):
                item.task.kernel(dict.fromkeys(item.task.model_order, torch.float32))
        except LinesError as error:
            problems += error.problems
    return problems


def _check_adapters(
    headers: Mapping[ModelReference, Headers], options: MergeOptions, problems: list[Problem]
) -> set[ModelReference]:
    """Collect what is wrong with adapters on this machine; return those that peft merges."""
    copied = set()
    for model, model_headers in headers.items():
        if model.lora is None or not Path(model.lora.path).is_dir():
            continue
        try:
            adapter = adapter_of(model, model_headers.tensors, options)
        except LinesError as error:
            problems += error.problems
            continue
        if adapter is None:
            copied.add(model)
        else:
            adapter.close()
    return copied


def _feed(model: ModelReference, options: MergeOptions) -> Headers:
    """Read a model's headers, and give mergekit a loader of its index.

    An adapter changes values and no names: its base's index stands for both.
    """
    folder = Path(model.model.path)
    if not folder.exists():
        headers = remote_headers(model.model.path, model.model.revision, options.transformers_cache)
    else:
        headers = read_headers(folder)
    if headers.tensors is None and not headers.problems:
        _feed_pickle(model, options)
    elif headers.tensors is not None:
        LoaderCache().loaders[model] = loader_of(folder, headers.tensors)
    return headers


def _feed_pickle(model: ModelReference, options: MergeOptions) -> None:
    """Let mergekit list a pickled checkpoint's names itself: there is no header to read.

    Raises:
        LinesError: ``--lazy-unpickle`` cannot read a file of it.
    """
    plain = ModelReference(model=model.model)
    LoaderCache().loaders[model] = loader = open_model(plain)
    for file in sorted(set(loader.index.tensor_paths.values())) if options.lazy_unpickle else ():
        try:
            LazyPickleLoader(str(Path(loader.index.base_path, file)))
        except Exception as error:
            raise LinesError(
                f"model {model}: --lazy-unpickle cannot read {file} ({reason(error)}): it is of "
                f"torch's old form, or holds Parameters or Buffers. Drop the flag, or save the "
                f"model as safetensors."
            ) from error
