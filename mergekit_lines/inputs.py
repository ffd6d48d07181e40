"""Every problem of the input models that can be seen without reading weights."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from mergekit.architecture import WeightInfo
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelPath, ModelReference
from mergekit.config import ConditionalParameter, MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from mergekit_lines.checkpoint.headers import BUFFERS, FLOATS, Headers, TensorHeader, read_headers
from mergekit_lines.errors import nearest, some
from mergekit_lines.planner import PlannedTensor, models_in_order
from mergekit_lines.preflight import sections
from mergekit_lines.ties import model_class

# Buffers that old checkpoints hold and every architecture recomputes.
RECOMPUTED = (r"rotary_emb\.inv_freq$", r"\.position_ids$", r"\.masked_bias$", r"\.attn\.bias$")


def check_models(config: MergeConfiguration, options: MergeOptions) -> list[str]:
    """Return what is wrong with the models' folders: configs, adapters, shards, indexes.

    Models on the Hub are asked for their config only.
    """
    problems: list[str] = []
    for model in models_in_order(config):
        problems += _check_model(model, options)
    return problems


def _check_model(model: ModelReference, options: MergeOptions) -> Iterator[str]:
    folder = Path(model.model.path)
    if not folder.is_dir():
        problem = _check_hub(model, options)
        if problem:
            yield problem
    else:
        yield from _check_config(folder)
        yield from read_headers(folder).problems
    if model.lora is not None:
        yield from _check_adapter(model.lora)


def _check_config(folder: Path) -> Iterator[str]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = ""
        if (folder / "adapter_config.json").exists():
            hint = f" It holds an adapter: write `BASE+{folder}`."
        yield f"{folder}: found no config.json, wanted a transformers checkpoint.{hint}"
        return
    except (OSError, ValueError) as error:
        yield f"{path}: cannot be read ({error}), wanted a JSON object. Download it again."
        return
    if not isinstance(config, dict) or not config.get("architectures"):
        yield (
            f"{path}: names no architectures, by which mergekit knows the layout. Save the model "
            f'with save_pretrained, or add e.g. "architectures": ["LlamaForCausalLM"].'
        )
    elif config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "quantised")
        yield (
            f"{folder}: a quantised checkpoint ({method}), wanted plain fp16, bf16 or fp32 "
            f"weights: packed ones have no task vectors. Use the unquantised model."
        )


def _check_adapter(adapter: ModelPath) -> Iterator[str]:
    folder = Path(adapter.path)
    if not folder.is_dir():
        return  # on the Hub; peft fetches it
    if not (folder / "adapter_config.json").exists():
        yield f"{folder}: found no adapter_config.json, wanted a PEFT adapter after the `+`."
    elif not any(folder.glob("adapter_model.*")):
        yield f"{folder}: found no adapter_model.safetensors. The adapter was not saved whole."


def _check_hub(model: ModelReference, options: MergeOptions) -> str | None:
    """Return why a model that is no folder cannot be found on the Hub either."""
    path = model.model.path
    try:
        validate_repo_id(path)
    except HFValidationError:
        return f"model {path}: there is no such folder. Check the path{_sibling(path)}."
    try:
        config = model.config(trust_remote_code=options.trust_remote_code)
    except Exception as error:  # noqa: BLE001 - the Hub's clients raise a dozen kinds
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else ""
        return (
            f"model {path}: there is no such folder, and the Hub gave no config for it "
            f"({type(cause).__name__}: {reason[:160]}). Check the name{_sibling(path)}, the "
            f"network, and, for a gated or private model, `hf auth login`."
        )
    if getattr(config, "quantization_config", None):
        return f"model {path}: a quantised checkpoint, wanted plain fp16, bf16 or fp32 weights."
    return None


def _sibling(path: str) -> str:
    parent = Path(path).parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    return nearest(Path(path).name, names).rstrip("?").replace(" Did you mean", ", or did you mean")


def check_plan(
    planned: Sequence[PlannedTensor],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> list[str]:
    """Return what does not fit between the plan and the checkpoints' headers.

    Tensors that are missing, of different shapes or of a dtype that cannot be merged;
    tensors of the base that no output tensor takes; filters that match nothing.
    """
    headers: dict[ModelReference, Headers] = {}
    for model in models_in_order(config):
        folder = Path(LoaderCache().get(model).index.base_path)
        headers[model] = read_headers(folder)
    problems = [problem for found in headers.values() for problem in found.problems]
    if problems:
        return list(dict.fromkeys(problems))
    grouped: dict[str, list[Trouble]] = defaultdict(list)
    for item in planned:
        for trouble in _check_tensor(item, headers, options):
            grouped[trouble.text].append(trouble)
    for text, troubles in grouped.items():
        named = f"{some((trouble.tensor for trouble in troubles), 3)}{troubles[0].example}"
        problems.append(text.replace("TENSORS", named))
    problems += _check_lost(planned, config, arch_info, options)
    problems += _check_filters(planned, config)
    return problems


class Trouble(NamedTuple):
    """One tensor's trouble: tensors with the same text are told in one sentence."""

    text: str  # TENSORS stands for their names
    tensor: str
    example: str = ""


