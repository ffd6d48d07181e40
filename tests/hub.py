"""A small Hub on the loopback interface: model info, trees, and files by HEAD and by range.

It answers what huggingface_hub asks for when configs, indexes and headers are read, and counts
the bytes of each file that it sends.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
PIECE = 1 << 16


class Hub:
    """Serve folders as models.

    Args:
        models: name on the Hub -> folder.
        gated: names that are refused until access is granted.
    """

    def __init__(self, models: Mapping[str, Path], gated: tuple[str, ...] = ()) -> None:
        self.models = dict(models)
        self.gated = gated
        self.requests: list[str] = []
        self.sent: Counter[str] = Counter()  # "repo/file" -> bytes of bodies
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """What ``HF_ENDPOINT`` has to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str | None]:
        """Return changes to an environment in which this is the Hub, with an empty cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": None,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": None,
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def commit(repo: str) -> str:
    """Return a model's one commit."""
    return hashlib.sha1(repo.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append(
            f"{self.command} {path} {self.headers.get('Range', '')}".strip()
        )
        for pattern, answer in ((_TREE, self._tree), (_INFO, self._info), (_FILE, self._file)):
            match = pattern.fullmatch(path)
            if not match:
                continue
            found = match.groupdict()
            folder = self.served.models.get(found["repo"])
            if folder is None:
                self._fail(404, "RepoNotFound", "Repository not found")
            elif found["repo"] in self.served.gated and pattern is _FILE:
                self._fail(403, "GatedRepo", "Access to this model is restricted")
            elif found["revision"] not in (None, "main", commit(found["repo"])):
                self._fail(404, "RevisionNotFound", "Invalid rev id")
            else:
                answer(found, folder)
            return
        self._fail(404, "", "no such page")

    def _fail(self, status: int, code: str, text: str) -> None:
        self._send(status, json.dumps({"error": text}).encode(), {"X-Error-Code": code})

    def _info(self, found: dict[str, Any], folder: Path) -> None:
        siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        info = {"_id": "0", "id": found["repo"], "modelId": found["repo"], "private": False}
        info |= {"sha": commit(found["repo"]), "siblings": siblings, "tags": []}
        self._send(200, json.dumps(info).encode())

    def _tree(self, found: dict[str, Any], folder: Path) -> None:
        entries = [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
            for path in sorted(folder.iterdir())
        ]
        self._send(200, json.dumps(entries).encode())

    def _file(self, found: dict[str, Any], folder: Path) -> None:
        path = folder / found["file"]
        if not path.is_file():
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.command == "GET":
            first, last, status = int(wanted[1]), min(int(wanted[2]), size - 1), 206
        self.send_response(status)
        self.send_header("Content-Length", str(max(0, last - first + 1)))
        self.send_header("ETag", f'"{hashlib.sha1(str(path).encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit(found["repo"]))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(first)
            left = last - first + 1
            while left > 0 and (piece := file.read(min(PIECE, left))):
                self.wfile.write(piece)
                self.served.sent[f"{found['repo']}/{found['file']}"] += len(piece)
                left -= len(piece)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
