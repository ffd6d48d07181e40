"""Every problem of the input models that can be seen without reading weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors import SafetensorError, safe_open

from mergekit_lines.checkpoint.bounded import check_regular, read_config, read_json, special_files
from mergekit_lines.checkpoint.headers import plain_dtypes, read_headers
from mergekit_lines.checkpoint.loading import text_tower
from mergekit_lines.checkpoint.remote.downloads import fetch
from mergekit_lines.checkpoint.remote.failures import reading, status_of, unreached
from mergekit_lines.checkpoint.remote.headers import files_of
from mergekit_lines.checkpoint.stand_ins import outward_links, pointers
from mergekit_lines.errors import LinesError, Problem, TextError, nearest_name, reason
from mergekit_lines.files import MODULES, names_no_class
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.spelling import spelling_problem


def check_models(config: MergeConfiguration, options: MergeOptions) -> list[Problem]:
    """Return what is wrong with the models' folders: configs, adapters, shards, indexes.

    Models on the Hub are asked for their config only.
    """
    problems: list[str | Problem] = []
    kinds: dict[ModelReference, Any] = {}
    for model in models_in_order(config):
        problems_of_model = list(_check_model(model, options))
        problems += problems_of_model
        if not problems_of_model:
            own = not names_no_class(Path(model.model.path))
            kinds[model] = (
                model.config(trust_remote_code=options.trust_remote_code) if own else None
            )
    listed = ", ".join(
        f"{model} is {', '.join(kind.architectures or [])}" for model, kind in kinds.items() if kind
    )
    if any(kinds.values()) and None in kinds.values():
        problems += [_without_class(model) for model, kind in kinds.items() if kind is None]
    elif not options.allow_crimes and not _alike(list(kinds.values()), config):
        problems.append(
            f"the architectures differ ({listed}), wanted models fine-tuned from one base_model. "
            f"Change the models, or give --allow-crimes if their tensors fit all the same."
        )
    return list(map(Problem.of, problems))


def _without_class(model: ModelReference) -> str:
    place = Path(model.model.path)
    if place.is_file():
        return (
            f"model {place}: found one weight file beside models of a class of transformers, "
            f"wanted its folder. Check the path."
        )
    config = read_config(place / "config.json")
    which = "none"
    if config.get("architectures"):
        which = (
            f"{config['architectures']!r} of model_type {config.get('model_type')!r}, which "
            f"transformers does not know"
        )
    return (
        f"{place / 'config.json'}: for architectures found {which}, wanted the class that the "
        f"recipe's other models name. Save the model with save_pretrained, or upgrade transformers."
    )


def _alike(kinds: Sequence[Any], config: MergeConfiguration) -> bool:
    """Tell whether models may be of one trunk, by transformers' configs; None: of no class.

    Classes of one type share it, with heads of their own; a language model may be a
    vision-language model's, which is the base then.
    """
    base = kinds[0] if kinds else None
    for kind in kinds:
        if base is None or kind.architectures == base.architectures:
            continue
        if config.models is None:
            return False
        if kind.model_type != base.model_type and text_tower(base, kind) is None:
            return False
    return True


def _check_model(model: ModelReference, options: MergeOptions) -> Iterator[str]:
    folder = Path(model.model.path)
    if misspelt := spelling_problem(model):
        yield misspelt
        return
    if folder.is_file():
        yield from _check_file(model)
    elif folder.is_dir():
        problems = list(_check_files(folder)) or list(_check_config(folder))
        yield from problems or [*_check_loading(model, options), *read_headers(folder).problems]
    else:
        yield from _check_hub(model, options)
    if model.lora is not None:
        yield from _check_adapter(model.lora)


def _check_file(model: ModelReference) -> Iterator[str]:
    """Check a model that is one file: nothing says of it what its names do not."""
    path = Path(model.model.path)
    if path.suffix != ".safetensors":
        yield (
            f"model {path}: found a {path.suffix or 'nameless'} file, wanted a folder or a "
            f".safetensors file. Save its weights with safetensors."
        )
    elif model.lora is not None:
        yield (
            f"model {model}: found an adapter over a file, wanted one over a transformers model, "
            f"by whose config its layers are found. Merge the adapter first."
        )
    else:
        yield from read_headers(path).problems


def _check_files(folder: Path) -> Iterator[str]:
    yield from special_files(folder)
    yield from outward_links(folder)
    yield from pointers(folder)


def _check_loading(model: ModelReference, options: MergeOptions) -> Iterator[str]:
    if names_no_class(Path(model.model.path)):
        return
    try:
        model.config(trust_remote_code=options.trust_remote_code)
    except Exception as error:  # noqa: BLE001 - transformers validates with a dozen kinds
        yield (
            f"{model.model.path}/config.json: transformers refuses it ({reason(error)}). "
            f"Save the model with save_pretrained, or upgrade transformers."
        )


def _check_config(folder: Path) -> Iterator[str]:
    path = folder / "config.json"
    try:
        config = read_config(path)
    except FileNotFoundError:
        hint = ""
        if (folder / "adapter_config.json").exists():
            hint = f" It holds an adapter: write `BASE+{folder}`."
        elif (folder / "model_index.json").exists():
            hint = " It holds a pipeline of diffusers: name the folder of its transformer or U-Net."
        elif (folder / MODULES).exists():
            hint = f" By its {MODULES} the transformer is in a folder below: name that."
        yield f"{folder}: found no config.json, wanted a transformers checkpoint.{hint}"
        return
    except (OSError, ValueError) as error:
        yield f"{path}: cannot be read ({reason(error)}), wanted a JSON object. Download it again."
        return
    architectures = config.get("architectures") if isinstance(config, dict) else ()
    names = architectures if isinstance(architectures, list) else []
    if architectures is not None and (len(names) != 1 or not isinstance(names[0], str)):
        yield (
            f"{path}: found {architectures!r} for architectures, wanted a list of one name, by "
            f"which transformers knows the class. Save the model "
            f'with save_pretrained, or add e.g. "architectures": ["LlamaForCausalLM"].'
        )
    elif config.get("quantization_config") and not plain_dtypes(folder):
        settings = config["quantization_config"]
        method = settings.get("quant_method", "") if isinstance(settings, dict) else settings
        yield (
            f"{folder}: a quantised checkpoint ({method}); wanted plain fp16, bf16 or fp32 "
            f"weights: packed ones have no task vectors. Use the unquantised model."
        )


def _check_adapter(adapter: ModelPath) -> Iterator[str]:
    folder = Path(adapter.path)
    if not folder.is_dir():
        yield from _check_hub_adapter(adapter)
        return
    if problems := list(_check_files(folder)):
        yield from problems
        return
    try:
        read_json(folder / "adapter_config.json")
    except FileNotFoundError:
        yield f"{folder}: found no adapter_config.json, wanted a PEFT adapter after the `+`."
        return
    except (OSError, ValueError) as error:
        why = reason(error)
        yield f"{folder}/adapter_config.json: cannot be read ({why}). Save the adapter again."
        return
    weights = folder / "adapter_model.safetensors"
    if not weights.exists() and not (folder / "adapter_model.bin").exists():
        yield (
            f"{folder}: found no adapter_model.safetensors, wanted a whole adapter. Save it again."
        )
    elif weights.exists():
        try:
            check_regular(weights)
            with safe_open(weights, framework="pt"):
                pass
        except (SafetensorError, OSError, TextError) as error:
            yield f"{weights}: not a whole safetensors file ({error}). Save the adapter again."


def _check_hub_adapter(adapter: ModelPath) -> Iterator[str]:
    try:
        validate_repo_id(adapter.path)
    except HFValidationError:
        yield f"adapter {adapter.path}: there is no such folder. Check the path after the `+`."
        return
    yield from _fetch(f"adapter {adapter}", adapter, "adapter_config.json", "a PEFT adapter")


def _check_hub(model: ModelReference, options: MergeOptions) -> Iterator[str]:
    """Check that a model which is no folder can be found on the Hub, by its config."""
    path = model.model.path
    try:
        validate_repo_id(path)
    except HFValidationError:
        yield f"model {path}: there is no such folder. Check the path{_sibling(path)}."
        return
    where = f"model {model.model}"
    problems = list(_fetch(where, model.model, "config.json", "a transformers checkpoint"))
    if problems:
        yield from problems
        return
    try:
        file = try_to_load_from_cache(path, "config.json", revision=model.model.revision)
        if isinstance(file, str):
            read_config(Path(file))
            if names_no_class(Path(file).parent):
                yield (
                    f"{where}: its config.json names no class that transformers knows, wanted one "
                    f"on the Hub. Download the model (`hf download {path}`), and name its folder."
                )
                return
        config = model.config(trust_remote_code=options.trust_remote_code)
    except Exception as error:  # noqa: BLE001 - transformers validates with a dozen kinds
        if status_of(error) is not None or unreached(error):
            yield reading(where, error)
            return
        yield (
            f"{where}: transformers refuses its config.json ({reason(error)}). Take another "
            f"model, or upgrade transformers."
        )
        return
    if getattr(config, "quantization_config", None):
        yield (
            f"model {path}: a quantised checkpoint by the quantization_config in its config.json, "
            f"wanted plain fp16, bf16 or fp32 weights. Where its weights are plain all the same, "
            f"download it and name its folder."
        )


def _fetch(where: str, part: ModelPath, file: str, purpose: str) -> Iterator[str]:
    """Fetch one small file from the Hub: a gated model tells of itself, but gives out nothing."""
    cached = isinstance(try_to_load_from_cache(part.path, file, revision=part.revision), str)
    try:
        fetch(where, files_of(part.path, part.revision), file, part.revision or "main")
    except LinesError as error:
        yield from map(str, error.problems)
    except RemoteEntryNotFoundError:
        yield f"{where}: found no {file} on the Hub, wanted {purpose}. Check the name."
    except Exception as error:  # noqa: BLE001 - the Hub's clients raise a dozen kinds
        if not (cached and unreached(error)):
            hint = _sibling(part.path)
            yield reading(where, error, hint=hint)


def _sibling(path: str) -> str:
    parent = Path(path).parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    sibling = nearest_name(Path(path).name, names)
    return f", or did you mean {sibling!r}" if sibling else ""
