"""Links that lead out of a model's folder are refused; those of the Hub's cache are its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.stand_ins import outward_links
from mergekit_lines.plan.inputs import check_models
from tests.report.test_card import parsed, recipe


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file that is nobody's business."""
    path = tmp_path / "home" / "id_ed25519"
    path.parent.mkdir()
    path.write_text("PRIVATE KEY")
    return path


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "notes.txt"])
def test_a_link_in_an_input(llama_base: Path, tmp_path: Path, key: Path, name: str) -> None:
    """A cloned base may bring a link in; it is refused whatever file it stands for."""
    folder = shutil.copytree(llama_base, tmp_path / "cloned")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(key)
    (problem,) = map(
        str, check_models(parsed(recipe(f"{folder}", f"{llama_base}")), MergeOptions())
    )
    assert f"{folder}: {name} is a link that leads out of this folder" in problem
    assert "cp -L" in problem


def test_a_link_in_an_adapter(llama_base: Path, tmp_path: Path, key: Path) -> None:
    """An adapter's folder is a stranger's as well."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").symlink_to(key)
    config = parsed(recipe(f"{llama_base}", f"{llama_base}+{folder}"))
    (problem,) = map(str, check_models(config, MergeOptions()))
    assert "adapter_model.safetensors is a link that leads out" in problem


def test_ways_out(tmp_path: Path, key: Path) -> None:
    """By an absolute path, by dots, over a second link, by a folder, to nothing."""
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    (folder / "a").symlink_to(key)
    (folder / "b").symlink_to("../home/id_ed25519")
    (folder / "c").symlink_to("b")
    (folder / "d").symlink_to(key.parent)
    (folder / "e").symlink_to("../nowhere")
    (folder / "below" / "f").symlink_to("../../home/id_ed25519")
    assert "a, b, c and 2 more are links" in outward_links(folder)[0]
    for name in "abcde":
        (folder / name).unlink()
    assert outward_links(folder) == []
    assert "below/f is a link" in outward_links(folder, below=True)[0]


def test_what_may_be_a_link(tmp_path: Path) -> None:
    """A link within the folder, the folder itself, and a snapshot of the Hub's cache."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("a")
    (folder / "b").symlink_to("a")
    (tmp_path / "link").symlink_to(folder)
    assert outward_links(tmp_path / "link") == []
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    for digest in ("1" * 40, "2" * 64):
        (snapshot / digest[:1]).symlink_to(f"../../blobs/{digest}")
    assert outward_links(snapshot) == []
    (snapshot / "3").symlink_to("../../blobs/../refs/main")
    assert "3 is a link" in outward_links(snapshot)[0]
