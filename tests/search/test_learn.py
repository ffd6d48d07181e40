"""Learning coefficients on texts: the parts of the data, what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lines import LinesError, learn
from mergekit_lines.evaluate.texts import text_digest
from mergekit_lines.live.learn import Uniform
from mergekit_lines.search import learn as search
from mergekit_lines.search.learning.examples import Example, Examples, parted
from mergekit_lines.search.learning.predictions import Tokens, batches, measured
from tests import models
from tests.e2e.runner import in_process

Learn = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny models are slowed by torch's pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with texts in it."""
    numbers = np.random.default_rng(0).integers(10, 90, (8, 6))
    texts = [" ".join(f"w{number}" for number in row) for row in numbers]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(llama_base: Path, llama_a: Path, llama_b: Path) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}, {"model": str(llama_b)}],
        "parameters": {"alpha": 0.2, "beta": 0.3},
    }


def short(recipe: dict[str, Any], out: str = "out", **options: Any) -> search.Learned:
    """Learn in few steps, fast ones."""
    words = {"steps": 4, "batch_size": 2, "learning_rate": 0.3, "objective": "loss", "quiet": True}
    return learn(recipe, "texts.txt", out, **{**words, **options})


# --- the data ---------------------------------------------------------------------------------


def file(*texts: str) -> Examples:
    examples = tuple(Example(text, None, "", text_digest(text)) for text in texts)
    return Examples(Path("texts.txt"), "", examples)


def test_the_parts_share_no_document() -> None:
    """A document that stands there twice is in one part, once; every other is in one of the two."""
    texts = [f"text {number}" for number in range(9)]
    parts = parted(file(*texts, " text 3\n", "text 5"), 0.3, 1)
    assert sorted(one.content for one in (*parts.training, *parts.held_out)) == texts
    assert (len(parts.held_out), parts.repeated) == (3, 2)
    assert parted(file(*texts), 0.3, 2) != parted(file(*texts), 0.3, 1)
    assert len(parted(file(*texts[:2]), 0.01, 0).held_out) == 1


def test_one_document_is_refused() -> None:
    """Nothing would be held out."""
    with pytest.raises(LinesError, match=r"texts\.txt: found one document, wanted two at least"):
        parted(file("a", "a"), 0.5, 0)


def test_batches_take_every_window_in_turn() -> None:
    """Before a window comes again every other has come; the seed decides the order."""
    windows = [[number] for number in range(5)]
    drawn = [window for batch in islice(batches(windows, 2, 7), 5) for (window,) in batch]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert drawn == [w for batch in islice(batches(windows, 2, 7), 5) for (w,) in batch]
    assert drawn != [w for batch in islice(batches(windows, 2, 8), 5) for (w,) in batch]


def test_objectives_are_those_of_the_formula(llama_base: Path) -> None:
    """Entropy and loss of padded windows equal −Σ p·log p and −log p, written out in float64."""
    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32).eval()
    windows = [[5, 6, 7, 8, 9], [11, 12, 13]]
    entropy, loss = np.zeros(2)
    for row in windows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0].double().numpy()
        for scores, target in zip(logits[:-1], row[1:], strict=True):
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            entropy -= (shares * np.log(shares)).sum()
            loss -= np.log(shares[target])
    got = measured(Tokens(model, None, Path(), None), model, windows, 2)
    assert got == pytest.approx({"entropy": entropy / 6, "loss": loss / 6}, rel=1e-5)


def test_tokens_that_are_never_predicted_add_nothing() -> None:
    """A logit of −∞ gives neither NaN nor a gradient that is not finite."""
    scores = torch.zeros(1, 2, 4)
    scores[..., 3] = -torch.inf
    scores.requires_grad_()

    class Model(torch.nn.Module):
        def get_input_embeddings(self) -> Any:
            raise NotImplementedError

        def forward(self, **_: Any) -> Any:
            return type("Output", (), {"logits": scores})

    (entropy,) = Tokens(Model(), None, Path(), None).sums(Model(), [[0, 1, 2]], ["entropy"])
    assert entropy.item() == pytest.approx(2 * np.log(3))
    entropy.backward()
    assert torch.isfinite(scores.grad).all()


# --- what comes out ---------------------------------------------------------------------------