def _names(weight: WeightInfo) -> list[str]:
    return [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]


def _check_tensor(
    item: PlannedTensor, headers: dict[ModelReference, Headers], options: MergeOptions
) -> Iterator[Trouble]:
    gather: Any = item.task.gather_tensors
    aligned = hasattr(gather, "tokenizer_task")
    gather = getattr(gather, "gather_tensors", gather)
    found: dict[ModelReference, TensorHeader] = {}
    for model, weight in gather.weight_info.items():
        index = LoaderCache().get(model).index.tensor_paths
        name = next((name for name in _names(weight) if name in index), None)
        if name is None:
            kind = model.config(trust_remote_code=options.trust_remote_code).model_type
            if can_convert_checkpoint_keys(kind, set(index), weight.name):
                continue
            if not weight.optional:
                yield Trouble(
                    f"model {model}: lacks tensors that the merge needs (TENSORS). Is it of the "
                    f"same architecture and size as the others, and whole?",
                    weight.name,
                )
            elif model == item.task.base_model:
                yield Trouble(
                    f"base_model {model}: lacks tensors that other models have (TENSORS), so their "
                    f"change cannot be measured. Use the base they were fine-tuned from.",
                    weight.name,
                )
            continue
        tensors = headers[model].tensors
        if tensors is None:
            continue
        found[model] = tensors[name]
        if found[model].dtype not in FLOATS | BUFFERS:
            yield Trouble(
                f"model {model}: holds tensors of dtype {found[model].dtype} (TENSORS), wanted "
                f"fp16, bf16, fp32 or fp64. Convert the model first.",
                name,
            )
    yield from _check_alike(item, found, aligned)


def _check_alike(
    item: PlannedTensor, found: dict[ModelReference, TensorHeader], aligned: bool
) -> Iterator[Trouble]:
    axis, name = item.weight.vocabulary_axis, item.weight.name
    first = next(iter(found), None)
    for model, header in found.items():
        left, right = list(found[first].shape), list(header.shape)
        example = f": {tuple(left)} and {tuple(right)}"
        if axis is not None and len(left) == len(right) > axis and left[axis] != right[axis]:
            if not aligned:
                yield Trouble(
                    f"the vocabulary sizes of {first} and {model} differ (TENSORS). Align the "
                    f"vocabularies with `tokenizer: {{source: base}}`.",
                    name,
                    example,
                )
            left[axis] = right[axis]
        if left != right:
            yield Trouble(
                f"the shapes of {first} and {model} differ (TENSORS). The models of one merge must "
                f"be fine-tuned from one base_model.",
                name,
                example,
            )
        elif (found[first].dtype in FLOATS) != (header.dtype in FLOATS):
            yield Trouble(
                f"{first} holds {found[first].dtype} where {model} holds {header.dtype} (TENSORS), "
                f"wanted the same kind in all models.",
                name,
            )


def _check_lost(
    planned: Sequence[PlannedTensor],
    config: MergeConfiguration,
    arch_info: Any,
    options: MergeOptions,
) -> Iterator[str]:
    """Check that every tensor of the base is taken, tied, ignorable or converted."""
    base = config.base_model or planned[0].task.base_model if planned else config.base_model
    if base is None:
        return
    model_config = base.config(trust_remote_code=options.trust_remote_code)
    taken = {name for item in planned for name in _names(item.weight)}
    # Layers that `slices:` leaves out are left out on purpose, if the layout knows them.
    if config.slices or any(module.slices for module in (config.modules or {}).values()):
        for weight in arch_info.all_weights(model_config):
            taken.update(_names(weight))
    cls = model_class(model_config)
    declared = getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or []
    ignorable = [re.compile(pattern) for pattern in (*RECOMPUTED, *declared)]
    tied = getattr(cls, "_tied_weights_keys", None) or {}
    index = LoaderCache().get(base).index.tensor_paths
    lost = [
        name
        for name in index
        if name not in taken
        and not any(pattern.search(name) for pattern in ignorable)
        and not (name in tied and isinstance(tied, dict) and tied[name] in taken)
        and not _converted(model_config.model_type, name, taken)
    ]
    if lost:
        yield (
            f"base_model {base}: {len(lost)} of its {len(index)} tensors would be lost, for "
            f"mergekit's layout of {', '.join(model_config.architectures or ['this model'])} has "
            f"no place for them: {some(lost)}. This architecture cannot be merged by mergekit yet."
        )


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


def _check_filters(planned: Sequence[PlannedTensor], config: MergeConfiguration) -> Iterator[str]:
    names = {item.weight.name for item in planned}
    for item in planned:
        gather: Any = item.task.gather_tensors
        gather = getattr(gather, "gather_tensors", gather)
        names.update(weight.name for weight in gather.weight_info.values())
    for section in sections(config):
        for key, setting in section.parameters.items():
            entries = setting if isinstance(setting, list) else [setting]
            for entry in entries:
                if not isinstance(entry, ConditionalParameter) or entry.filter in (None, "*"):
                    continue
                if not any(entry.filter in name for name in names):
                    yield (
                        f"{section.place}.{key}: the filter {entry.filter!r} matches no tensor, "
                        f"wanted a part of a name such as {min(names)}."
                    )
