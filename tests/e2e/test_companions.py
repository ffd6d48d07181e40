"""Merged models are used as their inputs are: processors, sentence encoders, odd tokenizers.

The oracle is what was written into the inputs' own files, sentence-transformers, which loads OUT,
and embeddings computed by hand from the merged weights.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from mergekit_lines import LinesError
from tests import models
from tests.e2e import runner
from tests.e2e.runner import in_process
from tests.e2e.test_carried import TEMPLATE, edit, write_json
from tests.e2e.test_traps import recipe
from tests.hub import Hub

SENTENCES = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9 w1 w2"]


def sentence_encoder(path: Path) -> Path:
    """A BERT with mean pooling, a dense layer and normalisation, in sentence-transformers' form."""
    config = models.bert_config(layers=3)
    models.save("BertModel", config, path, tokenizer=True)
    kind = "sentence_transformers.models"
    steps = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")
    listed = [
        {"idx": number, "name": str(number), "path": folder, "type": f"{kind}.{name}"}
        for number, (name, folder) in enumerate((*steps, ("Normalize", "3_Normalize")))
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    write_json(path / "sentence_bert_config.json", max_seq_length=48, do_lower_case=False)
    write_json(path / "config_sentence_transformers.json", prompts={"query": "w9 "})
    for folder in ("1_Pooling", "2_Dense"):
        (path / folder).mkdir()
    write_json(
        path / "1_Pooling" / "config.json",
        word_embedding_dimension=32,
        pooling_mode_mean_tokens=True,
        pooling_mode_cls_token=False,
    )
    write_json(
        path / "2_Dense" / "config.json",
        in_features=32,
        out_features=8,
        bias=True,
        activation_function="torch.nn.modules.activation.Tanh",
    )
    generator = torch.Generator().manual_seed(5)
    dense = {
        "linear.weight": torch.randn(8, 32, generator=generator),
        "linear.bias": torch.randn(8, generator=generator),
    }
    models.safetensors.torch.save_file(dense, path / "2_Dense" / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A sentence encoder, and two that were fine-tuned from it."""
    folder = tmp_path_factory.mktemp("encoders")
    base = sentence_encoder(folder / "base")
    tuned = (
        models.finetuned(base, folder / name, seed=n, scale=0.5) for n, name in enumerate("ab")
    )
    return base, *tuned


def files_below(folder: Path, *tops: str) -> dict[str, bytes]:
    """Return the contents of some files and folders of a model."""
    paths = (path for top in tops for path in [folder / top, *(folder / top).rglob("*")])
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.is_file()}


STEPS = (
    *("modules.json", "1_Pooling", "2_Dense"),
    *("sentence_bert_config.json", "config_sentence_transformers.json"),
)


def by_hand(out: Path) -> torch.Tensor:
    """Return the sentences' embeddings: mean over tokens, dense layer, tanh, unit length."""
    model, tokenizer = BertModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    dense = models.safetensors.torch.load_file(out / "2_Dense" / "model.safetensors")
    rows = []
    for text in SENTENCES:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].double().mean(0)
        value = torch.tanh(dense["linear.weight"].double() @ mean + dense["linear.bias"].double())
        rows.append(value / value.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["lines", "lines_postprocess"])
def test_a_sentence_encoder_stays_one(
    method: str, encoders: tuple[Path, Path, Path], server: runner.ForkServer, tmp_path: Path
) -> None:
    """mergekit-yaml's OUT loads with SentenceTransformer and embeds as its merged weights say."""
    base, first, second = encoders
    text = (
        edit(base, first)
        if method == "lines_postprocess"
        else recipe(base, first, second, wrap="task_arithmetic", weight=0.5)
    )
    result = runner.mergekit_yaml(text, "out", cwd=tmp_path, server=server).succeeded()
    out = tmp_path / "out"
    carried = files_below(out, *STEPS)
    assert carried == files_below(base, *STEPS)
    assert len(carried) == 6
    assert "2_Dense/model.safetensors are carried as they are" in result.stderr
    assert models.weights_digest(out) != models.weights_digest(base)
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(out), device="cpu")
    embeddings = torch.tensor(encoder.encode(SENTENCES))
    torch.testing.assert_close(embeddings.double(), by_hand(out), rtol=0, atol=1e-5)
    assert (encoder.max_seq_length, encoder.prompts["query"]) == (48, "w9 ")
    unmerged = torch.tensor(library.SentenceTransformer(str(base), device="cpu").encode(SENTENCES))
    assert (unmerged - embeddings).abs().max() > 0.01


