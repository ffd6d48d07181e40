"""The tests' own Hub, asked by huggingface_hub's real client: it refuses what the real one does."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import Hub, point_at

# httpx deprecates what huggingface_hub does when it sends a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CARD = b"---\nlicense: mit\nbase_model:\n- org/base\n---\n# x\n"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.user("user", "hf_write")
        hub.user("user", "hf_read", write=False)
        hub.user("guest", "hf_guest", granted=("org/gated",))
        yield hub


@pytest.fixture(autouse=True)
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(hub.url, monkeypatch)


def api(hub: Hub, token: str | bool = "hf_write") -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_a_model_comes_and_goes(hub: Hub, tmp_path: Path) -> None:
    """Made, filled in one commit, read back in pieces; a large file is sent once only."""
    client = api(hub)
    assert client.whoami()["name"] == "user"
    client.create_repo("user/model", exist_ok=True)
    client.create_repo("user/model", exist_ok=True)
    weights = os.urandom(300_000)
    files = {"model.safetensors": weights, "README.md": CARD, "config.json": b"{}"}
    adds = [CommitOperationAdd(name, content) for name, content in files.items()]
    client.preupload_lfs_files("user/model", adds[:1], free_memory=False)
    assert "model.safetensors" not in hub.files("user/model")
    head = client.model_info("user/model").sha
    client.create_commit("user/model", adds, commit_message="all", parent_commit=head)
    assert set(hub.files("user/model")) == {".gitattributes", *files}
    assert hub.files("user/model")["model.safetensors"][0] == 300_000
    assert list(hub.state()["received"].values()) == [300_000]
    again = [CommitOperationAdd("copy.safetensors", weights), CommitOperationDelete("config.json")]
    with pytest.raises(HfHubHTTPError) as refused:  # somebody else was faster
        client.create_commit("user/model", again, commit_message="b", parent_commit=head)
    assert refused.value.response.status_code == 412
    again = [CommitOperationAdd("copy.safetensors", weights), CommitOperationDelete("config.json")]
    client.create_commit("user/model", again, commit_message="b")
    assert list(hub.state()["received"].values()) == [300_000]
    assert client.list_repo_files("user/model", revision=head) == [".gitattributes"]
    folder = Path(client.snapshot_download("user/model", cache_dir=tmp_path))
    assert (folder / "copy.safetensors").read_bytes() == weights
    # Large files are named by their SHA-256, and come and go without the token.
    assert len((folder / "copy.safetensors").resolve().name) == 64
    tokens = hub.state()["tokens"]
    assert {entry for entry in tokens if entry.startswith(("PUT", "/_cdn"))} == {"PUT ", "/_cdn "}
    request = urllib.request.Request(f"{hub.url}/user/model/resolve/main/copy.safetensors")
    request.add_header("Range", "bytes=8-15")
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (206, weights[8:16])
    info = client.model_info("user/model", files_metadata=True)
    assert {entry.rfilename: entry.size for entry in info.siblings or []}["README.md"] == len(CARD)
    assert info.card_data is not None and info.card_data.license == "mit"


def test_branches_and_pull_requests(hub: Hub) -> None:
    """A branch has files of its own; a pull request shows on its own reference only."""
    client = api(hub)
    client.create_repo("user/branches", private=True)
    client.create_branch("user/branches", branch="dev/x", exist_ok=True)
    client.create_branch("user/branches", branch="dev/x", exist_ok=True)
    add = [CommitOperationAdd("a.txt", b"a")]
    client.create_commit("user/branches", add, commit_message="a", revision="dev/x")
    assert "a.txt" in client.list_repo_files("user/branches", revision="dev/x")
    add = [CommitOperationAdd("b.txt", b"b")]
    done = client.create_commit("user/branches", add, commit_message="b", create_pr=True)
    assert done.pr_revision == "refs/pr/1"
    assert "b.txt" in client.list_repo_files("user/branches", revision="refs/pr/1")
    assert client.list_repo_files("user/branches") == [".gitattributes"]
    refs = client.list_repo_refs("user/branches", include_pull_requests=True)
    assert {branch.name for branch in refs.branches} == {"main", "dev/x"}
    with pytest.raises(RevisionNotFoundError):
        client.model_info("user/branches", revision="nowhere")
    with pytest.raises(RepositoryNotFoundError):  # it is private
        api(hub, False).model_info("user/branches")


def test_who_may_do_what(hub: Hub, tmp_path: Path) -> None:
    """No token, a wrong one, one that only reads, another's name, a gated model."""
    for token, status in (("hf_read", 403), ("hf_wrong", 401), (False, 401), ("hf_guest", 403)):
        with pytest.raises(HfHubHTTPError) as refused:
            api(hub, token).create_repo("user/other")
        assert refused.value.response.status_code == status
    (tmp_path / "config.json").write_text("{}")
    hub.publish("org/gated", tmp_path, gated=True)
    assert api(hub, False).model_info("org/gated").sha
    for token in (False, "hf_write"):
        with pytest.raises(GatedRepoError):
            api(hub, token).hf_hub_download("org/gated", "config.json", cache_dir=tmp_path / "a")
    api(hub, "hf_guest").hf_hub_download("org/gated", "config.json", cache_dir=tmp_path / "b")


def test_what_is_no_commit(hub: Hub) -> None:
    """Front matter that is none, a large file that never came, content of another digest."""
    client = api(hub)
    client.create_repo("user/none")
    card = CommitOperationAdd("README.md", b"---\nbase_model: ./local/base\n---\n")
    with pytest.raises(ValueError, match="base_model"):
        client.create_commit("user/none", [card], commit_message="x")
    add = CommitOperationAdd("model.safetensors", b"\0" * 1000)
    client.preupload_lfs_files("user/none", [add], free_memory=False)
    (sha256,) = [oid for oid, size in hub.state()["received"].items() if size == 1000]
    hub.set(forget_objects=[sha256])
    with pytest.raises(HfHubHTTPError, match="does not exist"):
        client.create_commit("user/none", [add], commit_message="x")
    hub.set(faults=[{"match": "POST .*/commit/", "status": 503, "times": 1}])
    with pytest.raises(HfHubHTTPError):
        client.create_commit("user/none", [CommitOperationAdd("a", b"a")], commit_message="x")
    request = urllib.request.Request(f"{hub.url}/_lfs/1234/{sha256}?size=1", b"x", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    assert set(hub.files("user/none")) == {".gitattributes"}
