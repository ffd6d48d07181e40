"""The output's tokenizer: tokens in the order of their ids, rows counted, losses named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.errors import LinesError
from mergekit_lines.host.state import fresh_caches
from mergekit_lines.plan.tokenizer import (
    OrderedTokenizer,
    check_tokenizers,
    lost_tokens,
    vocabulary,
)
from tests import models
from tests.plan.preparing import configuration, prepared

ADDED = ("zebra", "apple", "mango")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of 128 tokens, and a model with three more, not in the order of letters."""
    folder = tmp_path_factory.mktemp("tokenizers")
    base = models.llama(folder / "base", layers=1, seed=1)
    return base, models.llama(folder / "tuned", layers=1, seed=2, vocab=131, tokens=ADDED)


def ordered(
    pair: tuple[Path, Path], source: str, **more: Any
) -> tuple[MergeConfiguration, OrderedTokenizer]:
    config = configuration(*pair, tokenizer={"source": source, **more})
    with prepared(config) as plan:
        assert plan.tokenizer is not None
        plan.tokenizer.execute()
    return config, plan.tokenizer


def test_a_union_counts_on_in_the_order_of_ids(pair: tuple[Path, Path]) -> None:
    """The base's 128 tokens keep their ids; those that a model adds follow by its own ids."""
    _, tokenizer = ordered(pair, "union")
    ids = tokenizer.execute().tokenizer.get_vocab()
    assert [ids[token] for token in ADDED] == [128, 129, 130]
    assert [ids[f"w{number}"] for number in range(124)] == list(range(4, 128))
    assert list(lost_tokens(tokenizer)) == []


def test_what_the_bases_tokenizer_loses_is_named(pair: tuple[Path, Path]) -> None:
    """The tokens that only the model had are told by name."""
    _, tokenizer = ordered(pair, "base")
    (said,) = lost_tokens(tokenizer)
    assert said.startswith(f"tokenizer: 3 tokens of {pair[1]} are not in the output's")
    assert all(token in said for token in ADDED)


@pytest.mark.parametrize(
    ("source", "padding", "rows"),
    [("base", None, 128), ("union", None, 131), ("union", 64, 192), ("base", 64, 128)],
)
def test_rows(pair: tuple[Path, Path], source: str, padding: int | None, rows: int) -> None:
    """The embeddings have a row per token, filled up to the multiple that the recipe names."""
    more = {} if padding is None else {"pad_to_multiple_of": padding}
    assert vocabulary(*ordered(pair, source, **more)) == rows


def test_no_tokenizer_aligns_nothing(pair: tuple[Path, Path]) -> None:
    """Without `tokenizer` in the recipe rows are the base's, and no token is lost."""
    assert vocabulary(configuration(*pair), None) is None
    assert list(lost_tokens(None)) == []


def test_digests_tell_tokenizers_apart(pair: tuple[Path, Path]) -> None:
    """The same recipe gives the same digest, another source another."""
    digests = [ordered(pair, source)[1].digest() for source in ("union", "union", "base")]
    assert digests[0] == digests[1] != digests[2]


def test_a_tokenizer_that_does_not_load(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A broken tokenizer of one model is refused by that model's name, with the way out."""
    tuned = models.finetuned(pair[0], tmp_path / "tuned", seed=3)
    (tuned / "tokenizer.json").write_text("{")
    config = configuration(pair[0], tuned, tokenizer={"source": "union"})
    with fresh_caches(), prepared(config) as plan, pytest.raises(LinesError) as caught:
        check_tokenizers(config, MergeOptions(), plan.tokenizer)
    assert str(tuned) in str(caught.value)
    assert "Leave `tokenizer` out of the recipe" in str(caught.value)
