"""The output's tokenizer, built or loaded before anything is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers import AutoTokenizer

from mergekit_lines.errors import LinesError, reason
from mergekit_lines.plan.run import MergeRun
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.tokenizer import OrderedTokenizer


def check_tokenizers(config: MergeConfiguration, options: MergeOptions, run: MergeRun) -> None:
    """Build the output tokenizer now, or see that the base's can be copied."""
    if run.tokenizer is not None:
        _build_tokenizer(run.tokenizer)
        return
    folder = Path(LoaderCache().get(models_in_order(config)[0]).index.base_path)
    copied = (folder / "tokenizer_config.json").exists() and any(
        (folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")
    )
    if options.copy_tokenizer and (config.chat_template or not copied):
        # mergekit loads and saves it; a failure there is only logged, and no tokenizer written.
        model = models_in_order(config)[0]
        _load_tokenizer(model, options, "Give --no-copy-tokenizer to merge without it")


def _load_tokenizer(model: ModelReference, options: Any, remedy: str) -> None:
    try:
        AutoTokenizer.from_pretrained(
            model.model.path,
            revision=model.model.revision,
            trust_remote_code=options.trust_remote_code,
        )
    except Exception as error:
        raise LinesError(
            f"tokenizer: found none that loads in model {model} ({reason(error)}), wanted a whole "
            f"one. {remedy}, or save it there again."
        ) from error


def _build_tokenizer(tokenizer: OrderedTokenizer) -> None:
    # mergekit takes a model's tokenizer that it cannot load for the same as the base's.
    for model in tokenizer.referenced_models:
        _load_tokenizer(model, tokenizer, "Leave `tokenizer` out of the recipe")
    try:
        tokenizer.execute()
    except Exception as error:
        raise LinesError(
            f"tokenizer.source {tokenizer.tokenizer_source}: the output tokenizer cannot be built "
            f"({reason(error)}). Check the source, or leave `tokenizer` out."
        ) from error


def vocabulary(config: MergeConfiguration, run: MergeRun) -> int | None:
    """Return the number of rows of the output's embeddings, where they are aligned."""
    if run.tokenizer is None:
        return None
    size = len(run.tokenizer.execute().tokenizer.get_vocab())
    multiple = (config.tokenizer.pad_to_multiple_of if config.tokenizer else None) or 1
    return -(-size // multiple) * multiple
