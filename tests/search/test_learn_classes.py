"""Learning on classifiers of texts and of images: what is learnt, measured and refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from PIL import Image

from mergekit_lines import LinesError, LiveModel, learn
from mergekit_lines.cli import main
from mergekit_lines.live.coefficients import Coefficients, PerModel
from mergekit_lines.search.learn import Learned, Way
from mergekit_lines.search.learning.classes import Images, Texts, opened
from mergekit_lines.search.learning.examples import parted, read_examples
from mergekit_lines.search.learning.predictions import measured
from mergekit_lines.search.learning.show import show_learned
from tests import models
from tests.e2e import runner
from tests.live.compare import assert_as_files
from tests.search.formula import by_formula

CLASSES = ("sports", "money", "science", "music")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny models are slowed by torch's pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text(draws: np.random.Generator, number: int) -> str:
    """Return four words of one class among four to eight that say nothing of it."""
    own = draws.integers(10 * number, 10 * number + 10, 4)
    words = [f"w{place}" for place in (*own, *draws.integers(40, 120, draws.integers(4, 9)))]
    draws.shuffle(words)
    return " ".join(words)


def trained(base: Path, path: Path, classes: Sequence[int], seed: int) -> Path:
    """Copy a classifier of texts, and train it on some of its classes alone."""
    shutil.copytree(base, path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    draws = np.random.default_rng(seed)
    for _ in range(40):
        right = draws.choice(classes, 16)
        rows = tokenizer([text(draws, one) for one in right], return_tensors="pt", padding=True)
        logits = model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(right)).backward()
        adam.step()
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a recipe of two classifiers, each of which knows one half of the classes."""
    folder = tmp_path_factory.mktemp("halves")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    base = models.bert_seqcls(folder / "base", layers=3, labels=len(CLASSES))
    names = dict(enumerate(CLASSES))
    models.edit_config(base, id2label=names, label2id={one: n for n, one in names.items()})
    tuned = [trained(base, folder / f"t{n}", half, n) for n, half in enumerate(((0, 1), (2, 3)))]
    torch.set_num_threads(before)
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": 0.2, "beta": 0.3},
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with labelled texts in it."""
    draws = np.random.default_rng(5)
    rows = [(text(draws, n), CLASSES[n]) for n in draws.integers(0, len(CLASSES), 120)]
    lines = [json.dumps({"text": one, "label": label}) for one, label in rows]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def short(recipe: dict[str, Any], data: str = "texts.jsonl", **options: Any) -> Any:
    """Learn in few steps, fast ones."""
    words = {"steps": 12, "batch_size": 16, "learning_rate": 0.15, "objective": "loss"}
    return learn(recipe, data, "out", **{**words, "quiet": True, "num_threads": 1, **options})


def held_out(data: str, seed: int = 0) -> list[tuple[Any, int]]:
    """Return what a run keeps apart, with the numbers of its classes."""
    parts = parted(read_examples(Path(data), None), 0.25, seed)
    return [(one.content, CLASSES.index(one.label)) for one in parts.held_out]


def of_texts(folder: Path) -> Callable[[Any], Any]:
    """Return what gives the logits of one text by the files of a model."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)

    def logits(content: str) -> Any:
        with torch.no_grad():
            return model(torch.tensor([tokenizer(content)["input_ids"]])).logits[0]

    return logits


# --- what comes out ---------------------------------------------------------------------------


