"""mergekit's output tokenizer, built once and the same in every process.

mergekit walks vocabularies in the order of a Rust hash map, which differs from process to
process, so `tokenizer: union` numbers new tokens differently each time. Here the walk is
in the order of the token ids, and of the models in the recipe.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from mergekit.tokenizer.build import BuildTokenizer, TokenizerInfo
from pydantic import PrivateAttr
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.files import holds_tokenizer
from mergekit_lines.recipe.models import carried, models_in_order

_LOCK = threading.RLock()


class OrderedTokenizer(BuildTokenizer):
    """mergekit's task with ordered vocabularies; calibration and merge share its result."""

    _built: TokenizerInfo | None = PrivateAttr(default=None)

    def execute(self, **_kwargs: Any) -> TokenizerInfo:
        """Return the output tokenizer and each model's token moves."""
        if self._built is None:
            with _ordered_vocabularies():
                self._built = super().execute()
        return self._built

    def digest(self) -> str:
        """Return a SHA-256 of the output's tokens and of where each model has them."""
        built = self.execute()
        tokens = sorted(built.tokenizer.get_vocab().items())
        places = {str(model): sorted(moves.items()) for model, moves in built.permutations.items()}
        return hashlib.sha256(json.dumps([tokens, places]).encode()).hexdigest()


@contextmanager
def _ordered_vocabularies() -> Iterator[None]:
    tokenizer: Any = PreTrainedTokenizerFast
    get_vocab, added = tokenizer.get_vocab, tokenizer.added_tokens_decoder

    def ordered_vocab(self: Any) -> dict[str, int]:
        return dict(sorted(get_vocab(self).items(), key=lambda item: (item[1], item[0])))

    def ordered_added(self: Any) -> dict[int, Any]:
        return dict(sorted(added.fget(self).items()))

    with _LOCK:
        tokenizer.get_vocab = ordered_vocab
        tokenizer.added_tokens_decoder = property(ordered_added)
        try:
            yield
        finally:
            tokenizer.get_vocab = get_vocab
            tokenizer.added_tokens_decoder = added


def check_tokenizers(
    config: MergeConfiguration,
    options: MergeOptions,
    tokenizer: OrderedTokenizer | None,
    adapter: Path | None = None,
) -> None:
    """Build the output tokenizer now, or see that the carried one can be copied.

    Args:
        config: the recipe.
        options: mergekit's flags.
        tokenizer: the task that builds the output's, where the recipe says `tokenizer`.
        adapter: see :func:`donor_folders`.

    Raises:
        LinesError: it cannot be built, loaded or copied.
    """
    if tokenizer is not None:
        _build_tokenizer(tokenizer)
        return
    folder = donor_folders(config, adapter)[0]
    copied = (folder / "tokenizer_config.json").exists() and any(
        (folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")
    )
    if options.copy_tokenizer and (config.chat_template or not copied):
        # mergekit loads and saves it; a failure there is only logged, and no tokenizer written.
        models = (carried(config), models_in_order(config)[0])
        of_folder = ModelReference(model=ModelPath(path=str(folder)))
        model = next((model for model in models if own_folder(model) == folder), of_folder)
        _load_tokenizer(model, options, "Give --no-copy-tokenizer to merge without it")


def donor_folders(config: MergeConfiguration, adapter: Path | None = None) -> list[Path]:
    """Return where the files that OUT carries are, those with its tokenizer first.

    That is the folder of the adapter that is edited, where it was saved with a tokenizer, the
    edited model's, and the base's; of a merge of several the base's alone.

    Args:
        config: the recipe, whose models' loaders are open.
        adapter: the carried model's adapter, where it has been downloaded.
    """
    model = carried(config)
    folders = [own_folder(model), own_folder(models_in_order(config)[0])]
    if adapter is None and model.lora is not None and Path(model.lora.path).is_dir():
        adapter = Path(model.lora.path)
    folders = list(dict.fromkeys([*([adapter] if adapter else []), *folders]))
    return sorted(folders, key=lambda folder: not holds_tokenizer(folder))


def own_folder(model: ModelReference) -> Path:
    """Return a model's own folder, without what an adapter makes of it.

    A model that is one file has none: what lies beside it is not of it.
    """
    if Path(model.model.path).is_file():
        return Path(model.model.path)
    plain = LoaderCache().loaders.get(ModelReference(model=model.model))
    return Path((plain or LoaderCache().get(model)).index.base_path)


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


def lost_tokens(tokenizer: OrderedTokenizer | None) -> Iterator[str]:
    """Yield which models' tokens the output's tokenizer lacks; nothing where it is the base's."""
    if tokenizer is None:
        return
    output = tokenizer.execute()
    kept = output.tokenizer.get_vocab().keys()
    for model, tokens in output.original_vocabs.items():
        lost = sorted(tokens.keys() - kept)
        if lost:
            yield (
                f"tokenizer: {len(lost)} tokens of {model} are not in the output's, and what it "
                f"learnt of them is lost: {some(lost, 3)}. `tokenizer: {{source: union}}` keeps "
                f"them"
            )


def differing_vocabularies(config: MergeConfiguration, options: MergeOptions) -> Iterator[str]:
    """Yield which models number tokens otherwise than the base; nothing where they are aligned.

    A model without a tokenizer of its own has the base's.
    """
    if config.tokenizer is not None or config.tokenizer_source is not None:
        return
    base, *models = models_in_order(config)
    try:
        expected = _tokens(base, options)
    except LinesError as error:
        yield str(error.problems[0])
        return
    for model in models if expected else ():
        try:
            own = _tokens(model, options)
        except LinesError as error:  # the merge does not need it
            yield str(error.problems[0])
            continue
        moved = sorted(token for token, place in own.items() if expected.get(token, place) != place)
        lacking = sorted(expected.keys() - own.keys()) if own else []
        if moved or lacking:
            yield (
                f"{model}: its tokenizer numbers {len(moved)} tokens otherwise than the base's and "
                f"lacks {len(lacking)} ({some([*moved, *lacking], 3)}): rows of the embeddings "
                f"then mean other tokens. Write `tokenizer: {{source: union}}` to align them, or "
                f"check that the model descends from this base"
            )


def _tokens(model: ModelReference, options: MergeOptions) -> dict[str, int]:
    """Return the tokens of a model's own tokenizer by text; none where it has no whole one.

    Raises:
        LinesError: it cannot be loaded.
    """
    folder = own_folder(model)
    if not holds_tokenizer(folder):
        return {}
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except Exception as error:
        raise LinesError(
            f"tokenizer: the one of model {model} cannot be loaded ({reason(error)}), so that its "
            f"tokens were not compared. Save it there again"
        ) from error
    tokens: dict[str, int] = loaded.get_vocab()
    return tokens


def vocabulary(config: MergeConfiguration, tokenizer: OrderedTokenizer | None) -> int | None:
    """Return the number of rows of the output's embeddings, where they are aligned."""
    if tokenizer is None:
        return None
    size = len(tokenizer.execute().tokenizer.get_vocab())
    multiple = (config.tokenizer.pad_to_multiple_of if config.tokenizer else None) or 1
    return -(-size // multiple) * multiple
