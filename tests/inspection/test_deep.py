"""A look at the weights: its numbers against numpy, and what it finds of planted troubles."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from mergekit_lines.cli import main
from tests import models
from tests.e2e.runner import recipe_text

BLOCK = "model.layers.1."


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two sound models of it."""
    folder = tmp_path_factory.mktemp("inputs")
    base = models.llama(folder / "base", hidden=64, vocab=120, dtype=torch.float32)
    for number, name in enumerate("ab"):
        models.finetuned(base, folder / name, seed=number, scale=0.05)
    return folder


@pytest.fixture
def planted(inputs: Path, tmp_path: Path) -> Path:
    """The same, to put a trouble into."""
    return Path(shutil.copytree(inputs, tmp_path / "planted"))


def inspect(folder: Path, *flags: str, **changes: Any) -> Result:
    words = {
        "merge_method": "lines",
        "base_model": folder / "base",
        "models": [{"model": folder / "a"}, {"model": folder / "b"}],
        "parameters": {"alpha": 0.2, "beta": 0.9},
        **changes,
    }
    (folder / "recipe.yml").write_text(recipe_text(words), encoding="utf-8")
    return CliRunner().invoke(main, ["inspect", str(folder / "recipe.yml"), "--deep", *flags])


def looked(folder: Path, **changes: Any) -> dict[str, Any]:
    done = inspect(folder, "--json", **changes)
    assert done.exit_code == 0, done.output
    (document,) = json.loads(done.stdout)["documents"]
    return dict(document)


def test_numbers(inputs: Path) -> None:
    """Norms, cosine, conflict, rank and what λ keeps are those of numpy, block by block."""
    document = looked(inputs)
    base, a, b = (models.read(inputs / name) for name in ("base", "a", "b"))
    blocks: dict[str, list[str]] = {}
    for name in base:
        match = re.match(r"model\.layers\.(\d+)\.", name)
        blocks.setdefault(match[1] if match else "outside", []).append(name)
    kept = whole = 0.0
    for depth in document["deep"]["depths"]:
        names = blocks[str(depth["index"] - 1) if depth["index"] else "outside"]
        flat = [
            np.concatenate([model[name].double().numpy().reshape(-1) for name in names])
            for model in (base, a, b)
        ]
        tau = [flat[1] - flat[0], flat[2] - flat[0]]
        assert depth["base"] == pytest.approx(np.linalg.norm(flat[0]), rel=1e-5)
        assert depth["changes"] == pytest.approx([np.linalg.norm(t) for t in tau], rel=1e-5)
        cosine = tau[0] @ tau[1] / np.linalg.norm(tau[0]) / np.linalg.norm(tau[1])
        assert depth["cosines"] == pytest.approx([cosine], abs=1e-5)
        # Every tensor here is one piece, so that no entry is left out.
        both = (tau[0] != 0) & (tau[1] != 0)
        conflict = (np.sign(tau[0]) != np.sign(tau[1]))[both].mean()
        assert depth["conflict"] == pytest.approx(conflict)
        ranks = []
        for name in names:
            delta = (a[name].double() - base[name].double()).numpy()
            if delta.ndim == 2:
                # 64 rows, or as many as the shorter side has, in eight runs evenly apart.
                height = min(64, *delta.shape) // 8
                starts = [run * len(delta) // 8 for run in range(8)]
                rows = np.concatenate([delta[start : start + height] for start in starts])
                squares = np.linalg.svd(rows, compute_uv=False) ** 2
                shares = squares / squares.sum()
                ranks.append(np.exp(-(shares * np.log(shares)).sum()) / len(rows))
        assert depth["ranks"][0] == pytest.approx(np.mean(ranks), rel=1e-4)
        value = 0.2 + 0.9 * (depth["index"] - 1) / 3 if depth["index"] else 0.2
        assert depth["coefficient"] == pytest.approx(value)
        kept += float(value**2 * np.square(tau[0] + tau[1]).sum())
        whole += float(np.square(tau[0] + tau[1]).sum())
    assert document["deep"]["kept"] == pytest.approx(np.sqrt(kept / whole), rel=1e-5)
    assert document["troubles"] == []


def other_base(folder: Path) -> None:
    shutil.rmtree(folder / "a")
    models.llama(folder / "a", hidden=64, vocab=120, dtype=torch.float32, seed=7)


def no_update(folder: Path) -> None:
    shutil.copy(folder / "base" / "model.safetensors", folder / "a" / "model.safetensors")


def exploded(folder: Path) -> None:
    def edit(tensors: models.Tensors) -> None:
        for name in tensors:
            if name.startswith(BLOCK):
                tensors[name] = tensors[name] * 2

    models.rewrite(folder / "a", edit)


def frozen(folder: Path) -> None:
    origin = models.read(folder / "base")

    def edit(tensors: models.Tensors) -> None:
        tensors.update({name: origin[name] for name in tensors if name.startswith(BLOCK)})

    models.rewrite(folder / "a", edit)


def swapped_tokenizer(folder: Path) -> None:
    models.save_tokenizer(folder / "base", vocab=120)
    models.save_tokenizer(folder / "b", vocab=120)
    path = models.save_tokenizer(folder / "a", vocab=120) / "tokenizer.json"
    text = json.loads(path.read_text(encoding="utf-8"))
    tokens = text["model"]["vocab"]
    first, second = [token for token in tokens if "<" not in token][:2]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    path.write_text(json.dumps(text), encoding="utf-8")


def one_tensor(folder: Path) -> None:
    def edit(tensors: models.Tensors) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * 1.3

    models.rewrite(folder / "a", edit)


def not_a_number(folder: Path) -> None:
    def edit(tensors: models.Tensors) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    models.rewrite(folder / "b", edit)


def twice(folder: Path) -> None:
    shutil.copy(folder / "a" / "model.safetensors", folder / "b" / "model.safetensors")


PLANTED: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "another base": (other_base, ("/a: differs from the base by", "Check base_model")),
    "no update": (no_update, ("/a: is identical to the base",)),
    "an exploded block": (exploded, ("/a: model.layers 2 differs from the base by 1",)),
    "an unchanged block": (frozen, ("/a: 1 of 4 blocks are the base's own (model.layers 2)",)),
    "a swapped tokenizer": (
        swapped_tokenizer,
        ("/a: its tokenizer numbers 2 tokens otherwise", "tokenizer: {source: union}"),
    ),
    "one tensor that dominates": (one_tensor, ("is one tensor, model.embed_tokens.weight",)),
    "not a number": (not_a_number, ("1 tensors hold NaN", "model.norm.weight of", "/b")),
    "one model twice": (twice, ("point the same way",)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_troubles(name: str, planted: Path) -> None:
    """Each is found, told once, and nothing else is told."""
    plant, texts = PLANTED[name]
    plant(planted)
    (sentence,) = looked(planted)["troubles"]
    for text in texts:
        assert text in sentence


def test_what_has_no_shape_in_common_is_told(planted: Path) -> None:
    """A vocabulary that a fine-tune has enlarged is left out of the look, and said so."""
    models.save_tokenizer(planted / "base", vocab=120)
    models.save_tokenizer(planted / "b", vocab=120)
    models.save_tokenizer(planted / "a", vocab=120, tokens=["<more>"])

    def edit(tensors: models.Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name][:1]])

    models.rewrite(planted / "a", edit)
    models.edit_config(planted / "a", vocab_size=121)
    (sentence,) = looked(planted, tokenizer={"source": "union"})["troubles"]
    assert "2 tensors were not looked at" in sentence