def test_two_halves_are_put_together(halves: dict[str, Any], place: Path) -> None:
    """Each model's coefficients lower the held-out loss below the best uniform one's, clearly.

    The stock command makes of the recipe what was measured: the live model's bits, and by the
    formula its held-out numbers.
    """
    learned = short(halves, per_model=True)
    best, rival = learned.learned.held_out, learned.uniform.held_out
    assert best["loss"] < 0.95 * rival["loss"] < learned.own.held_out["loss"]
    assert best["accuracy"] >= rival["accuracy"]
    runner.run(["mergekit-yaml", "out/learned.yml", "merged"], place).succeeded()
    rows = held_out("texts.jsonl")
    assert best == pytest.approx(by_formula(of_texts(place / "merged"), rows), rel=1e-5)
    written = yaml.safe_load((place / "out/learned.yml").read_text())
    assert {key: written["parameters"][key] for key in ("alpha", "beta")} == {"alpha": 1, "beta": 0}
    with LiveModel(halves, quiet=True) as live:
        live.set_recipe(written)
        assert_as_files(live, place / "merged")


def test_entropy_needs_no_labels(halves: dict[str, Any], place: Path) -> None:
    """It falls on inputs that were held out, below the best uniform coefficient's."""
    rows = [json.loads(line) for line in (place / "texts.jsonl").read_text().splitlines()]
    (place / "texts.txt").write_text("\n\n".join(row["text"] for row in rows))
    learned = short(halves, "texts.txt", objective="entropy", per_model=True)
    assert learned.learned.held_out["entropy"] < learned.uniform.held_out["entropy"]
    assert [*learned.learned.held_out] == ["entropy"]
    assert (learned.unit, learned.inputs, learned.measured) == ("text", "texts", (90, 30))


def test_an_interrupted_run_leaves_the_best_so_far(
    halves: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a step: each model has whole weights in the recipe, and nothing else is left."""
    steps, sums = iter(range(1000)), Texts.sums

    def interrupted(task: Texts, model: Any, batch: Any, names: Any) -> Any:
        if torch.is_grad_enabled() and next(steps) == 7:
            raise KeyboardInterrupt
        return sums(task, model, batch, names)

    monkeypatch.setattr(Texts, "sums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short(halves, per_model=True, learning_rate=0.03)
    left = {path.name for path in (place / "out").iterdir()}
    assert left == {"learned.yml", "search.json", ".lock"}
    with LiveModel(halves, quiet=True) as live:
        live.set_recipe(yaml.safe_load((place / "out/learned.yml").read_text()))
        own = PerModel.of(live.planned, live.summary)
        assert len(own.models) == 2
        assert len({*own.numbers}) > 1  # not the uniform one that it began with


def test_the_command_shows_what_was_learnt(halves: dict[str, Any], place: Path) -> None:
    """A column of accuracy, a straight line for each model, a figure; the data may be CSV."""
    (place / "recipe.yml").write_text(yaml.safe_dump(halves))
    lines = (place / "texts.jsonl").read_text().splitlines()
    with (place / "texts.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["label", "text"])
        rows.writeheader()
        rows.writerows(map(json.loads, lines))
    words = "learn recipe.yml --data texts.csv --per-model --objective loss --out out --steps 1"
    done = CliRunner().invoke(main, [*words.split(), "--batch-size", "8", "--num-threads", "1"])
    assert done.exit_code == 0, done.output
    assert "accuracy, held out" in done.output
    assert "nats per text, on 90 texts" in done.output
    for name in ("t0", "t1"):
        assert f"the straight line nearest to those of {name}: alpha" in done.output
    assert (place / "out/figure.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((place / "out/learned.json").read_text())
    assert [*report["learned"]["coefficients"]["models"]] == [
        entry["model"] for entry in halves["models"]
    ]
    files = (place / name for name in ("texts.csv", "texts.jsonl"))
    by_columns, by_lines = (read_examples(path, None).examples for path in files)
    assert [(one.content, one.label) for one in by_columns] == [
        (one.content, one.label) for one in by_lines
    ]


def test_long_texts_are_cut_and_short_ones_are_padded(halves: dict[str, Any], place: Path) -> None:
    """A class hangs on the first tokens, whatever stands beside a text in its batch."""
    path = Path(halves["models"][0]["model"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    rows = [{"text": "w1 w2 w3 w4 w5 w6 w7", "label": 0}, {"text": "w11", "label": "science"}]
    (place / "two.jsonl").write_text(lines(*rows))
    data = read_examples(Path("two.jsonl"), None)
    task = Texts(model, tokenizer, data, 5)
    got = measured(task, model, task.inputs(data.examples), 2)
    cut = [("w1 w2 w3 w4 w5", 0), ("w11", 2)]
    assert got == pytest.approx(by_formula(of_texts(path), cut), rel=1e-5)
    model.config.pad_token_id = None
    task = Texts(model, tokenizer, data, 5)
    with pytest.raises(LinesError, match=r"no pad_token_id.* Give --batch-size 1, or set it"):
        measured(task, model, task.inputs(data.examples), 2)
    assert measured(task, model, task.inputs(data.examples), 1) == pytest.approx(got, rel=1e-5)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            (0.5, 0.7),
            "their held-out loss rose from the recipe's own 0.5 to 0.7: they are more cer",
        ),
        ((0.5, 0.4), "their held-out loss fell too, from the recipe's own 0.5 to 0.4"),
        ((), "no label says whether they are right: low entropy is certainty"),
    ],
)
def test_certainty_is_not_told_as_truth(
    losses: tuple[float, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where entropy fell, what became of the loss is said, or that nobody knows."""
    ways = []
    for number, entropy in enumerate((0.9, 0.3)):
        values = {"entropy": entropy, **({"loss": losses[number]} if losses else {})}
        ways.append(Way(Coefficients((0.1, 0.2), 0.1), values, values))
    own, best = ways
    learned = Learned("entropy", own, own, False, "own", best, (0.9, 0.3), (6, 2), "text", "texts")
    show_learned(learned)
    assert words in capsys.readouterr().out


def of_names(*names: str) -> Any:
    """Return a stand-in for a classifier whose classes have these names."""
    return SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(names))))


