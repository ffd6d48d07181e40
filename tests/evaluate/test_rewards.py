"""``rewards:module:function``: texts against generation one prompt at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Settings, measure_all, parse_evaluators
from mergekit_lines.evaluate.rewards import Rewards
from tests import models
from tests.evaluate.conftest import one

PROMPTS = ["w1 w2 w3", "w9", "w5 w6 w7 w8 w9 w10 w11", "w100 w50", "w1 w2 w3"]
MODULE = """
CALLS = []

def length(prompts, completions):
    CALLS.append((prompts, completions))
    return [len(text.split()) for text in completions]

def rare(prompts, completions):
    words = [text.split() for text in completions]
    return [sum(int(word[1:]) > 60 for word in each if word[0] == "w") / 8 for each in words]
"""


def greedy(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """Take the largest logit, one token at a time, without a cache; stop at the end token."""
    ids = tokenizer.convert_tokens_to_ids(prompt.split())
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    kept = [i for i in ids[start:] if i not in tokenizer.all_special_ids]
    return " ".join(tokenizer.convert_ids_to_tokens(kept))


def texts(evaluator: Any, model: Any, tokenizer: Any) -> list[str]:
    evaluator.measure(model, tokenizer)
    return evaluator.texts[1]


@pytest.fixture
def prompts(here: Any) -> Path:
    here("mine.py", MODULE)
    return here("prompts.txt", "\n".join(PROMPTS) + "\n\n")


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_texts_are_the_most_likely_ones(
    prompts: Path, model: Any, tokenizer: Any, batch: int
) -> None:
    """In any batch; scores, their order and the mean are the function's, computed by hand."""
    spec = f"rewards:mine:length?prompts=prompts.txt&max_new_tokens=8&batch_size={batch}"
    evaluator = one(spec)
    assert isinstance(evaluator, Rewards)
    metric = evaluator.measure(model, tokenizer)["length"]
    want = [greedy(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert len(set(want)) == 4  # the oracle's texts differ where the prompts do
    assert evaluator.texts == (PROMPTS, want)
    lengths = [float(len(text.split())) for text in want]
    assert metric.examples == tuple(lengths)
    assert metric.value == sum(lengths) / 5
    assert metric.higher_is_better


def test_a_text_ends_at_the_end_token(prompts: Path, sharp: Path, tokenizer: Any) -> None:
    """What follows it in a batch is padding, and not text."""
    model = AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.float32).eval()
    word = tokenizer.convert_tokens_to_ids(greedy(model, tokenizer, PROMPTS[0], 3).split()[2])
    model.generation_config.eos_token_id = [2, word]
    model.generation_config.pad_token_id = None
    found = texts(one("rewards:mine:length", prompts=prompts), model, tokenizer)
    assert found[0] == " ".join(greedy(model, tokenizer, PROMPTS[0], 3).split()[:2])


def test_samples_hang_on_seed_and_prompt_and_not_on_the_batch(
    prompts: Path, model: Any, tokenizer: Any
) -> None:
    """The same seed gives the same texts in any batch; another seed gives others."""
    spec = "rewards:mine:length?do_sample=true&temperature=8&max_new_tokens=6"
    found = [
        texts(one(f"{spec}&batch_size={size}", prompts=prompts), model, tokenizer)
        for size in (1, 2, 5)
    ]
    assert found[0] == found[1] == found[2]
    assert texts(one(f"{spec}&seed=1", prompts=prompts), model, tokenizer) != found[0]
    assert found[0][0] != found[0][4]  # one prompt twice: two draws
    assert texts(one(f"{spec}&limit=2", prompts=prompts), model, tokenizer) == found[0][:2]


def test_samples_follow_the_softmax(here: Any, model: Any, tokenizer: Any) -> None:
    """Of 3000 draws, each of the likely words is drawn as often as its probability says."""
    count, temperature = 3000, 10.0
    here("mine.py", MODULE)
    here("prompts.txt", "w1 w2\n" * count)
    spec = "rewards:mine:length?prompts=prompts.txt&do_sample=true&max_new_tokens=1"
    drawn = texts(one(f"{spec}&temperature={temperature}&batch_size=500"), model, tokenizer)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(["w1", "w2"])])
        chances = torch.softmax(model(ids).logits[0, -1].double() / temperature, dim=0)
    top = chances.topk(5)
    assert top.values[0] < 0.9  # not one word alone
    for chance, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        share = drawn.count(tokenizer.convert_ids_to_tokens(token)) / count
        assert abs(share - chance) < 5 * (chance * (1 - chance) / count) ** 0.5


