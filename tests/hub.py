"""A Hub for tests, started in a process of its own; see :mod:`tests.hub_server`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from huggingface_hub import constants


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub in this process ask another address, which it reads but once."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    files = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


class Hub:
    """A running Hub.

    Args:
        models: name on the Hub -> a folder that is published there at the start.
        gated: names of those that are given out on request only.
    """

    def __init__(
        self, models: Mapping[str, Path] | None = None, gated: tuple[str, ...] = ()
    ) -> None:
        self._models, self._gated = dict(models or {}), gated
        self._last: dict[str, Any] | None = None

    def __enter__(self) -> Hub:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hub_server.py")), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        """What ``HF_ENDPOINT`` has to be."""
        for name, folder in self._models.items():
            self.publish(name, folder, gated=name in self._gated)
        return self

    def __exit__(self, *exception: object) -> None:
        self._last = self.state()
        with self._process:  # closes its stdin, which ends it, and waits
            pass
        self._folder.cleanup()

    def set(self, **changes: Any) -> None:
        """Change what the server knows; see ``control_set`` there."""
        body = json.dumps(changes).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/_control/set", body)):
            pass

    def state(self) -> dict[str, Any]:
        """Return what the server knows, or knew at its end: repositories, requests, bytes."""
        if self._last is not None:
            return self._last
        with urllib.request.urlopen(f"{self.url}/_control/state") as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def settled(self) -> dict[str, Any]:
        """Return the state once no upload is being read: a client that is gone leaves its rest."""
        while (state := self.state())["busy"]:
            time.sleep(0.01)
        return state

    def publish(self, name: str, folder: Path, **flags: bool) -> None:
        """Make a folder a model's main branch; ``private`` and ``gated`` are flags."""
        self.set(publish={name: {"folder": str(folder), **flags}})

    def user(
        self, name: str, token: str, *, write: bool = True, granted: tuple[str, ...] = ()
    ) -> None:
        """Let a token in, as a user who is given the gated models named."""
        self.set(users={token: {"name": name, "write": write, "granted": list(granted)}})

    @property
    def requests(self) -> list[str]:
        """Every request but the tests' own: method, path, range."""
        requests: list[str] = self.state()["requests"]
        return requests

    @property
    def sent(self) -> dict[str, int]:
        """Bytes of each ``repo/file`` that went out."""
        sent: dict[str, int] = self.state()["sent"]
        return sent

    def files(self, name: str, ref: str = "main") -> dict[str, list[Any]]:
        """Return a model's files with size and, of large ones, SHA-256; {} where there is none."""
        repo = self.state()["repos"].get(name, {"refs": {}})
        files: dict[str, list[Any]] = repo["refs"].get(ref, {})
        return files

    def read(self, name: str, file: str, ref: str = "main", token: str | None = None) -> bytes:
        """Return a file as anyone may fetch it."""
        request = urllib.request.Request(f"{self.url}/{name}/resolve/{quote(ref, safe='')}/{file}")
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request) as answer:
            content: bytes = answer.read()
        return content

    def environment(self, home: Path, token: str | None = None) -> dict[str, str | None]:
        """Return changes to an environment in which this is the Hub, with its cache in ``home``."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": None,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": None,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": token,
            "NO_PROXY": "127.0.0.1,localhost",
        }
