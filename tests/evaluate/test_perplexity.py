"""``perplexity:FILE`` against a plain loop over one document at a time."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mergekit_lines import LinesError
from tests import models
from tests.evaluate.conftest import one

DOCUMENTS = [
    "w1 w2 w3",
    "w9",
    "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17",
    "w100 w50\nw25 w12 w6 w3",
    " ".join(f"w{i * 7 % 120}" for i in range(50)),
]


def plain(model: Any, tokenizer: Any, document: str, length: int = 10**9) -> list[float]:
    """Return −log p of each token in float64, without padding or batches.

    Token ``place`` is predicted from those before it in its window: the tokens are parted in
    windows of ``length``, and the one before a window is its first context.
    """
    ids = [tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(document.split())]
    losses: list[float] = []
    while len(losses) < len(ids) - 1:
        seen = ids[len(losses) :][:length]
        with torch.no_grad():
            logits = model(torch.tensor([seen])).logits[0].double()
        for row in logits:
            place = len(losses) + 1
            if place < len(ids):
                losses.append(math.log(row.exp().sum().item()) - row[ids[place]].item())
    return losses


@pytest.mark.parametrize(("length", "batch"), [(None, None), (4, 1), (4, 3), (1, 64), (7, 2)])
def test_perplexity_is_that_of_a_plain_loop(
    here: Any, model: Any, tokenizer: Any, length: int | None, batch: int | None
) -> None:
    """Value and examples, whatever the batch size and the windows."""
    here("texts.txt", "\n\n".join(DOCUMENTS) + "\n")
    options = {"max_length": length, "batch_size": batch}
    given = "&".join(f"{key}={value}" for key, value in options.items() if value)
    found = one(f"perplexity:texts.txt{'?' if given else ''}{given}").measure(model, tokenizer)
    metric = found["perplexity"]
    losses = [plain(model, tokenizer, text, length or 10**9) for text in DOCUMENTS]
    every = [loss for each in losses for loss in each]
    assert metric.value == pytest.approx(math.exp(sum(every) / len(every)), rel=2e-6)
    assert metric.examples == pytest.approx([sum(each) / len(each) for each in losses], rel=2e-6)
    assert not metric.higher_is_better


def test_a_long_document_is_cut_by_default(here: Any, model: Any, tokenizer: Any) -> None:
    """The tiny model has 64 positions, the document 200 tokens: windows of 64."""
    document = " ".join(f"w{i * 11 % 120}" for i in range(200))
    here("texts.txt", document)
    metric = one("perplexity:texts.txt").measure(model, tokenizer)["perplexity"]
    losses = plain(model, tokenizer, document, 64)
    assert metric.value == pytest.approx(math.exp(sum(losses) / 200), rel=2e-6)


def test_json_lines_and_limit(here: Any, model: Any, tokenizer: Any) -> None:
    """The key is ``text``; the first ``limit`` documents count, in the settings or the spec."""
    here("texts.jsonl", "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in DOCUMENTS))
    here("three.txt", "\ufeff" + "\r\n \t\r\n".join(DOCUMENTS[:3]))
    want = one("perplexity:three.txt").measure(model, tokenizer)
    assert len(want["perplexity"].examples or ()) == 3
    assert want["perplexity"].origin == "three.txt"
    want = {"perplexity": replace(want["perplexity"], origin="texts.jsonl")}
    assert one("perplexity:texts.jsonl?limit=3").measure(model, tokenizer) == want
    assert one("perplexity:texts.jsonl", limit=3).measure(model, tokenizer) == want
    assert one("perplexity:texts.jsonl?limit=3", limit=1).measure(model, tokenizer) == want


def test_what_it_hangs_on_is_told(here: Any) -> None:
    """The file's digest, options, and each used document's digest."""
    path = here("texts.txt", "w1 w2\n\n w3 \n\nw4")
    evaluator = one("news=perplexity:texts.txt?limit=2", split="test")
    assert evaluator.identity() == {
        "spec": "news=perplexity:texts.txt?limit=2",
        "name": "news",
        "split": "test",
        "options": {"batch_size": 8, "max_length": None, "limit": 2},
        "data": {"texts.txt": hashlib.sha256(path.read_bytes()).hexdigest()},
        "code": {},
    }
    digests = {hashlib.sha256(text.encode()).hexdigest() for text in ("w1 w2", "w3")}
    assert evaluator.digests() == digests


def test_the_model_is_left_as_it_was(here: Any, sharp: Path, tokenizer: Any) -> None:
    """Training modes module by module, gradients' switch, and torch's generator."""
    here("texts.txt", "w1 w2 w3")
    model = AutoModelForCausalLM.from_pretrained(sharp).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    one("perplexity:texts.txt").measure(model, tokenizer)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_offloaded_model_is_measured_where_it_runs(
    here: Any, tmp_path: Path, sharp: Path, model: Any, tokenizer: Any
) -> None:
    """With all weights on disk, behind accelerate's hooks, the number is the same."""
    from accelerate import disk_offload

    here("texts.txt", "\n\n".join(DOCUMENTS))
    offloaded = AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.float32)
    disk_offload(offloaded, tmp_path / "offload", execution_device=torch.device("cpu"))
    assert offloaded.get_input_embeddings().weight.device.type == "meta"
    evaluator = one("perplexity:texts.txt")
    assert evaluator.measure(offloaded, tokenizer) == evaluator.measure(model, tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "qwen2", "gemma2", "gpt_neox"])