@pytest.mark.parametrize(
    ("names", "file", "content", "targets"),
    [
        ("123", "a.jsonl", lines({"text": "a", "label": 1}, {"text": "b", "label": "3"}), [0, 2]),
        ("123", "a.csv", "text,label\na,1\nb,3\n", [0, 2]),
        (("-1", "0", "1"), "a.csv", "text,label\na,-1\nb,1\n", [0, 2]),
        (("-1", "1"), "a.jsonl", lines({"text": "a", "label": -1}, {"text": "b"}), [0, None]),
        ("012", "a.jsonl", lines({"text": "a", "label": 1}, {"text": "b", "label": "2"}), [1, 2]),
        (("1 star", "2 stars"), "a.csv", "text,label\na,1\nb,1 star\n", [1, 0]),
    ],
)
def test_numerals_that_name_classes_are_read_as_names(
    place: Path, names: Sequence[str], file: str, content: str, targets: list[int | None]
) -> None:
    """Stars from 1 on: the label 1 is the class named 1, in JSON as in CSV."""
    (place / file).write_text(content)
    data = read_examples(Path(file), None)
    task = Images(of_names(*names), "a processor", data)
    assert [task.target(example) for example in data.examples] == targets


@pytest.mark.parametrize(
    ("file", "content", "label"),
    [
        ("a.jsonl", lines({"text": "a", "label": 0}, {"text": "b", "label": 1}), "0"),
        ("a.csv", 'text,label\n"a",0\nb,1\n', "'0'"),
    ],
)
def test_a_number_that_may_be_no_name_is_refused(
    place: Path, file: str, content: str, label: str
) -> None:
    """Where class names are other classes' numbers; both that it could mean are said."""
    (place / file).write_text(content)
    message = (
        rf"found the label {label}: no class has that name, and that number is of the class named "
        r"'1'\. Wanted one of the names \(1, 2, 3\)"
    )
    with pytest.raises(LinesError, match=message):
        Images(of_names(*"123"), "a processor", read_examples(Path(file), None))


