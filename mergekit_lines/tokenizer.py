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
from typing import Any

from mergekit.tokenizer.build import BuildTokenizer, TokenizerInfo
from pydantic import PrivateAttr
from transformers import PreTrainedTokenizerFast

_LOCK = threading.RLock()


class OrderedTokenizer(BuildTokenizer):
    """mergekit's task with ordered vocabularies; calibration and merge share its result."""

    _built: TokenizerInfo | None = PrivateAttr(default=None)

    def execute(self, **_kwargs: Any) -> TokenizerInfo:
        """Return the output tokenizer and each model's token permutation."""
        if self._built is None:
            with _ordered_vocabularies():
                self._built = super().execute()
        return self._built

    def digest(self) -> str:
        """Return a SHA-256 of the output's tokens and of where each model has them."""
        built = self.execute()
        tokens = sorted(built.tokenizer.get_vocab().items())
        places = {str(model): sorted(found.items()) for model, found in built.permutations.items()}
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
