"""Tokens that an output lacks are named, and the advice keeps them."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process

ADDED = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of 128 tokens, and a model with two more."""
    folder = tmp_path_factory.mktemp("tokens")
    base = models.llama(folder / "base", seed=1)
    return base, models.llama(folder / "tuned", seed=2, vocab=130, tokens=ADDED)


def recipe(base: Path, tuned: Path, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.5},
        **more,
    }


def test_the_advice_keeps_every_token(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The refusal of other vocabulary sizes advises `union`, with which the tokens are there."""
    with pytest.raises(LinesError, match=r"tokenizer: \{source: union\}"):
        in_process(recipe(*pair), tmp_path / "refused")
    in_process(recipe(*pair, tokenizer={"source": "union"}), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert all(tokenizer.convert_tokens_to_ids(token) >= 128 for token in ADDED)


def test_lost_tokens_are_told(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the base's tokenizer the merge names the tokens that only the model had."""
    in_process(recipe(*pair, tokenizer={"source": "base"}), tmp_path / "out", quiet=False)
    said = capsys.readouterr().err
    assert f"2 tokens of {pair[1]} are not in the output's" in said
    assert all(token in said for token in ADDED)


def test_trimmed_rows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the embedding beyond the last token go, and the merge says so."""
    base = models.llama(tmp_path / "base", seed=1, vocab=136, tokenizer=False)
    models.save_tokenizer(base, vocab=128)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=2)
    in_process(recipe(base, tuned, tokenizer={"source": "base"}), tmp_path / "out", quiet=False)
    said = capsys.readouterr().err
    assert "model.embed_tokens.weight: has 136 rows in the base and 128 in the output" in said