@pytest.mark.parametrize("method", ["cart", "consensus_ta", "task_arithmetic"])
def test_a_merge_alone_has_blocks(method: str, inputs: Path) -> None:
    """What nothing scales by depth is looked at block by block too, and has no λ."""
    words: dict[str, Any] = {"merge_method": method, "parameters": {}}
    if method == "task_arithmetic":
        words = {"parameters": {"alpha": 1, "beta": 0}}
    document = looked(inputs, **words)
    deep, usual = document["deep"], looked(inputs)["deep"]
    for depth, other in zip(deep["depths"], usual["depths"], strict=True):
        assert depth["index"] == other["index"]
        assert depth["changes"] == other["changes"]
        assert depth["coefficient"] == (1 if method == "task_arithmetic" else None)
    assert deep["kept"] == (1 if method == "task_arithmetic" else None)
    assert all(one["coefficient"]["value"] == 1 for one in document["outside"])


def test_numbers_whose_squares_are_beyond_fp32(planted: Path) -> None:
    """A weight of 1e25 is told as what it is, and as no infinity."""

    def edit(tensors: models.Tensors) -> None:
        tensors["model.norm.weight"][0] = 1e25

    models.rewrite(planted / "a", edit)
    document = looked(planted)
    assert document["deep"]["nonfinite"] == []
    assert document["deep"]["total"]["changes"][0] == pytest.approx(1e25, rel=1e-6)
    assert "/a: differs from the base by" in document["troubles"][0]


def test_a_model_of_nothing_but_nan(planted: Path) -> None:
    """It is told once, nothing is said of what is not known, and there is no picture of it."""

    def edit(tensors: models.Tensors) -> None:
        tensors.update({name: tensor * float("nan") for name, tensor in tensors.items()})

    models.rewrite(planted / "a", edit)
    (sentence,) = looked(planted)["troubles"]
    assert "39 tensors hold NaN or infinity" in sentence
    assert "or has them in OUT where allow_nonfinite is true" in sentence
    page, plot = planted / "look.html", planted / "look.png"
    assert inspect(planted, "--page", str(page)).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "39 tensors hold NaN" in text
    assert "<img" not in text
    done = inspect(planted, "--plot", str(plot))
    assert done.exit_code == 1
    assert f"--plot {plot}: there is nothing to draw" in done.output


