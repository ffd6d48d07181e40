"""Learning by logits of a function of the user's own: what it is called with, and what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from PIL import Image

from mergekit_lines import LinesError, learn
from mergekit_lines.cli import main
from mergekit_lines.search.learning.examples import parted, read_examples
from tests import models
from tests.e2e import runner
from tests.search.formula import by_formula

# What a user writes: a class for each label, the nearest one's; tasks of three and of two labels.
MODULE = """
import torch

LABELS = {"one": torch.eye(32)[:3], "two": torch.eye(32)[3:5]}

def tokens(tokenizer, rows):
    texts = [row["text"] for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    return {key: batch[key] for key in ("input_ids", "attention_mask")}

def nearest(model, tokenizer, rows):
    batch = tokens(tokenizer, rows)
    mask = batch["attention_mask"][..., None]
    means = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    logits = means.new_full((len(rows), 3), -torch.inf)
    for number, row in enumerate(rows):
        labels = LABELS[row["task"]]
        logits[number, : len(labels)] = labels @ means[number]
    return logits

def own(model, tokenizer, rows):
    return model(**tokens(tokenizer, rows)).logits

def of_images(model, tokenizer, rows, processor):
    from PIL import Image
    images = [Image.open(row["image"]) for row in rows]
    return model(**processor(images=images, return_tensors="pt")).logits

def listed(model, tokenizer, rows):
    return own(model, tokenizer, rows).tolist()

def flat(model, tokenizer, rows):
    return own(model, tokenizer, rows).flatten()

def whole_numbers(model, tokenizer, rows):
    return own(model, tokenizer, rows).long()

def few(model, tokenizer, rows):
    return own(model, tokenizer, rows)[:, :2]

def detached(model, tokenizer, rows):
    return own(model, tokenizer, rows).detach()

def broken(model, tokenizer, rows):
    return rows[0]["no such column"]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the functions and texts of three classes in it."""
    monkeypatch.delitem(sys.modules, "scored", raising=False)  # another test's, of that name
    (tmp_path / "scored.py").write_text(MODULE)
    draws = np.random.default_rng(3)
    rows = [
        {"text": " ".join(f"w{n}" for n in draws.integers(0, 90, 6)), "label": number % 3}
        for number in range(24)
    ]
    write(tmp_path / "texts.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def recipe_of(base: Path) -> dict[str, Any]:
    tuned = [models.finetuned(base, base.parent / f"t{n}", seed=n, scale=0.5) for n in (1, 2)]
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": 0.2, "beta": 0.3},
    }


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of two classifiers of texts, of three classes."""
    folder = tmp_path_factory.mktemp("classifiers")
    return recipe_of(models.bert_seqcls(folder / "base", layers=3, labels=3))


def short(recipe: dict[str, Any], data: str = "texts.jsonl", **options: Any) -> Any:
    """Learn in few steps."""
    words = {"steps": 4, "batch_size": 6, "learning_rate": 0.1, "objective": "loss", "out": "out"}
    return learn(recipe, data, **{**words, "quiet": True, "num_threads": 1, **options})


def test_encoders_learn_by_the_nearest_label(place: Path) -> None:
    """Two tasks of unlike many labels: the held-out numbers are those of mergekit-yaml's files.

    By the formula each row counts its own task's labels alone; the loss falls.
    """
    config = models.bert_config(layers=3)
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(place / "base")
    models.save_tokenizer(place / "base")
    draws = np.random.default_rng(4)
    counts = {"one": 3, "two": 2}
    rows = []
    for number in range(32):
        task = ("one", "two")[number % 2]
        words = draws.integers(0, 90, draws.integers(3, 8))
        text = " ".join(f"w{word}" for word in words)
        rows.append({"text": text, "task": task, "label": int(draws.integers(counts[task]))})
    write(place / "rows.jsonl", rows)
    learned = short(recipe_of(place / "base"), "rows.jsonl", logits="python:scored:nearest")
    assert (learned.unit, learned.measured) == ("example", (24, 8))
    start = getattr(learned, learned.start)
    assert learned.learned.training["loss"] < start.training["loss"]
    runner.run(["mergekit-yaml", "out/learned.yml", "merged"], place).succeeded()
    model = transformers.AutoModel.from_pretrained(place / "merged", add_pooling_layer=False)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place / "merged")

    def logits(row: dict[str, Any]) -> Any:
        with torch.no_grad():
            ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
            mean = model.eval()(ids).last_hidden_state[0].double().mean(0)
        return mean[:3] if row["task"] == "one" else mean[3:5]

    parts = parted(read_examples(Path("rows.jsonl"), None), 0.25, 0)
    held_out = [(dict(one.row), one.label) for one in parts.held_out]
    assert {row["task"] for row, _ in held_out} == {"one", "two"}
    assert learned.learned.held_out == pytest.approx(by_formula(logits, held_out), rel=1e-5)