def test_the_global_generator_is_left_alone(prompts: Path, model: Any, tokenizer: Any) -> None:
    """Sampling draws nothing from it, and its state is what it was."""
    state = torch.get_rng_state()
    spec = "rewards:mine:length?do_sample=true&max_new_tokens=2"
    first = texts(one(spec, prompts=prompts), model, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert texts(one(spec, prompts=prompts), model, tokenizer) == first


def test_two_rewards_share_one_generation(
    prompts: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one call, with equal prompts and options; another option generates anew."""
    calls = []
    generate = type(model).generate

    def counted(self: Any, *arguments: Any, **words: Any) -> Any:
        calls.append(words["generation_config"].max_new_tokens)
        return generate(self, *arguments, **words)

    monkeypatch.setattr(type(model), "generate", counted)
    specs = ["rewards:mine:length", "rewards:mine:rare", "x=rewards:mine:rare?max_new_tokens=5"]
    settings = Settings(prompts=prompts, max_new_tokens=8)
    evaluators = parse_evaluators(specs, "test", settings)
    found = measure_all(evaluators, model, tokenizer)
    assert calls == [8, 5]
    assert list(found) == ["length", "rare", "x"]
    want = [greedy(model, tokenizer, prompt, 8).split() for prompt in PROMPTS]
    rare = [sum(int(w[1:]) > 60 for w in each if w[0] == "w") / 8 for each in want]
    assert found["rare"].examples == tuple(rare)
    measure_all(evaluators[:1], model, tokenizer)
    assert calls == [8, 5, 8]  # the next point's weights are others


def test_a_chat_template(prompts: Path, model: Any, sharp: Path) -> None:
    """Each prompt is the user's message, and the template alone puts special tokens in."""
    tokenizer = AutoTokenizer.from_pretrained(sharp)
    spec = "rewards:mine:length?chat=true&max_new_tokens=4"
    with pytest.raises(LinesError, match=r"has no chat template. Leave chat=true out, or give"):
        one(spec, prompts=prompts).measure(model, tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}w70 {{ m.content }} w71{% endfor %}"
        "{% if add_generation_prompt %} w72{% endif %}"
    )
    found = texts(one(spec, prompts=prompts), model, tokenizer)
    assert found == [greedy(model, tokenizer, f"w70 {p} w71 w72", 4) for p in PROMPTS]
    tokenizer.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(LinesError, match=r"chat template failed on the prompt 'w1 w2 w3'"):
        one(spec, prompts=prompts).measure(model, tokenizer)


def test_an_encoder_decoder_generates_too(prompts: Path, checkpoints: Path, tokenizer: Any) -> None:
    """Its completion is the decoder's whole output."""
    path = models.t5(checkpoints / "rewards_t5", seed=4, decoder_layers=3)
    model = AutoModelForSeq2SeqLM.from_pretrained(path)
    several, single = (
        texts(one(f"rewards:mine:length?batch_size={n}", prompts=prompts), model, tokenizer)
        for n in (5, 1)
    )
    assert several == single
    assert len(several) == 5


def test_json_lines_of_prompts(here: Any, model: Any, tokenizer: Any) -> None:
    """The key is ``prompt``; a prompt may have several lines."""
    here("mine.py", MODULE)
    here("prompts.jsonl", '{"prompt": "w1\\nw2", "id": 3}\n')
    evaluator = one("rewards:mine:length?prompts=prompts.jsonl&max_new_tokens=3")
    assert texts(evaluator, model, tokenizer) == [greedy(model, tokenizer, "w1 w2", 3)]


def test_what_it_hangs_on_is_told(prompts: Path) -> None:
    """Options as they hold, the digests of prompts and of the function's file."""
    spec = "brief=rewards:mine:length?limit=2&do_sample=true"
    evaluator = one(spec, prompts=Path("prompts.txt"), seed=5, batch_size=4)
    assert evaluator.identity() == {
        "spec": spec,
        "name": "brief",
        "split": "validation",
        "options": {
            "max_new_tokens": 32,
            "batch_size": 4,
            "temperature": 1.0,
            "seed": 5,
            "chat": False,
            "limit": 2,
        },
        "data": {"prompts.txt": hashlib.sha256(prompts.read_bytes()).hexdigest()},
        "code": {"mine.py": hashlib.sha256(Path("mine.py").read_bytes()).hexdigest()},
    }
    want = {hashlib.sha256(text.encode()).hexdigest() for text in PROMPTS[:2]}
    assert evaluator.digests() == want


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("[1.0]", "the function returned list of 1 numbers ([1.0]), wanted a list of 5 numbers"),
        ("None", "the function returned NoneType (None), wanted a list of 5 numbers: one for each"),
        ("0.5", "the function returned float (0.5), wanted a list of 5 numbers"),
        ("['1'] * 5", "the function returned list (['1',"),
        ("[0, 0, float('nan'), 0, 0]", "the metric f has the score nan for example 3 of 5"),
        ("1 / 0", "the function raised ZeroDivisionError: division by zero at "),
    ],
)
def test_rewards_that_are_no_numbers(
    prompts: Path, here: Any, model: Any, tokenizer: Any, body: str, text: str
) -> None:
    """One finite number for each prompt, or an error that shows what came."""
    here("bad.py", f"def f(prompts, completions): return {body}\n")
    with pytest.raises(LinesError) as caught:
        one("rewards:bad:f?max_new_tokens=1", prompts=prompts).measure(model, tokenizer)
    assert text in caught.value.message