def test_the_learnt_recipe_has_what_was_measured(place: Path, recipe: dict[str, Any]) -> None:
    """Merged by mergekit and loaded by transformers it has the held-out loss that was reported."""
    learned = short(recipe)
    assert learned.learned.training["loss"] < learned.own.training["loss"]
    written = yaml.safe_load((place / "out" / "learned.yml").read_text())
    blocks = [float(value) for value in written["parameters"]["schedule"].split(",")]
    assert tuple(blocks) == learned.learned.coefficients.blocks
    in_process(written, place / "merged")
    model = AutoModelForCausalLM.from_pretrained(place / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "merged")
    report = json.loads((place / "out" / "learned.json").read_text())
    texts = Path("texts.txt").read_text().split("\n\n")
    held_out = [str(one.content) for one in parted(file(*texts), 0.25, 0).held_out]
    rows = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in held_out]
    want = measured(Tokens(model, tokenizer, Path(), None), model, rows, 2)
    assert report["learned"]["held_out"] == pytest.approx(want, rel=1e-6)
    assert report["measured"] == [6, 2]


def test_the_same_seed_learns_the_same(place: Path, recipe: dict[str, Any]) -> None:
    """To the last digit; another seed has other batches."""
    one, other = short(recipe), short(recipe, "again")
    assert one == other
    assert short(recipe, "seed", seed=1).steps != one.steps


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"alpha": 0.2}, 0),
        ({"alpha": [{"filter": "mlp", "value": 0.4}, {"value": 0.2}]}, 1),
        ({"alpha": [{"filter": "lm_head", "value": 0.4}, {"value": 0.2}]}, 1),
        ({"alpha": 0.2, "weight": [{"filter": "mlp", "value": 0.4}, {"value": 0.2}]}, 1),
    ],
)
def test_means_of_several_coefficients_are_told(
    place: Path, recipe: dict[str, Any], options: dict[str, Any], lines: int, capsys: Any
) -> None:
    """Where filters split a block, or what is outside: once; a plain recipe has nothing to say."""
    recipe["parameters"] = {"beta": 0.3, **options}
    short(recipe, steps=1, quiet=False, per_model="weight" in options)
    words = "the recipe has several coefficients in one block, or outside of the blocks; learn"
    assert capsys.readouterr().err.count(words) == lines


def test_the_descent_begins_at_the_better(place: Path, recipe: dict[str, Any], capsys: Any) -> None:
    """Of the recipe's own coefficients and the best uniform one; it is written, and told."""
    recipe["parameters"] = {"alpha": -1.5, "beta": 0.0}  # away from the models
    short(recipe, "first", steps=8, quiet=False)
    assert "begins at the best uniform coefficient" in capsys.readouterr().err
    short(yaml.safe_load((place / "first/learned.yml").read_text()), "second", quiet=False)
    assert "begins at the recipe's own coefficients" in capsys.readouterr().err
    for folder, start in (("first", "uniform"), ("second", "own")):
        report = json.loads((place / folder / "learned.json").read_text())
        losses = {name: report[name]["training"]["loss"] for name in ("own", "uniform")}
        assert report["start"] == min(losses, key=losses.__getitem__) == start


def test_the_first_step_is_from_where_it_begins(place: Path, recipe: dict[str, Any]) -> None:
    """A small step away from the better, and not from the recipe's own coefficients."""
    recipe["parameters"] = {"alpha": -1.5, "beta": 0.0}
    learned = short(recipe, steps=1, learning_rate=1e-3)
    (value,) = set(learned.uniform.coefficients.blocks)
    assert value >= 0
    assert all(abs(each - value) <= 1.1e-3 for each in learned.learned.coefficients.blocks)


