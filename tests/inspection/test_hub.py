"""Models on the Hub are inspected by the heads of their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import models as make
from tests import shaped
from tests.e2e import runner
from tests.hub import Hub
from tests.inspection.command import write


def test_hub(tmp_path: Path) -> None:
    """Of models on the Hub only configs, indexes and the heads of the shards are fetched."""
    published = shaped.LLAMA
    for name in ("base", "tuned"):
        folder = shaped.write(
            tmp_path / name, published.config, published.shapes, "F16", 5_000_000_000
        )
        make.save_tokenizer(folder)
    document = {
        "merge_method": "lines_postprocess",
        "base_model": "org/base",
        "models": [{"model": "org/tuned"}],
        "parameters": {"gamma": 0.3},
    }
    path = write(tmp_path, document)
    with Hub({"org/base": tmp_path / "base", "org/tuned": tmp_path / "tuned"}) as hub:
        result = runner.run(
            ["mergekit-lines", "inspect", path, "--json"],
            tmp_path,
            hub.environment(tmp_path / "home"),
        )
    found = json.loads(result.succeeded().stdout)["documents"][0]
    assert found["totals"]["parameters"] == published.parameters
    assert found["totals"]["download"] == 4 * published.parameters
    shards = {file: sent for file, sent in hub.sent.items() if file.endswith(".safetensors")}
    assert len(shards) == 2 * 3
    assert max(shards.values()) <= 100_001  # of 5 GB; what huggingface_hub asks for first
    assert not [
        line
        for line in hub.requests
        if "safetensors" in line and "GET" in line and "index" not in line and "bytes=" not in line
    ]
    assert sum(hub.sent.values()) < 1_000_000


@pytest.mark.parametrize(
    ("model", "gated", "wanted"),
    [
        ("org/closed", ("org/closed",), ("org/closed", "hf auth login")),
        ("org/none", (), ("org/none", "no such")),
        ("org/tuned@nowhere", (), ("org/tuned@nowhere", "revision")),
        ("org/empty", (), ("org/empty", "no model.safetensors", "Check the name")),
        ("org/outside", (), ("org/outside", "outside", "Do not use")),
        ("org/cut", (), ("org/cut", "headers", "Check")),
    ],
)
def test_hub_refusals(
    model: str,
    gated: tuple[str, ...],
    wanted: tuple[str, ...],
    tmp_path: Path,
    llama_a: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that the Hub does not give is told with the cause and what to do."""
    from huggingface_hub import constants

    from mergekit_lines.checkpoint.remote.headers import remote_headers

    for name in ("closed", "tuned", "outside", "empty", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\x00" * 4)
    index = {"weight_map": {"a": "../x.safetensors"}}
    (tmp_path / "outside" / make.INDEX).write_text(json.dumps(index))
    for name in ("closed", "tuned"):
        weights = (llama_a / "model.safetensors").read_bytes()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    names = {f"org/{path.name}": path for path in tmp_path.iterdir()}
    with Hub(names, gated) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        repo, _, revision = model.partition("@")
        found = remote_headers(repo, revision or None, str(tmp_path / "cache"))
    (problem,) = found.problems
    assert all(phrase in problem for phrase in wanted), problem