def test_a_function_cannot_change_what_another_sees(
    prompts: Path, here: Any, model: Any, tokenizer: Any
) -> None:
    """Both get lists of their own."""
    here("bad.py", "def f(p, c):\n    p.clear(); c[:] = ['x'] * 5\n    return [0] * 5\n")
    specs = ["rewards:bad:f", "rewards:mine:length"]
    evaluators = parse_evaluators(specs, "test", Settings(prompts=prompts, max_new_tokens=8))
    found = measure_all(evaluators, model, tokenizer)
    want = [float(len(greedy(model, tokenizer, p, 8).split())) for p in PROMPTS]
    assert found["length"].examples == tuple(want)


def test_what_is_missing(prompts: Path, here: Any, model: Any, checkpoints: Path) -> None:
    """Prompts, a tokenizer, a model that generates, room for the text."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    with pytest.raises(LinesError, match=r"there are no prompts. Write \?prompts=FILE behind"):
        one("rewards:mine:length")
    with pytest.raises(LinesError, match=r"temperature is of sampling only. Add do_sample=true"):
        one("rewards:mine:length?temperature=2", prompts=prompts)
    here("empty.txt", "\n\n")
    with pytest.raises(LinesError, match=r"the file empty.txt is empty, wanted prompts: one on"):
        one("rewards:mine:length?prompts=empty.txt")
    with pytest.raises(LinesError, match=r"the model has no tokenizer, and this evaluator works"):
        one("rewards:mine:length", prompts=prompts).measure(model, None)
    bert = AutoModelForSequenceClassification.from_pretrained(
        models.bert_seqcls(checkpoints / "rewards_bert")
    )
    with pytest.raises(LinesError, match=r"BertForSequenceClassification cannot generate text"):
        one("rewards:mine:length", prompts=prompts).measure(bert, tokenizer)
    with pytest.raises(LinesError, match=r"prompt 1 .* has 3 tokens, and with max_new_tokens 62"):
        one("rewards:mine:length?max_new_tokens=62", prompts=prompts).measure(model, tokenizer)