def test_an_edge_of_the_search_is_told(
    place: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Where no larger uniform coefficient was tried, on stderr and in what is written."""
    monkeypatch.setattr(search, "best_uniform", lambda *_: Uniform(0.5, True))
    assert short(recipe, steps=1, quiet=False).uniform_at_edge
    assert "No larger one was tried" in capsys.readouterr().err
    assert json.loads((place / "out" / "learned.json").read_text())["uniform_at_edge"] is True


def test_an_interrupted_run_leaves_the_best_so_far(
    place: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Ctrl-C in a step: the recipe is there and merges, and a line says where it is."""
    calls, sums = iter(range(1000)), Tokens.sums

    def interrupted(task: Tokens, model: Any, batch: Any, names: Any) -> Any:
        if len(names) == 1 and next(calls) == 3:
            raise KeyboardInterrupt
        return sums(task, model, batch, names)

    monkeypatch.setattr(Tokens, "sums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short(recipe, quiet=False)
    assert "the best so far is kept in out/learned.yml" in capsys.readouterr().err
    written = yaml.safe_load((place / "out" / "learned.yml").read_text())
    assert len(set(written["parameters"]["schedule"].split(", "))) == 4  # not what it began with
    assert written["parameters"]["schedule"] != "0.2, 0.3, 0.4, 0.5"
    in_process(written, place / "merged")
    assert models.read(place / "merged")
    assert not (place / "out" / "learned.json").exists()
    assert not (place / "out" / ".work").exists()


def test_a_dtype_is_of_the_learning_alone(place: Path, recipe: dict[str, Any]) -> None:
    """The recipe that is written has its own."""
    short({**recipe, "dtype": "bfloat16"}, dtype="float32", steps=1)
    written = yaml.safe_load((place / "out" / "learned.yml").read_text())
    assert written["dtype"] == "bfloat16"
    assert "out_dtype" not in written


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"objective": "entrpy"}, r"--objective: found 'entrpy', wanted entropy or loss\. Did you"),
        ({"steps": 0}, r"--steps: found 0, wanted a whole number from 1 on"),
        ({"batch_size": True}, r"--batch-size: found True, wanted a whole number from 1"),
        ({"seed": -1}, r"--seed: found -1, wanted a whole number from 0 on"),
        ({"learning_rate": float("nan")}, r"--lr: found nan, wanted a finite number above 0"),
        ({"held_out": 1.0}, r"--held-out: found 1\.0, wanted a share between 0 and 1"),
        ({"dtype": "fp8"}, r"--dtype: found 'fp8', wanted float32"),
        ({"random_seed": 3}, r"random_seed: found 3, wanted parameters\.seed in the recipe"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    place: Path, recipe: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    """Before anything is opened, and nothing is written."""
    with pytest.raises(LinesError, match=message):
        short(recipe, **words)
    assert not (place / "out").exists()


def test_data_that_is_not_there_is_refused(place: Path, recipe: dict[str, Any]) -> None:
    """In the words of the evaluators' files."""
    with pytest.raises(LinesError, match=r"--data: the file none\.txt cannot be read"):
        learn(recipe, "none.txt", "out", quiet=True)
    assert not (place / "out").exists()


def test_windows_that_do_not_fit_are_refused(place: Path, recipe: dict[str, Any]) -> None:
    """A model has so many positions."""
    with pytest.raises(LinesError, match=r"--data: max_length is 100000, and the model has"):
        short(recipe, max_length=100_000)


def test_a_folder_of_another_search_is_refused(place: Path, recipe: dict[str, Any]) -> None:
    """Another seed is another search, and does not write over what was learnt."""
    short(recipe, steps=1)
    before = (place / "out" / "learned.yml").read_text()
    with pytest.raises(LinesError, match=r"holds results of another search: the settings differ"):
        short(recipe, steps=1, seed=5)
    assert (place / "out" / "learned.yml").read_text() == before


def test_what_was_learnt_already_is_not_learnt_again(place: Path, recipe: dict[str, Any]) -> None:
    """The same search in the same folder is refused, and every file stays as it was."""
    short(recipe, steps=1)
    (place / "out" / "figure.png").write_bytes(b"figure")
    before = models.digest(place / "out")
    with pytest.raises(LinesError, match=r"--out out: found learned\.json: .* give another --out"):
        short(recipe, steps=1)
    assert models.digest(place / "out") == before


def test_a_model_that_is_no_language_model_is_refused(place: Path, tmp_path: Path) -> None:
    """An encoder with a decoder predicts no token by those before it alone, and no class."""
    base = models.t5(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=1)
    document = {
        "merge_method": "lines_postprocess",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"gamma": 0.3},
    }
    with pytest.raises(LinesError, match=r"--data: T5For.* is no causal language model and no"):
        short(document)
