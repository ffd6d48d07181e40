"""What a measurement tells while it goes on: parts of the data, and then the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lines.evaluate import Metric, Settings, measure_all, parse_evaluators
from mergekit_lines.evaluate.partial import PrunedError
from tests.search.lm_tasks import write_task


@pytest.fixture(scope="module")
def model(llama_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama_base).eval()


@pytest.fixture(scope="module")
def tokenizer(llama_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(llama_base)


def listened(specs: list[str], model: Any, tokenizer: Any) -> tuple[list[Any], Any]:
    """What was told in between, and in the end."""
    parts: list[Mapping[str, Metric]] = []
    evaluators = parse_evaluators(specs, "validation", Settings(batch_size=1))
    whole = measure_all(evaluators, model, tokenizer, listener=lambda m: parts.append(dict(m)))
    return parts, whole


def test_a_perplexity_is_told_by_quarters(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    """Each is that of the longest texts so far; the whole is what it is without a listener."""
    texts = [" ".join(f"tok{10 + n + k}" for k in range(9 - n)) for n in range(8)]
    (tmp_path / "all.txt").write_text("\n\n".join(texts) + "\n")
    parts, whole = listened([f"perplexity:{tmp_path / 'all.txt'}"], model, tokenizer)
    for count, metrics in zip((2, 4, 6), parts, strict=True):
        part = tmp_path / f"{count}.txt"
        part.write_text("\n\n".join(texts[:count]) + "\n")  # the longest come first
        _, alone = listened([f"perplexity:{part}"], model, tokenizer)
        assert metrics["perplexity"].value == pytest.approx(alone["perplexity"].value, rel=1e-12)
    quiet = measure_all(
        parse_evaluators(
            [f"perplexity:{tmp_path / 'all.txt'}"], "validation", Settings(batch_size=1)
        ),
        model,
        tokenizer,
    )
    assert whole == quiet


def test_tasks_of_the_harness_are_told_one_by_one(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    """Each with its own metric, and at the end the same as all at once; evaluators likewise."""
    pytest.importorskip("lm_eval")
    for name, rows in {"one": ["tok5 tok6", "tok7"], "two": ["tok8", "tok9"]}.items():
        write_task(tmp_path, name, rows)
    (tmp_path / "text.txt").write_text("tok5 tok6\n")
    specs = [f"lm_eval:one,two?include_path={tmp_path}", f"perplexity:{tmp_path / 'text.txt'}"]
    parts, whole = listened(specs, model, tokenizer)
    assert [list(metrics) for metrics in parts] == [["one"], ["one", "two"]]
    quiet = measure_all(
        parse_evaluators(specs, "validation", Settings(batch_size=1)), model, tokenizer
    )
    assert whole.keys() == quiet.keys()
    assert all(math.isclose(whole[name].value, quiet[name].value) for name in whole)
    assert parts[1]["two"] == whole["two"]


def test_a_listener_ends_the_measurement(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    """What it raises passes through."""
    (tmp_path / "text.txt").write_text("tok5 tok6\n\ntok7\n")

    def enough(metrics: Mapping[str, Metric]) -> None:
        raise PrunedError("enough")

    specs = [f"perplexity:{tmp_path / 'text.txt'}"]
    evaluators = parse_evaluators(specs, "validation", Settings(batch_size=1))
    with pytest.raises(PrunedError, match="enough"):
        measure_all(evaluators, model, tokenizer, listener=enough)
