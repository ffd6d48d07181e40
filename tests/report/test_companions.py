"""Which files of a model's folder go with what is merged from it, and which are refused."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from mergekit_lines.errors import LinesError
from mergekit_lines.report import companions as listing
from mergekit_lines.report.companions import companions
from tests.models import POINTER

TRAVELS = [
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("image_processor_config.json", "chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "normalizer.json", "added_tokens.json", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "source.spm"),
    *("sentencepiece.bpe.model", "multilingual.tiktoken", "labels.txt", "label_map.json"),
    *("config_sentence_transformers.json", "sentence_bert_config.json", "mel.npy"),
    *("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"),
]
STAYS = [
    *("model.safetensors", "MODEL-2.SAFETENSORS", "pytorch_model.bin", "x.pt", "x.pth", "x.ckpt"),
    *("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx", "model.onnx_data"),
    *("model.gguf", "weights.npz", "model.pkl", "consolidated.00.pth", "params.json"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json", "x.index.fp16.json"),
    *("openvino_model.xml", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"),
    *("trainer_state.json", "training_args.bin", "training_args.json", "all_results.json"),
    *("events.out.tfevents.1", "train.log", "latest", "adapter_config.json"),
    *("README.md", "Readme.MD", "results.json", "picture.png", "clip.mp4", "paper.pdf"),
    *("config.json", "config.json.whole", "lines_report.json", "mergekit_config.yml"),
    *("mergekit-lines.partial", "partial-model.safetensors", "a.writing"),
    *(".gitattributes", ".env", "setup.py"),
]
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}


def modules(folder: Path, *entries: Any) -> None:
    (folder / "modules.json").write_text(json.dumps(entries))


def names(folder: Path) -> list[str]:
    return [one.name for one in companions(folder)[0]]


def refusal(folder: Path) -> str:
    with pytest.raises(LinesError) as caught:
        companions(folder)
    return str(caught.value)


def test_what_travels_by_its_name(tmp_path: Path) -> None:
    """Settings, tokens, templates, labels and licences do; weights, leavings, the card do not."""
    for name in [*TRAVELS, *STAYS]:
        (tmp_path / name).write_text("{}")
    assert sorted(names(tmp_path)) == sorted(TRAVELS)


def test_folders_that_have_names_of_their_own(tmp_path: Path) -> None:
    """Templates and generation code come along; other folders, weights in them or not, stay."""
    for folder in ("additional_chat_templates", "custom_generate", "onnx", "original", "1_Pooling"):
        (tmp_path / folder / "below").mkdir(parents=True)
        (tmp_path / folder / "below" / "a.jinja").write_text("{}")
    assert names(tmp_path) == [
        *("additional_chat_templates", "additional_chat_templates/below/a.jinja"),
        *("custom_generate", "custom_generate/below/a.jinja"),
    ]


def test_folders_of_modules_come_whole(tmp_path: Path) -> None:
    """With weights of their own, empty or nested; but for what is hidden."""
    for name in ("1_Pooling/config.json", "2_Dense/a/b.bin", "2_Dense/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("2_Dense/.cache/x", "2_Dense/__pycache__/y.pyc", "2_Dense/.gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "3_Normalize").mkdir()
    (tmp_path / "4_Other").mkdir()
    modules(
        tmp_path,
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        POOLING,
        *({"type": "a.b.Dense", "path": path} for path in ("2_Dense/", "./3_Normalize", "9_No")),
        {"type": "a.b.Normalize", "path": "8_Normalize"},
    )
    out = tmp_path / "out"
    files, notes = companions(tmp_path)
    out.mkdir()
    for one in files:
        one.copy(out)
    copied = {path.relative_to(out).as_posix(): path for path in out.rglob("*")}
    whole = {"1_Pooling/config.json", "2_Dense/a/b.bin", "2_Dense/model.safetensors"}
    assert copied.keys() == whole | {
        *("modules.json", "1_Pooling", "2_Dense", "2_Dense/a", "3_Normalize"),
    }
    assert all(copied[name].read_text() == name for name in whole)
    absent, weights = notes
    assert absent == f"{tmp_path}: modules.json names 9_No, which is not there"
    assert "2_Dense/a/b.bin, 2_Dense/model.safetensors are carried as they are" in weights


@pytest.mark.parametrize(
    "path", ["../x", "/etc", "a/../../x", ".git", "model.safetensors", "a\\b", "a\nb", "a\u202eb"]
)
def test_a_module_outside_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    """Ways out, hidden folders, names of shards and names that cannot be shown."""
    modules(tmp_path, {"type": "a.b.Dense", "path": path})
    assert "wanted one of a plain name below the model's own" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 1000, "\xff", '["\\udcff"]'])
def test_modules_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    """What is no JSON names no folders, and its model would be half."""
    (tmp_path / "modules.json").write_bytes(text.encode("latin-1"))
    assert "modules.json: cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("content", [{}, 7, None, ["a"], [{"path": None}], [{"path": "."}]])
def test_modules_that_name_no_folder(tmp_path: Path, content: Any) -> None:
    """The file goes along by itself."""
    (tmp_path / "modules.json").write_text(json.dumps(content))
    assert names(tmp_path) == ["modules.json"]


def test_what_is_no_file_in_a_module_is_refused(tmp_path: Path) -> None:
    """Pipes, sockets, pointers of git-lfs, links outwards and links to folders."""
    model, pooling = tmp_path / "model", tmp_path / "model" / "1_Pooling"
    pooling.mkdir(parents=True)
    modules(model, POOLING)
    (pooling / "config.json").write_text("{}")
    os.mkfifo(pooling / "pipe")
    assert "it is a pipe, wanted a regular file" in refusal(model)
    (pooling / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(pooling)  # the path of a socket may not be long
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    assert "it is a socket" in refusal(model)
    (pooling / "socket").unlink()
    (pooling / "model.safetensors").write_text(POINTER)
    assert "is a git-lfs pointer" in refusal(model)
    (pooling / "model.safetensors").unlink()
    (tmp_path / "secret").write_text("PRIVATE KEY")
    (pooling / "key").symlink_to("../../secret")
    assert "key is a link that leads out" in refusal(model)
    (pooling / "key").unlink()
    (pooling / "real").mkdir()
    (pooling / "again").symlink_to("real")
    assert "again: is a link to a folder" in refusal(model)
    (pooling / "again").unlink()
    (pooling / "a\nb").write_text("")
    assert "wanted a name of letters that can be shown" in refusal(model)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """A snapshot holds links to blobs by digest, in folders too; copies are plain files."""
    cache = tmp_path / "models--org--name"
    snapshot, blob = cache / "snapshots" / ("c" * 40), cache / "blobs" / ("1" * 40)
    (snapshot / "1_Pooling").mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_text(json.dumps([POOLING]))
    (snapshot / "modules.json").symlink_to(f"../../blobs/{blob.name}")
    (snapshot / "1_Pooling" / "config.json").symlink_to(f"../../../blobs/{blob.name}")
    out = tmp_path / "out"
    out.mkdir()
    for one in companions(snapshot)[0]:
        one.copy(out)
    for name in ("modules.json", "1_Pooling/config.json"):
        assert not (out / name).is_symlink()
        assert json.loads((out / name).read_text()) == [POOLING]


def test_large_files_stay_and_are_told(tmp_path: Path) -> None:
    """64 MiB are the most of one, 256 MiB of all; smaller ones behind a large one still come."""
    sizes = {"a.txt": (64 << 20) + 1, **{f"b{number}.txt": 60 << 20 for number in range(5)}}
    for name, size in {**sizes, "c.txt": 16 << 20}.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    files, (note,) = companions(tmp_path)
    assert [one.name for one in files] == ["b0.txt", "b1.txt", "b2.txt", "b3.txt", "c.txt"]
    assert note.startswith(f"{tmp_path}: a.txt, b4.txt stay behind")


def test_names_that_cannot_be_shown_are_told(tmp_path: Path) -> None:
    """A file whose name is the only thing against it stays behind, and a line says so."""
    for name in ("a\x1b[2J.json", "vocab\u202e.txt", "win\\dows.json", "model\n.bin", ".x\x07"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "labels.txt").write_text("{}")
    files, (note,) = companions(tmp_path)
    assert [one.name for one in files] == ["labels.txt"]
    assert "a\x1b[2J.json, vocab\u202e.txt, win\\dows.json stay behind" in note
    assert "letters that can be shown" in note


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", None])
def test_a_transformer_in_a_module_of_its_own_is_refused(
    weights: str | None, tmp_path: Path
) -> None:
    """Its weights would come along unmerged, and SentenceTransformer(OUT) would load them."""
    modules(
        tmp_path,
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        POOLING,
    )
    for name, config in (("0_Transformer", {"architectures": ["BertModel"]}), ("1_Pooling", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    if weights is None:  # nothing of it could be loaded in the place of what is merged
        assert "0_Transformer/config.json" in names(tmp_path)
        return
    (tmp_path / "0_Transformer" / weights).write_text("x")
    text = refusal(tmp_path)
    assert "0_Transformer holds a transformer of its own" in text
    assert f"Name {tmp_path / '0_Transformer'} as the model" in text


def test_folders_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of more than 1 GiB, or of more than 1,000 files, are no small part of a model."""
    (tmp_path / "1_Pooling").mkdir()
    modules(tmp_path, POOLING)
    with (tmp_path / "1_Pooling" / "x.bin").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "2 files of 1,073,741,825 bytes" in refusal(tmp_path)
    (tmp_path / "1_Pooling" / "x.bin").unlink()
    monkeypatch.setattr(listing, "MOST_FILES", 3)
    for name in "abc":
        (tmp_path / "1_Pooling" / name).touch()
    assert "4 files of 0 bytes, wanted at most 3" in refusal(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the merge, by name: at its end that would be late."""
    (tmp_path / "labels.txt").write_text("a")
    (tmp_path / "labels.txt").chmod(0)
    if os.access(tmp_path / "labels.txt", os.R_OK):  # root may read whatever it likes
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "labels.txt")
    assert "labels.txt: may not be read" in refusal(tmp_path)
