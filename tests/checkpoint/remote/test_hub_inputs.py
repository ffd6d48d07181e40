"""Models on the Hub as inputs: no network, no room, and what of a model is needed."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from mergekit.common import ModelReference
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint import room
from mergekit_lines.checkpoint.remote.downloads import hub_models
from mergekit_lines.checkpoint.remote.headers import HubHeaders, RemoteHeaders, remote_headers
from mergekit_lines.checkpoint.room import check_room
from mergekit_lines.errors import LinesError
from mergekit_lines.hub.parcel import PushOptions
from mergekit_lines.hub.push import reach
from mergekit_lines.plan.inputs import check_models
from tests.hub import Hub, point_at
from tests.report.test_card import parsed, recipe

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def hub(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("published") / "base"
    shutil.copytree(llama_base, folder)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "notes.md"):
        shutil.copy(folder / "model.safetensors", folder / name)
    with Hub({"org/base": folder}) as hub:
        yield hub


@pytest.fixture
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    point_at(hub.url, monkeypatch)
    return hub


def test_what_is_needed(online: Hub, tmp_path: Path) -> None:
    """The weights once, and every small file beside them, with the bytes that are missing here."""
    found = remote_headers("org/base", None, str(tmp_path))
    assert isinstance(found, RemoteHeaders) and not found.problems
    assert found.commit == online.state()["repos"]["org/base"]["log"][0]["sha"]
    assert set(found.files) == {
        *("config.json", "generation_config.json", "model.safetensors", "notes.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert found.files["model.safetensors"] == online.files("org/base")["model.safetensors"][0]


def test_no_room(online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and output are counted together where they go to one disk."""
    options = MergeOptions(transformers_cache=str(tmp_path / "cache"))
    found = remote_headers("org/base", None, options.transformers_cache)
    assert isinstance(found, HubHeaders)
    on_hub = hub_models({ModelReference.parse("org/base"): found})
    size = sum(found.files.values())
    partial = tmp_path / ".out.partial"
    for output, free, refused in ((1000, size + 1000, False), (1000, size + 999, True)):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        if not refused:
            check_room(on_hub, output, partial, options)
            continue
        with pytest.raises(LinesError) as told:
            check_room(on_hub, output, partial, options)
        for phrase in (f"{size:,} bytes", f"{output:,} on the same disk", f"{free:,} free", "HF_"):
            assert phrase in str(told.value)
    assert not (tmp_path / "cache").exists()


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where nobody answers, and a network that is not to be used."""
    point_at("http://127.0.0.1:9", monkeypatch)
    config = parsed(recipe("org/nowhere", "org/neither"))
    told = [str(problem) for problem in check_models(config, MergeOptions())]
    assert len(told) == 2
    for text in told:
        assert "cannot be reached" in text and "127.0.0.1:9" in text and "network" in text
    (problem,) = remote_headers("org/nowhere", None, str(tmp_path)).problems
    assert "cannot be reached" in problem
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(LinesError, match="cannot be reached"):
        reach(PushOptions("user/model"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LinesError, match="HF_HUB_OFFLINE is set"):
        reach(PushOptions("user/model"))


def test_no_token(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is read: none at all, and one that the Hub does not know."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(LinesError, match="found no token"):
        reach(PushOptions("user/model"))
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(LinesError, match="hf auth login") as told:
        reach(PushOptions("user/model"))
    assert "hf_unknown" not in str(told.value)
    with pytest.raises(LinesError, match="wanted USER/NAME"):
        PushOptions("model")