def test_a_classifier_s_own_logits_teach_the_same(classifiers: dict[str, Any], place: Path) -> None:
    """By a function that returns them, coefficients and numbers are those without one."""
    without = short(classifiers)
    learned = short(classifiers, logits="python:scored:own", out="other")
    numbers = without.learned.coefficients.numbers
    assert learned.learned.coefficients.numbers == pytest.approx(numbers, abs=1e-4)
    assert learned.learned.held_out == pytest.approx(without.learned.held_out, rel=1e-4)
    assert learned.steps == pytest.approx(without.steps, rel=1e-4)


def test_a_function_of_images_has_the_processor(place: Path) -> None:
    """A row has the image's file; labels are the folders' numbers."""
    base = models.vit(place / "base", layers=2, labels=2)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(base)
    draws = np.random.default_rng(1)
    for number in range(8):
        path = place / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    recipe = recipe_of(base)
    without = short(recipe, "images", batch_size=3)
    learned = short(recipe, "images", batch_size=3, logits="python:scored:of_images", out="other")
    assert learned.own.held_out == pytest.approx(without.own.held_out, rel=1e-5)
    assert learned.steps == pytest.approx(without.steps, rel=1e-4)


def test_the_command_takes_a_function(classifiers: dict[str, Any], place: Path) -> None:
    """Labels may be numerals of CSV; in the same folder another one, or none, is another search."""
    (place / "recipe.yml").write_text(yaml.safe_dump(classifiers))
    rows = [json.loads(line) for line in (place / "texts.jsonl").read_text().splitlines()]
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in rows)]
    (place / "texts.csv").write_text("\n".join(lines))
    words = "learn recipe.yml --data texts.csv --objective loss --out out --steps 1 --num-threads 1"
    done = CliRunner().invoke(main, [*words.split(), "--logits", "python:scored:own"])
    assert done.exit_code == 0, done.output
    assert "nats per example, on 18 examples" in done.output
    for other in (["--logits", "python:scored:few"], []):
        again = CliRunner().invoke(main, [*words.split(), *other])
        assert again.exit_code == 1
        assert "another search: the logits differ" in again.output


def test_one_text_may_be_in_two_tasks(classifiers: dict[str, Any], place: Path) -> None:
    """What else stands in a row tells it from another; the same row has one label."""
    rows = [{"text": "w1 w2", "label": n, "task": f"task {n}"} for n in range(3)]
    write(place / "twice.jsonl", [*rows, rows[0]])
    examples = read_examples(Path("twice.jsonl"), None, whole=True)
    parts = parted(examples, 0.25, 0)
    assert (len(parts.training), len(parts.held_out), parts.repeated) == (2, 1, 1)
    assert parted(read_examples(Path("texts.jsonl"), None, whole=True), 0.25, 0).repeated == 0
    write(place / "twice.jsonl", [*rows, {**rows[0], "label": 2}])
    with pytest.raises(LinesError, match=r"line 1 and .*line 4 hold the same text, and their lab"):
        short(classifiers, "twice.jsonl", logits="python:scored:own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("listed", r"--logits python:scored:listed: found list, wanted logits of floats, \[6, cl"),
        ("flat", r"flat: found torch\.float32 of shape \[18\], wanted logits of floats, \[6, cl"),
        ("whole_numbers", r"found torch\.int64 of shape \[6, 3\], wanted logits of floats"),
        ("few", r"few: found 2 columns, and the label 2, wanted a column for every label"),
        ("detached", r"detached: found logits without a gradient by the model's weights"),
        ("broken", r"broken: the function raised .*no such column.* at .*scored\.py, line \d+"),
        ("nowhere", r"scored\.py has no nowhere"),
    ],
)
def test_what_a_function_returns_is_checked(
    classifiers: dict[str, Any], place: Path, name: str, message: str
) -> None:
    """Another thing than a row of floats for each example ends it with a sentence."""
    with pytest.raises(LinesError, match=message):
        short(classifiers, logits=f"python:scored:{name}")


@pytest.mark.parametrize("spec", ["rewards:scored:own", "python:scored:own?direction=lower", 7])
def test_a_spec_of_another_kind_is_refused(
    classifiers: dict[str, Any], place: Path, spec: Any
) -> None:
    """A function of Python, without a name and options."""
    with pytest.raises(LinesError, match=r"--logits: found .*, wanted python:MODULE:FUNCTION"):
        short(classifiers, logits=spec)
    assert not (place / "out").exists()


@pytest.mark.parametrize("label", ["sports", -1, 1.0, True])
def test_labels_are_numbers_of_columns(
    classifiers: dict[str, Any], place: Path, label: Any
) -> None:
    """The function gives its columns no names."""
    write(place / "wrong.jsonl", [{"text": "w1", "label": 0}, {"text": "w2", "label": label}])
    with pytest.raises(LinesError, match=r"line 2: found the label .*, wanted the number of a col"):
        short(classifiers, "wrong.jsonl", logits="python:scored:own")


def test_a_length_is_the_function_s_own(classifiers: dict[str, Any], place: Path) -> None:
    """It reads the texts, so that nothing else can cut them."""
    with pytest.raises(LinesError, match="--max-length: found 9, and the function of --logits"):
        short(classifiers, max_length=9, logits="python:scored:own")