def test_models_of_other_slices(inputs: Path) -> None:
    """A model that stands in other slices than the first is said to be left out of the look."""

    def of(model: str, start: int) -> dict[str, Any]:
        ends = [start, start + 2]
        listed = [inputs / "base", inputs / model]
        return {"sources": [{"model": one, "layer_range": ends} for one in listed]}

    words = {
        "merge_method": "lines",
        "base_model": inputs / "base",
        "slices": [of("a", 0), of("b", 2)],
        "parameters": {"alpha": 0.2, "beta": 0.9},
    }
    path = inputs / "slices.yml"
    path.write_text(recipe_text(words), encoding="utf-8")
    done = CliRunner().invoke(main, ["inspect", str(path), "--deep", "--json"])
    assert done.exit_code == 0, done.output
    (document,) = json.loads(done.stdout)["documents"]
    left_out, unseen = document["troubles"]
    assert "tensors were not looked at" in left_out
    (first,) = document["deep"]["models"]
    other = ({str(inputs / "a"), str(inputs / "b")} - {first}).pop()
    assert unseen == f"{other}: was not looked at, for it stands in other slices than {first}"


@pytest.mark.parametrize("which", ["base", "a"])
def test_a_tokenizer_that_cannot_be_loaded(which: str, planted: Path) -> None:
    """It is told, and refuses nothing: the merge does not load it."""
    for name in ("base", "a", "b"):
        models.save_tokenizer(planted / name, vocab=120)
    (planted / which / "tokenizer.json").write_text("{}", encoding="utf-8")
    document = looked(planted)
    assert document["problems"] == []
    (sentence,) = document["troubles"]
    assert sentence.startswith(f"tokenizer: the one of model {planted / which} cannot be loaded")


def test_a_misspelt_method_is_no_mergekit_method(inputs: Path) -> None:
    """The nearest name is told of a merge method that nobody has registered."""
    done = inspect(inputs, merge_method="Cart")
    assert done.exit_code == 1
    sentence = "merge_method: found 'Cart', which nobody has registered. Did you mean 'cart'?"
    assert sentence in done.output


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    """What is stored in other dtypes is looked at as its numbers are."""
    base = models.llama(tmp_path / "base", dtype=dtype)
    for number, name in enumerate("ab"):
        models.finetuned(base, tmp_path / name, seed=number, scale=0.05)
    document = looked(tmp_path)
    assert document["troubles"] == []
    origin, tuned = models.read(base), models.read(tmp_path / "a")
    square = sum(float((tuned[n].double() - origin[n].double()).square().sum()) for n in origin)
    assert document["deep"]["total"]["changes"][0] == pytest.approx(square**0.5, rel=1e-4)


def test_threads_change_no_number(inputs: Path) -> None:
    """One thread and three give the same report."""
    one, three = (inspect(inputs, "--json", "--num-threads", n).stdout for n in ("1", "3"))
    assert json.loads(one)["documents"][0]["deep"] == json.loads(three)["documents"][0]["deep"]


def test_tables_picture_and_page(planted: Path) -> None:
    """The text has a row per block; the page holds table, warning and picture and loads nothing."""
    no_update(planted)
    name = "<script>alert(1)</script>"
    shutil.move(planted / "b", planted / "b<i>")
    files = [planted / "look.png", planted / f"{name.replace('/', '')}.html"]
    listed = [{"model": planted / "a"}, {"model": planted / "b<i>"}]
    done = inspect(planted, "--plot", str(files[0]), "--page", str(files[1]), models=listed)
    assert done.exit_code == 0, done.output
    assert re.search(r"^2 +0\.5 +0\.000% +\d\.\d{3}% ", done.stdout, re.MULTILINE)
    assert "warning: " in done.stdout
    assert "the coefficients keep" in done.stdout
    assert files[0].read_bytes().startswith(b"\x89PNG")
    page = files[1].read_text(encoding="utf-8")
    assert "is identical to the base" in page
    assert "b&lt;i&gt;" in page
    assert "b<i>" not in page
    assert "data:image/png;base64," in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_usage(inputs: Path) -> None:
    """A page without the look, or of another kind of file, is wrong usage."""
    run = CliRunner().invoke
    recipe = str(inputs / "recipe.yml")
    for flags in (["--page", "look.html"], ["--deep", "--page", "look.pdf"]):
        done = run(main, ["inspect", recipe, *flags])
        assert done.exit_code == 2
        assert "FILE.html, together with --deep" in done.output


def test_a_page_that_cannot_be_written(inputs: Path) -> None:
    """A folder that is not there is told in words, after the tables."""
    done = inspect(inputs, "--page", str(inputs / "none" / "look.html"))
    assert done.exit_code == 1
    assert "look.html: cannot be written (No such file or directory)." in done.output
    assert "Traceback" not in done.output


def test_a_page_without_matplotlib(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named, and no page is left."""
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    page = tmp_path / "look.html"
    done = inspect(inputs, "--page", str(page))
    assert done.exit_code == 1
    assert "pip install 'mergekit-lines[plot]'" in done.output
    assert not page.exists()