def test_a_text_with_labels_of_two_classes_is_refused(place: Path) -> None:
    """With both places; the same class in other words, or no label at all, is no contradiction."""
    rows = [{"text": "w1", "label": "a"}, {"text": "w2", "label": 1}, {"text": " w1", "label": 0}]
    names = of_names("a", "b")
    (place / "a.jsonl").write_text(lines(*rows, {"text": "w2"}))
    Images(names, "a processor", read_examples(Path("a.jsonl"), None))
    (place / "a.jsonl").write_text(lines(*rows, {"text": "w1", "label": "b"}))
    message = (
        r"a\.jsonl, line 1 and a\.jsonl, line 4 hold the same text, and their labels are 'a' and "
        r"'b', wanted one"
    )
    with pytest.raises(LinesError, match=message):
        Images(names, "a processor", read_examples(Path("a.jsonl"), None))


@pytest.mark.parametrize("kind", ["Roberta", "IBert"])
def test_positions_of_padding_are_no_texts(place: Path, kind: str) -> None:
    """RoBERTa counts from behind padding's position on: the longest text it takes is 16 − 1 − 1."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=128,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        pad_token_id=1,
        num_labels=2,
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    model(torch.full((1, 14), 5))
    with pytest.raises((IndexError, RuntimeError)):  # by the release of transformers
        model(torch.full((1, 15), 5))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(models.save_tokenizer(place / "t"))
    (place / "a.jsonl").write_text(lines({"text": "w5 " * 40, "label": 0}))
    data = read_examples(Path("a.jsonl"), None)
    task = Texts(model, tokenizer, data, None)
    (row,) = task.inputs(data.examples)
    assert len(row.content) == 14
    measured(task, model, [row], 1)
    with pytest.raises(LinesError, match="max_length is 15, and the model has 14 positions"):
        Texts(model, tokenizer, data, 15)


# --- images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a recipe of two classifiers of images with their processor."""
    folder = tmp_path_factory.mktemp("vits")
    base = models.vit(folder / "base", layers=3, labels=len(CLASSES))
    names = dict(enumerate(CLASSES))
    models.edit_config(base, id2label=names, label2id={one: n for n, one in names.items()})
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(base)
    tuned = [models.finetuned(base, folder / f"t{n}", seed=n, scale=0.3) for n in (1, 2)]
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": 0.2, "beta": 0.3},
    }


@pytest.fixture
def images(place: Path) -> Path:
    """A folder of five images of each class, whose colours tell it."""
    draws = np.random.default_rng(1)
    for number, name in enumerate(CLASSES):
        (place / "images" / name).mkdir(parents=True)
        for place_of_it in range(5):
            pixels = draws.integers(60 * number, 60 * number + 60, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / name / f"{place_of_it}.png")
    return place / "images"


def test_images_are_classified(vits: dict[str, Any], images: Path, place: Path) -> None:
    """A folder for each class; the loss falls, and the files have the held-out numbers."""
    learned = short(vits, "images", per_model=True, batch_size=5)
    assert learned.learned.training["loss"] < learned.uniform.training["loss"]
    assert (learned.unit, learned.measured) == ("image", (15, 5))
    runner.run(["mergekit-yaml", "out/learned.yml", "merged"], place).succeeded()
    model = transformers.AutoModelForImageClassification.from_pretrained(place / "merged").eval()
    processor: Any = transformers.AutoImageProcessor.from_pretrained(vits["base_model"])

    def logits(path: Path) -> Any:
        with torch.no_grad():
            return model(**processor(Image.open(path), return_tensors="pt")).logits[0]

    want = by_formula(logits, held_out("images"))
    assert learned.learned.held_out == pytest.approx(want, rel=1e-5)