def test_other_architectures(here: Any, checkpoints: Path, tokenizer: Any, kind: str) -> None:
    """Padding at the right changes nothing: batches of one give the same."""
    here("texts.txt", "\n\n".join(DOCUMENTS))
    path = models.ARCHITECTURES[kind](checkpoints / f"perplexity_{kind}", seed=3)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    several, single = (
        one(f"perplexity:texts.txt?batch_size={size}").measure(model, tokenizer)["perplexity"]
        for size in (5, 1)
    )
    assert several.examples == pytest.approx(single.examples, rel=1e-5)
    losses = plain(model.eval(), tokenizer, DOCUMENTS[2])
    assert (single.examples or ())[2] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b" \n\n \t\n", "the file a.txt is empty, wanted documents: paragraphs"),
        ("a.txt", b"caf\xe9", "the file a.txt is not UTF-8 (byte 3). Save it as UTF-8."),
        ("a.jsonl", b'{"text": "a"}\n{"text":', "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", b'{"prompt": "a"}', "a.jsonl, line 1: wanted an object whose 'text' is a"),
        ("a.jsonl", b'["a"]', "a.jsonl, line 1: wanted an object whose 'text'"),
        ("a.jsonl", b'{"text": "  "}', "a.jsonl, line 1: wanted an object whose 'text'"),
    ],
)
def test_a_file_that_holds_no_documents(here: Any, name: str, content: bytes, text: str) -> None:
    """The error gives the file, the line, and what is wanted."""
    Path(name).write_bytes(content)
    with pytest.raises(LinesError) as caught:
        one(f"perplexity:{name}")
    assert text in caught.value.message


def test_a_file_that_is_not_there(here: Any) -> None:
    """So for a folder."""
    with pytest.raises(LinesError, match=r"the file a.txt cannot be read \(No such file"):
        one("perplexity:a.txt")
    Path("folder.txt").mkdir()
    with pytest.raises(LinesError, match=r"folder.txt cannot be read \(Is a directory\)"):
        one("perplexity:folder.txt")


def test_models_that_have_no_perplexity(here: Any, checkpoints: Path, tokenizer: Any) -> None:
    """A classifier is refused, and an encoder-decoder."""
    from transformers import AutoModelForSeq2SeqLM

    here("a.txt", "w1 w2")
    bert = models.bert_seqcls(checkpoints / "no_perplexity_bert")
    t5 = models.t5(checkpoints / "no_perplexity_t5")
    for model in (
        AutoModelForSequenceClassification.from_pretrained(bert),
        AutoModelForSeq2SeqLM.from_pretrained(t5),
    ):
        with pytest.raises(LinesError) as caught:
            one("perplexity:a.txt").measure(model, tokenizer)
        name = type(model).__name__
        assert f"perplexity:a.txt: {name} is no causal language model" in caught.value.message


def test_no_tokenizer(here: Any, model: Any) -> None:
    """The error says what works without one."""
    here("a.txt", "w1 w2")
    with pytest.raises(LinesError, match=r"perplexity:a.txt: the model has no tokenizer.*python:"):
        one("perplexity:a.txt").measure(model, None)


def test_windows_longer_than_the_model(here: Any, model: Any, tokenizer: Any) -> None:
    """A length beyond the model's positions is refused, not clipped."""
    here("a.txt", "w1 w2")
    with pytest.raises(LinesError, match=r"max_length is 65, and the model has 64 positions"):
        one("perplexity:a.txt?max_length=65").measure(model, tokenizer)


def test_a_tokenizer_of_another_model(here: Any, tmp_path: Path, model: Any) -> None:
    """A token without an embedding is named before torch raises an IndexError."""
    here("a.txt", "w1 w140")
    models.save_tokenizer(tmp_path / "wide", vocab=150)
    with pytest.raises(LinesError, match=r"gives the token id 144, and the model has 128"):
        one("perplexity:a.txt").measure(model, AutoTokenizer.from_pretrained(tmp_path / "wide"))


def test_broken_weights_are_not_a_number(here: Any, sharp: Path, tokenizer: Any) -> None:
    """NaN weights end in an error that names evaluator and metric."""
    here("a.txt", "w1 w2")
    model = AutoModelForCausalLM.from_pretrained(sharp)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(
        LinesError, match=r"perplexity:a.txt: the metric perplexity has the score nan"
    ):
        one("perplexity:a.txt").measure(model, tokenizer)
