"""By which library a merged model is loaded, and how: by the files that its folder holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mergekit_lines.checkpoint.bounded import read_json
from mergekit_lines.checkpoint.loading import stored_trunk
from mergekit_lines.files import MODULES
from mergekit_lines.report.usage import CONFIG, content_of

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt")
TRANSFORMERS, SENTENCES, DIFFUSERS = "transformers", "sentence-transformers", "diffusers"
_SENTENCES = "from sentence_transformers import SentenceTransformer"
# The end of an architecture's name, the class that loads it, and the Hub's name for its task.
KINDS = (
    ("ForCausalLM", "AutoModelForCausalLM", "text-generation"),
    ("LMHeadModel", "AutoModelForCausalLM", "text-generation"),
    ("ForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "AutoModelForImageClassification", "image-classification"),
    (
        "WhisperForConditionalGeneration",
        "AutoModelForSpeechSeq2Seq",
        "automatic-speech-recognition",
    ),
    ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", None),
    ("BartForConditionalGeneration", "AutoModelForSeq2SeqLM", None),
)


@dataclass(frozen=True)
class Kind:
    """How transformers loads a model.

    Attributes:
        loader: the class.
        options: of it, beside the model's name.
        task: the model's on the Hub, if it is known.
    """

    loader: str
    options: str = ""
    task: str | None = None


def kind(folder: Path) -> Kind:
    """Return how transformers loads a model, so that none of it is made up.

    A checkpoint that lacks the head of the class that its config names is the trunk.
    """
    try:
        config = read_json(folder / "config.json")
        architecture = str(config["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return Kind("AutoModel")
    trunk = stored_trunk(folder)
    if trunk is not None:
        _, options = trunk
        return Kind("AutoModel", "".join(f", {key}={value}" for key, value in options.items()))
    for end, loader, task in KINDS:
        if architecture.endswith(end):
            return Kind(loader, task=task)
    return Kind(architecture if _has_head(architecture) else "AutoModel")


def _has_head(architecture: str) -> bool:
    """Tell whether a class of transformers is more than the trunk that AutoModel makes."""
    trunks = MODEL_MAPPING_NAMES.values()
    alone = any(architecture in ([one] if isinstance(one, str) else one) for one in trunks)
    return not alone and isinstance(getattr(transformers, architecture, None), type)


def library(folder: Path) -> str | None:
    """Return the library that loads a model, by the Hub's name for it; None: any by the tensors.

    A file that cannot be read tells of none.
    """
    config = content_of(folder / CONFIG)
    if not isinstance(config, dict):
        return None
    if isinstance(content_of(folder / MODULES), list):
        return SENTENCES
    if _diffusers_class(config):
        return DIFFUSERS
    return TRANSFORMERS if config.get("architectures") or config.get("model_type") else None


def task_of(folder: Path) -> str | None:
    """Return a model's task on the Hub, where its files tell it."""
    return "sentence-similarity" if library(folder) == SENTENCES else kind(folder).task


def loading_code(folder: Path, name: str, branch: str | None, *, on_hub: bool) -> str:
    """Return the lines of Python that load a merged model.

    Args:
        folder: the model.
        name: what it is called where it is loaded: a path, or a repository's name.
        branch: of the repository, if it is not the default one.
        on_hub: whether it is a repository.
    """
    source = json.dumps(name, ensure_ascii=False)
    if branch:
        source += f", revision={json.dumps(branch, ensure_ascii=False)}"
    config = content_of(folder / CONFIG)
    by, cls = library(folder), _diffusers_class(config)
    if by == SENTENCES:
        return _lines(_SENTENCES, f"model = SentenceTransformer({source})")
    if by == DIFFUSERS:
        return _lines(f"from diffusers import {cls}", f"model = {cls}.from_pretrained({source})")
    if by is None:
        return _by_tensors(source, on_hub=on_hub)
    model = kind(folder)
    names = [model.loader]
    loads = [f"model = {model.loader}.from_pretrained({source}{model.options})"]
    if any((folder / file).exists() for file in TOKENIZERS):
        names.append("AutoTokenizer")
        loads.append(f"tokenizer = AutoTokenizer.from_pretrained({source})")
    return _lines(f"from transformers import {', '.join(names)}", *loads)


def _by_tensors(source: str, *, on_hub: bool) -> str:
    """Return how the tensors of a model are loaded that no library knows by its files."""
    imports = "from pathlib import Path\n\n"
    place = f"Path({source})"
    if on_hub:
        imports += "from huggingface_hub import snapshot_download\n"
        place = f"Path(snapshot_download({source}))"
    return _lines(
        f"{imports}from safetensors.torch import load_file",
        "tensors = {}",
        f'for file in {place}.glob("*.safetensors"):',
        "    tensors |= load_file(file)",
    )


def _lines(imports: str, *lines: str) -> str:
    return "\n".join([imports, "", *lines])


def _diffusers_class(config: Any) -> str | None:
    """Return the class of diffusers that a config names, if it can be one's name."""
    name = config.get("_class_name") if isinstance(config, dict) else None
    return name if isinstance(name, str) and name.isidentifier() and name.isascii() else None