def test_images_without_classes_have_entropy_alone(
    vits: dict[str, Any], images: Path, place: Path
) -> None:
    """Loose images have no label; two that are alike count once."""
    (place / "loose").mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))[:7]):
        shutil.copy(path, place / "loose" / f"{number}.PNG")
    shutil.copy(place / "loose" / "0.PNG", place / "loose" / "7.png")
    for name in ("notes.txt", "._0.png"):
        (place / "loose" / name).write_text("no image")
    learned = short(vits, "loose", objective="entropy", steps=1, batch_size=2)
    assert (learned.measured, [*learned.own.held_out]) == ((5, 2), ["entropy"])


def test_a_limit_leaves_images_of_every_class(images: Path) -> None:
    """The first of every class in turn."""
    examples = read_examples(images, 6).examples
    assert [(one.label, Path(one.content).name) for one in examples] == [
        *((name, "0.png") for name in sorted(CLASSES)),
        *((name, "1.png") for name in sorted(CLASSES)[:2]),
    ]


def test_images_are_turned_as_their_camera_says(place: Path) -> None:
    """EXIF orientation 6 is a quarter turn clockwise, which numpy's rot90 does to the pixels."""
    pixels = np.random.default_rng(2).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(place / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(opened(place / "turned.png")), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("dtype", "name", "mode"),
    [("uint16", "a.png", "I;16"), ("int32", "a.tif", "I"), ("float32", "a.tif", "F")],
)
def test_images_of_more_than_8_bits_are_refused(
    place: Path, dtype: str, name: str, mode: str
) -> None:
    """Pillow would cut their values off at 255; grey ones of 8 bits keep theirs."""
    values = np.array([[0, 9000], [20000, 65535]])
    Image.fromarray(values.astype(dtype)).save(place / name)
    message = rf"{name}: found an image of mode {mode}, wanted 8 bits a channel .* Convert it first"
    with pytest.raises(LinesError, match=message):
        opened(place / name)
    grey = (values // 257).astype(np.uint8)
    Image.fromarray(grey).save(place / "grey.png")
    assert np.array_equal(np.asarray(opened(place / "grey.png")), np.stack([grey] * 3, -1))


def test_images_too_large_to_unpack_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every image that cannot be read, with its file."""
    Image.new("L", (20, 20)).save(place / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LinesError, match=r"bomb\.png cannot be read as an image \(Decompression"):
        opened(place / "bomb.png")


# --- what is refused --------------------------------------------------------------------------


GOOD = [{"text": "w1 w2", "label": "sports"}, {"text": "w3 w4", "label": 3}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            lines(*GOOD, {"text": "w5", "label": "sport"}),
            r"a\.jsonl, line 3: found the label 'sport', wanted one of the model's \(money, music, "
            r"science, sports\), or its number from 0 to 3\. Did you mean 'sports'\?",
        ),
        ("a.jsonl", lines(*GOOD, {"text": "w5", "label": 4}), r"line 3: found the label 4, wanted"),
        ("a.jsonl", lines(*GOOD, {"text": "w5", "label": True}), "found the label True, wanted"),
        ("a.jsonl", lines(*GOOD, {"text": "w5", "label": -1}), "found the label -1, wanted"),
        (
            "a.jsonl",
            lines(*GOOD, {"text": "w5"}),
            r"--objective: found loss, and a\.jsonl, line 3 has no label, wanted one on every",
        ),
        ("a.jsonl", lines({"label": "sports"}), r"a\.jsonl, line 1: wanted an object whose 'text'"),
        ("a.csv", "label,sentence\nsports,w1", r"found the columns label, sentence in its first"),
        ("a.csv", "", r"found the columns none in its first line, wanted text, and label"),
        ("a.csv", "text,label\nw1,w2,sports", r"a\.csv, line 2: wanted as many cells as columns"),
        ("a.csv", "text,label\nw1", r"a\.csv, line 2: wanted as many cells as columns"),
        ("a.csv", 'text,label\n"w1', r"a\.csv, line 2 is no CSV"),
        ("a.csv", "text,label\n", r"the file a\.csv is empty, wanted a text on each line"),
        ("a.csv", "text,label\nw1,sports\n", r"a\.csv: found one document, wanted two at least"),
    ],
)
def test_data_that_is_wrong_is_refused(
    halves: dict[str, Any], place: Path, name: str, content: str, message: str
) -> None:
    """With the file, the line, what is there and what is wanted; no recipe is left."""
    (place / name).write_text(content)
    with pytest.raises(LinesError, match=message):
        short(halves, name)
    assert not (place / "out" / "learned.yml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"wrap": "ties"}, r"--per-model: parameters\.wrap: found 'ties', wanted one that adds"),
        ({"wrap": "consensus_ta"}, r"--per-model: parameters\.wrap: found 'consensus_ta', wanted"),
        ({"normalize": True}, r"--per-model: parameters\.normalize: found true, wanted false"),
    ],
)
def test_merges_that_add_nothing_up_have_no_coefficients_of_models(
    halves: dict[str, Any], place: Path, words: dict[str, Any], message: str
) -> None:
    """Before a model is opened; nothing is written."""
    recipe = {**halves, "parameters": {**halves["parameters"], **words}}
    with pytest.raises(LinesError, match=message):
        short(recipe, per_model=True)
    assert not (place / "out").exists()


def test_an_edit_of_one_model_has_no_coefficients_of_models(
    halves: dict[str, Any], place: Path
) -> None:
    """Those of the merge are its own."""
    recipe = {**halves, "merge_method": "lines_postprocess", "models": halves["models"][:1]}
    with pytest.raises(LinesError, match="--per-model: merge_method: found 'lines_postprocess'"):
        short(recipe, per_model=True)


def test_data_of_another_kind_is_refused(
    halves: dict[str, Any], vits: dict[str, Any], images: Path, place: Path
) -> None:
    """Images want a classifier of images, texts any other model; tokens are not of images."""
    with pytest.raises(LinesError, match=r"images: found images, and BertFor\w+ wants texts"):
        short(halves, "images")
    with pytest.raises(LinesError, match=r"texts\.jsonl: found texts, and ViTFor\w+ wants images"):
        short(vits)
    with pytest.raises(LinesError, match="--max-length: found 9, and images have no tokens"):
        short(vits, "images", max_length=9)
    with pytest.raises(LinesError, match="max_length is 999, and the model has 64 positions"):
        short(halves, max_length=999)
    with pytest.raises(LinesError, match="--per-model: found 'yes', wanted true or false"):
        short(halves, per_model="yes")


def test_folders_that_hold_no_image_are_refused(vits: dict[str, Any], images: Path) -> None:
    """An empty one, and one with a file that only has an image's name."""
    empty = images.parent / "empty"
    empty.mkdir()
    with pytest.raises(LinesError, match=r"the folder empty holds no image \(\.bmp, "):
        short(vits, "empty")
    (images / "music" / "broken.png").write_text("no image")
    with pytest.raises(LinesError, match=r"broken\.png cannot be read as an image"):
        short(vits, "images")


def test_models_that_cannot_take_the_data_are_refused(
    vits: dict[str, Any], images: Path, place: Path
) -> None:
    """One without a processor, and one that chooses no class."""
    base = models.vit(place / "base", layers=2, labels=1)
    tuned = models.finetuned(base, place / "tuned", seed=1)
    recipe = {**vits, "base_model": str(base), "models": [{"model": str(tuned)}]}
    with pytest.raises(LinesError, match=r"has 1 labels and problem_type none, wanted a class"):
        short(recipe, "images")
    for folder in (base, tuned):
        names = {str(n): name for n, name in enumerate(CLASSES)}
        shutil.rmtree(folder)
        models.vit(folder, layers=2, labels=4, seed=int(folder is tuned))
        models.edit_config(folder, id2label=names)
    with pytest.raises(LinesError, match=r"models have no preprocessor_config\.json"):
        short(recipe, "images")