def test_an_edit_takes_the_steps_of_the_edited_model(
    encoders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Pooling and dense layer come from the model; none of the base's comes beside them."""
    base, tuned = encoders[0], shutil.copytree(encoders[1], tmp_path / "tuned")
    write_json(tuned / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    listed = json.loads((tuned / "modules.json").read_text())
    (tuned / "modules.json").write_text(json.dumps(listed[:2]))
    (tuned / "sentence_bert_config.json").unlink()
    out = in_process(edit(base, tuned), tmp_path / "out")
    assert files_below(out, *STEPS) == files_below(
        tuned, "modules.json", "1_Pooling", "config_sentence_transformers.json"
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = models.llama(tmp_path / "base")
    return base, models.finetuned(base, tmp_path / "tuned", seed=1)


def test_a_processor_is_one_models(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An edited model's processor comes without the base's older files; labels come from both."""
    base, tuned = pair
    write_json(base / "preprocessor_config.json", size=1)
    write_json(base / "video_preprocessor_config.json", size=1)
    write_json(tuned / "processor_config.json", size=2)
    (base / "labels.txt").write_text("base")
    (base / "LICENSE").write_text("base's")
    (tuned / "labels.txt").write_text("tuned")
    (tuned / "README.md").write_text("not this one")
    out = in_process(edit(base, tuned), tmp_path / "edited")
    assert json.loads((out / "processor_config.json").read_text()) == {"size": 2}
    assert not list(out.glob("*preprocessor*"))
    assert (out / "labels.txt").read_text() == "tuned"
    assert (out / "LICENSE").read_text() == "base's"
    assert "not this one" not in (out / "README.md").read_text()
    with caplog.at_level(logging.INFO):
        out = in_process(recipe(base, tuned), tmp_path / "merged")
    (line,) = [entry for entry in caplog.messages if "OUT carries" in entry]
    assert f"settings of {base}, and not this model's size 2." in line
    assert sorted(path.name for path in out.glob("*processor*")) == [
        *("preprocessor_config.json", "video_preprocessor_config.json"),
    ]
    assert (out / "labels.txt").read_text() == "base"


def test_a_transformer_below_a_sentence_encoder_is_named(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where modules.json keeps the transformer in a folder of its own, that is to be merged."""
    base, tuned = pair
    (tmp_path / "encoder").mkdir()
    shutil.copytree(tuned, tmp_path / "encoder" / "0_Transformer")
    write_json(tmp_path / "encoder" / "modules.json")
    with pytest.raises(LinesError, match=r"By its modules\.json the transformer is in a folder"):
        in_process(recipe(base, tmp_path / "encoder"), tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "flags", "expected"),
    [
        ({}, {}, {"vocab.txt", "merges.txt", "chat_template.json", "spiece.model"}),
        ({"chat_template": TEMPLATE}, {}, {"vocab.txt", "merges.txt", "spiece.model"}),
        ({"tokenizer": {"source": "union"}}, {}, {"chat_template.json"}),
        ({"tokenizer_source": "base"}, {}, {"chat_template.json"}),
        ({}, {"copy_tokenizer": False}, set()),
    ],
    ids=["copied", "template", "union", "source", "none"],
)
def test_nothing_stale_beside_a_tokenizer(
    more: dict[str, Any],
    flags: dict[str, Any],
    expected: set[str],
    pair: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """The base's vocabulary comes with its tokenizer, and not beside one that is built anew."""
    base, tuned = pair
    for name in ("vocab.txt", "merges.txt", "chat_template.json", "spiece.model"):
        (base / name).write_text("{}")
    (base / "normalizer.json").write_text("{}")
    out = in_process({**recipe(base, tuned), **more}, tmp_path / "out", **flags)
    left = {"vocab.txt", "merges.txt", "chat_template.json", "spiece.model"}
    assert {path.name for path in out.iterdir()} & left == expected
    assert (out / "normalizer.json").exists()


def test_an_edited_models_vocabulary_is_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Where the edited model has a tokenizer, no file of the base's comes beside it."""
    base, tuned = pair
    for name in ("vocab.txt", "merges.txt"):
        (base / name).write_text("base")
    (tuned / "vocab.txt").write_text("tuned")
    out = in_process(edit(base, tuned), tmp_path / "out")
    assert (out / "vocab.txt").read_text() == "tuned"
    assert not (out / "merges.txt").exists()


def test_into_a_folder_with_other_things(encoders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Module folders are moved beside what OUT holds; one of the same name is in the way."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    in_process(edit(*encoders[:2]), out)
    assert files_below(out, *STEPS) == files_below(encoders[1], *STEPS)
    assert (out / "notes.txt").read_text() == "mine"
    clash = tmp_path / "clash"
    (clash / "1_Pooling").mkdir(parents=True)
    with pytest.raises(Exception, match="1_Pooling is there already"):
        in_process(edit(*encoders[:2]), clash)
    (clash / "1_Pooling").rmdir()
    (clash / "other").touch()
    in_process(edit(*encoders[:2]), clash)
    assert files_below(clash, *STEPS) == files_below(encoders[1], *STEPS)


def test_what_a_module_may_not_be(
    encoders: tuple[Path, Path, Path], server: runner.ForkServer, tmp_path: Path
) -> None:
    """It is refused before the merge, and nothing is left of it."""
    base = shutil.copytree(encoders[0], tmp_path / "base")
    (tmp_path / "secret").write_text("PRIVATE KEY")
    (base / "1_Pooling" / "key").symlink_to("../../secret")
    with pytest.raises(Exception, match="key is a link that leads out"):
        in_process(recipe(base, *encoders[1:]), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "secret"]
    (tmp_path / "recipe.yml").write_text(runner.recipe_text(recipe(base, *encoders[1:])))
    inspected = server.run(["mergekit-lines", "inspect", "recipe.yml"], tmp_path, tmp_path)
    assert inspected.returncode == 1
    assert "key is a link that leads out" in inspected.stderr


def test_a_full_disk_under_the_last_file(
    encoders: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence about the disk; the weights are kept, and carried files come once and whole."""
    base, first, _ = encoders
    out, copyfile = tmp_path / "out", shutil.copyfile

    def full(source: Path, target: Path, **more: Any) -> Path:
        if Path(source).name == "model.safetensors":
            Path(target).write_bytes(Path(source).read_bytes()[:9])
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copyfile(source, target, **more)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(LinesError, match="the disk is full"):
            in_process(edit(base, first), out)
    assert not out.exists()
    kept = [path.name for path in (tmp_path / ".out.partial").glob("*.safetensors")]
    assert kept == ["partial-model.safetensors"]
    in_process(edit(base, first), out)
    assert files_below(out, *STEPS) == files_below(first, *STEPS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def hub(encoders: tuple[Path, Path, Path]) -> Iterator[Hub]:
    with Hub({f"org/{path.name}": path for path in encoders}) as running:
        yield running


def test_models_on_the_hub(hub: Hub, encoders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Their small files are downloaded and carried as those on the disk are."""
    models_there = [{"model": "org/a"}, {"model": "org/b"}]
    text = {**recipe(*encoders), "base_model": "org/base", "models": models_there}
    env = hub.environment(tmp_path / "home")
    runner.mergekit_yaml(text, "out", cwd=tmp_path, env=env).succeeded()
    assert files_below(tmp_path / "out", *STEPS) == files_below(encoders[0], *STEPS)
