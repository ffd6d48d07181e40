"""A small Hub in a process of its own: what huggingface_hub's client asks for, and no more.

``python hub_server.py FOLDER`` prints the port it listens on and ends with its stdin. Git is
left out: a revision is a mapping of paths to blobs, a commit replaces one. Large files take the
way of Git LFS: a batch request, a PUT to a signed address without the token, a commit that names
the digest; they are fetched through a redirect to another host, as from a CDN. The paths, headers
and bodies are those that the client was seen to send.

``/_control/…`` is the tests' own entrance. A fault that is planted there meets the requests whose
line it matches: it answers with a status, does not answer (``silent``), answers a byte now and then
(``drip``), with one bit wrong (``flip``) or with bytes too few (``cut``), or commits a large file
that nobody sent (``swap``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PIECE = 1 << 16
SILENCE = 3600  # seconds
REGULAR = 10 << 20  # bytes above which a file is large, whatever its name
LARGE = (".safetensors", ".bin", ".model", ".gguf", ".pt")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REV = r"(?P<rev>[^/]+)"


@dataclass(frozen=True)
class Blob:
    """A file's content: where it lies, its digests and its size."""

    path: Path
    oid: str  # git's; for a large file that of nothing in particular
    size: int
    sha256: str | None = None  # of a large file


@dataclass
class Repo:
    """A model: revisions by their commit, branches by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, Blob], title: str) -> str:
        text = json.dumps([ref, title, len(self.log), sorted((p, b.oid) for p, b in files.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        self.log.append({"ref": ref, "sha": sha, "title": title, "files": sorted(files)})
        return sha


class State:
    """All that the server knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = RLock()
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, Blob] = {}  # sha256 -> a large file
        self.users: dict[str, dict[str, Any]] = {}  # token -> name, and whether it may write
        self.signatures: dict[str, str] = {}  # of addresses without a token
        self.requests: list[str] = []
        self.tokens_seen: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # "repo/file" -> bytes of bodies
        self.received: Counter[str] = Counter()  # sha256 -> bytes that came in
        self.faults: list[dict[str, Any]] = []
        self.busy = 0  # PUTs that are being read
        self.speed = 0  # bytes per second at which large files are taken; 0: as they come

    def store(self, content: bytes, *, large: bool) -> Blob:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / sha256
        if not path.exists():
            path.write_bytes(content)
        blob = Blob(path, oid, len(content), sha256 if large else None)
        if large:
            self.objects[sha256] = blob
        return blob


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", text: str = "") -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text
        self.headers: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    state: State
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    wbufsize = PIECE

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a killed client
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path = parts.path
        self.fault: dict[str, Any] = {}
        self.control = path.startswith("/_control/")
        length = int(self.headers.get("Content-Length") or 0)
        self.body = b"" if self.command == "PUT" else self.rfile.read(length)
        self.left = length if self.command == "PUT" else 0
        try:
            # huggingface_hub asks for agents only where it sees that one runs it.
            if not self.control and path != "/api/agent-harnesses":
                self._record(unquote(path))
            for command, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in command.split("/"):
                    found = {name: unquote(text) for name, text in match.groupdict().items()}
                    handle(self, **found)
                    return
            self.send({"error": f"no such page: {self.command} {path}"}, 404)
        except Refused as refusal:
            if self.left:  # an unread body would be taken for the next request
                self.close_connection = True
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.text}
            headers |= refusal.headers
            self.send({"error": refusal.text}, refusal.status, headers)

    def _record(self, path: str) -> None:
        line = f"{self.command} {path} {self.headers.get('Range', '')}".strip()
        with self.state.lock:
            self.state.requests.append(line)
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            kind = "PUT" if self.command == "PUT" else path[: 5 if path[1] == "_" else 4]
            self.state.tokens_seen[f"{kind} {given}"] += 1
            for fault in self.state.faults:
                if fault["times"] and re.search(fault["match"], line):
                    fault["times"] -= 1
                    self.fault = fault
                    break
        self._fail()

    def _fail(self) -> None:
        fault = self.fault
        if fault.get("kind") == "silent":
            self.close_connection = True
            time.sleep(SILENCE)
        if "status" in fault:
            refusal = Refused(fault["status"], fault.get("code", ""), fault.get("text", ""))
            refusal.headers = fault.get("headers", {})
            raise refusal

    def send(
        self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        endless = self.fault.get("kind") == "endless"
        self.send_header("Content-Length", str(1 << 40 if endless else len(body)))
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body)

    def _write(self, content: bytes) -> None:
        """Send a part of a body, as slowly or as wrongly as the fault wants it."""
        kind = self.fault.get("kind")
        while kind == "endless":  # until the client has gone
            self.wfile.write(b" " * PIECE)
        if kind == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if kind != "drip":
            self.wfile.write(content)
            return
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(self.fault["pause"])

    # --- who asks, and for what --------------------------------------------------------

    def user(self) -> dict[str, Any] | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        found = self.state.users.get(given.removeprefix("Bearer "))
        if found is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return found

    def repo(self, name: str, *, write: bool = False) -> Repo:
        user = self.user()
        repo = self.state.repos.get(name)
        mine = user is not None and name.split("/")[0] == user["name"]
        if repo is None or (repo.private and not mine):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write:
            self.may_write(name)
        return repo

    def may_write(self, name: str, *, propose: bool = False) -> None:
        """Refuse who may not change a model, or propose a change to it as anyone may."""
        user = self.user()
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if not user["write"]:
            raise Refused(
                403, "", "Forbidden: you must use a write token to upload to a repository"
            )
        if name.split("/")[0] != user["name"] and not propose:
            raise Refused(403, "", f"You don't have the rights to write to {name}")

    def files(self, repo: Repo, rev: str) -> tuple[str, dict[str, Blob]]:
        sha = repo.refs.get(rev.removeprefix("refs/heads/"), rev)
        if sha not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return sha, repo.commits[sha]

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        role = "write" if user["write"] else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.send({"type": "user", "name": user["name"], "orgs": [], "auth": auth})

    # --- reading -----------------------------------------------------------------------

    def info(self, repo: str, rev: str = "main") -> None:
        found = self.repo(repo)
        sha, files = self.files(found, rev)
        sized = "blobs" in self.query
        siblings = [
            {"rfilename": path, **(_described(blob) if sized else {})}
            for path, blob in sorted(files.items())
        ]
        content = {"_id": "0", "id": repo, "modelId": repo, "private": found.private}
        content |= {"gated": "auto" if found.gated else False, "disabled": False, "tags": []}
        card = _front_matter(files)
        if card is not None:
            content["cardData"] = card
        self.send({**content, "sha": sha, "siblings": siblings, "author": repo.split("/")[0]})

    def tree(self, repo: str, rev: str) -> None:
        _, files = self.files(self.repo(repo), rev)
        self.send([_entry(path, blob) for path, blob in sorted(files.items())])

    def paths_info(self, repo: str, rev: str) -> None:
        _, files = self.files(self.repo(repo), rev)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode())["paths"]
        self.send([_entry(path, files[path]) for path in wanted if path in files])

    def refs(self, repo: str) -> None:
        refs = self.repo(repo).refs
        listed = [{"name": n, "ref": n, "targetCommit": s} for n, s in refs.items()]
        branches = [entry for entry in listed if not entry["name"].startswith("refs/")]
        pulls = [entry for entry in listed if entry["name"].startswith("refs/")]
        self.send({"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})

    def resolve(self, repo: str, rev: str, file: str) -> None:
        found = self.repo(repo)
        sha, files = self.files(found, rev)
        user = self.user()
        if found.gated and not (user and repo in user["granted"]):
            text = f"Access to model {repo} is restricted and you are not in the authorized list."
            raise Refused(403 if user else 401, "GatedRepo", text)
        headers = {"X-Repo-Commit": sha}
        if file not in files:
            self.send(
                {"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"}
            )
            return
        blob = files[file]
        if blob.sha256 is None:
            self._send_file(repo, file, blob, {**headers, "ETag": f'"{blob.oid}"'})
            return
        key = self._sign(blob.sha256)
        port = self.server.server_address[1]
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{port}/_cdn/{repo}/{key}/{quote(file)}")
        self.send_header("X-Linked-ETag", f'"{blob.sha256}"')
        self.send_header("X-Linked-Size", str(blob.size))
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _sign(self, sha256: str) -> str:
        key = secrets.token_hex(8)
        self.state.signatures[key] = sha256
        return key

    def cdn(self, repo: str, key: str, file: str) -> None:
        sha256 = self.state.signatures.get(key)
        if sha256 is None:
            raise Refused(403, "", "AccessDenied")
        blob = self.state.objects[sha256]
        self._send_file(repo, file, blob, {"ETag": f'"{sha256}"'})

    def _send_file(self, repo: str, file: str, blob: Blob, headers: Mapping[str, str]) -> None:
        first, last, status = 0, blob.size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.command == "GET":
            first, status = int(wanted[1]), 206
            last = min(int(wanted[2] or last), last)
            if first > last:
                raise Refused(416, "", "Range Not Satisfiable")
        self.send_response(status)
        self.send_header("Content-Length", str(max(0, last - first + 1)))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{blob.size}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with blob.path.open("rb") as source:
            source.seek(first)
            left = last - first + 1
            if self.fault.get("kind") == "cut":
                left, self.close_connection = left // 2, True
            while left > 0 and (piece := source.read(min(PIECE, left))):
                self._write(piece)
                with self.state.lock:
                    self.state.sent[f"{repo}/{file}"] += len(piece)
                left -= len(piece)

    # --- writing -----------------------------------------------------------------------

    def create(self) -> None:
        asked = json.loads(self.body)
        user = self.user()
        owner = asked.get("organization") or (user or {}).get("name", "")
        name = f"{owner}/{asked['name']}"
        self.may_write(name)
        with self.state.lock:
            if name in self.state.repos:
                url = f"http://{self.headers['Host']}/{name}"
                self.send({"error": "You already created this model repo", "url": url}, 409)
                return
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            repo = self.state.repos[name] = Repo(private=private)
            attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE)
            blob = self.state.store(attributes.encode(), large=False)
            repo.commit("main", {".gitattributes": blob}, "initial commit")
        self.send({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": "0"})

    def validate(self) -> None:
        import yaml

        content = json.loads(self.body)["content"]
        match = re.match(r"---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            data = str(error)
        errors = []
        if not isinstance(data, dict):
            errors.append({"message": f"metadata is no mapping: {data}"})
            data = {}
        kinds = {"license": (str,), "tags": (list,), "base_model": (str, list)}
        kinds |= {"library_name": (str,), "pipeline_tag": (str,), "language": (str, list)}
        for key, kind in kinds.items():
            if key in data and not isinstance(data[key], kind):
                errors.append({"message": f'"{key}" must be {kind[0].__name__}'})
        if data.get("base_model_relation", "merge") not in (
            *("adapter", "merge", "quantized", "finetune"),
        ):
            errors.append({"message": '"base_model_relation" must be one of …'})
        listed = data.get("base_model") or []
        for name in [listed] if isinstance(listed, str) else listed:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
                errors.append({"message": f'"base_model[]" with value "{name}" is not valid'})
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        answer = {"errors": errors, "warnings": warnings}
        self.send(answer, 400 if errors else 200)

    def preupload(self, repo: str, rev: str) -> None:
        _, files = self.files(self.repo(repo), rev)
        self.may_write(repo, propose="create_pr" in self.query)
        answer = []
        for asked in json.loads(self.body)["files"]:
            large = asked["path"].endswith(LARGE) or asked["size"] > REGULAR
            sample = base64.b64decode(asked["sample"])
            large = large or b"\0" in sample
            there = files.get(asked["path"])
            oid = None if there is None else there.sha256 if large else there.oid
            mode = "lfs" if large else "regular"
            entry = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            answer.append({**entry, "oid": oid})
        self.send({"files": answer})

    def batch(self, repo: str) -> None:
        self.repo(repo)
        self.may_write(repo, propose=True)  # it is not told what the object is for
        asked = json.loads(self.body)
        assert asked["hash_algo"] == "sha256" and "basic" in asked["transfers"]
        objects = []
        for one in asked["objects"]:
            entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.state.objects:
                base, key = f"http://{self.headers['Host']}/_lfs", self._sign(one["oid"])
                entry["authenticated"] = True
                entry["actions"] = {
                    "upload": {"href": f"{base}/{key}/{one['oid']}?size={one['size']}"},
                    "verify": {"href": f"{base}/verify/{repo}", "header": {}},
                }
            objects.append(entry)
        self.send({"transfer": "basic", "objects": objects})

    def put(self, key: str, oid: str) -> None:
        if self.state.signatures.get(key) != oid:
            raise Refused(403, "", "SignatureDoesNotMatch")
        with self.state.lock:
            self.state.busy += 1
        try:
            self._take(self.state.folder / f"{oid}.{key}", oid)
        finally:
            with self.state.lock:
                self.state.busy -= 1

    def _take(self, path: Path, oid: str) -> None:
        digest, size = hashlib.sha256(), self.left
        with path.open("wb") as file:
            while self.left and (piece := self.rfile.read(min(PIECE, self.left))):
                file.write(piece)
                digest.update(piece)
                self.left -= len(piece)
                with self.state.lock:
                    self.state.received[oid] += len(piece)
                if self.state.speed:
                    time.sleep(len(piece) / self.state.speed)
        if self.left:  # the client is gone
            path.unlink()
            self.left, self.close_connection = 0, True
            return
        if digest.hexdigest() != oid or size != int(self.query["size"]):
            path.unlink()
            raise Refused(400, "", "BadDigest")
        with self.state.lock:
            path.rename(self.state.folder / oid)
            self.state.objects[oid] = Blob(self.state.folder / oid, oid[:40], size, oid)
        self.send({}, headers={"ETag": f'"{oid}"'})

    def verify(self, repo: str) -> None:
        self.repo(repo)
        self.may_write(repo, propose=True)
        asked = json.loads(self.body)
        there = self.state.objects.get(asked["oid"])
        if there is None or there.size != asked["size"]:
            raise Refused(404, "", "not there")
        self.send({})

    def commit(self, repo: str, rev: str) -> None:
        found = self.repo(repo)
        self.may_write(repo, propose="create_pr" in self.query)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        with self.state.lock:
            sha, files = self.files(found, rev)
            files = dict(files)
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, sha):
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            if self.fault.get("kind") == "swap":
                name = next(name for name in files if name.endswith(LARGE))
                files[name] = self.state.store(b"something else", large=True)
            ref, answer = rev, {}
            if "create_pr" in self.query:
                ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in found.refs)}"
                number = ref.rsplit("/", 1)[1]
                host = f"http://{self.headers['Host']}"
                answer["pullRequestUrl"] = f"{host}/{repo}/discussions/{number}"
            oid = found.commit(ref, files, header["summary"])
        url = f"http://{self.headers['Host']}/{repo}/commit/{oid}"
        self.send({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", **answer})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.state.store(base64.b64decode(value["content"]), large=False)
        elif key == "lfsFile":
            blob = self.state.objects.get(value["oid"])
            if blob is None or blob.size != value.get("size", blob.size):
                raise Refused(400, "", f"LFS pointer points to a file that does not exist: {path}")
            files[path] = blob
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        else:
            raise Refused(400, "", f"unknown operation {key}")

    def branch(self, repo: str, rev: str) -> None:
        found = self.repo(repo, write=True)
        with self.state.lock:
            if rev in found.refs:
                raise Refused(409, "", "Reference already exists")
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            found.refs[rev] = self.files(found, start)[0]
        self.send({})

    # --- the tests' own ----------------------------------------------------------------

    def control_state(self) -> None:
        state = self.state
        with state.lock:
            repos = {
                name: {
                    "private": repo.private,
                    "log": repo.log,
                    "refs": {
                        ref: {path: [b.size, b.sha256] for path, b in repo.commits[sha].items()}
                        for ref, sha in repo.refs.items()
                    },
                }
                for name, repo in state.repos.items()
            }
            answer = {"repos": repos, "requests": state.requests, "sent": state.sent}
            answer |= {"received": state.received, "tokens": state.tokens_seen}
            answer |= {"busy": state.busy}
            self.send({**answer, "objects": sorted(state.objects)})

    def control_set(self) -> None:
        asked = json.loads(self.body)
        state = self.state
        with state.lock:
            state.users.update(asked.get("users", {}))
            state.faults = asked.get("faults", state.faults)
            state.speed = asked.get("speed", state.speed)
            for name in asked.get("forget", []):
                del state.repos[name]
            for sha256 in asked.get("forget_objects", []):
                del state.objects[sha256]
            for name, changes in asked.get("publish", {}).items():
                self._publish(name, **changes)
        self.send({})

    def _publish(self, name: str, folder: str, **flags: bool) -> None:
        repo = self.state.repos.setdefault(name, Repo())
        repo.private, repo.gated = flags.get("private", False), flags.get("gated", False)
        files = {}
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = self._published(path)
        repo.commit("main", files, "published")

    def _published(self, path: Path) -> Blob:
        size, large = path.stat().st_size, path.name.endswith(LARGE)
        if size <= REGULAR or not large:
            return self.state.store(path.read_bytes(), large=large)
        # Served from where it lies.
        digest = hashlib.sha256()
        with path.open("rb") as file:
            # Of a file that is one hole nobody fetches the whole: its head and its size tell it.
            hole = path.stat().st_blocks * 512 < size // 2
            digest.update(b"%d" % size if hole else b"")
            while piece := file.read(PIECE):
                digest.update(piece)
                if hole:
                    break
        oid = digest.hexdigest()
        self.state.objects[oid] = Blob(path, oid[:40], size, oid)
        return self.state.objects[oid]


def _described(blob: Blob) -> dict[str, Any]:
    """Return what a model's information says of a file where its metadata are asked for."""
    described: dict[str, Any] = {"size": blob.size, "blobId": blob.oid}
    if blob.sha256 is not None:
        described["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
    return described


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256 is not None:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    return entry


def _front_matter(files: Mapping[str, Blob]) -> Any:
    if "README.md" not in files:
        return None
    import yaml

    text = files["README.md"].path.read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("GET", r"/_control/state", Handler.control_state),
    ("POST", r"/_control/set", Handler.control_set),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET/HEAD", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/{REV}", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/{REV}", Handler.tree),
    ("POST", rf"/api/models/{REPO}/paths-info/{REV}", Handler.paths_info),
    ("GET", rf"/api/models/{REPO}/refs", Handler.refs),
    ("POST", rf"/api/models/{REPO}/preupload/{REV}", Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/{REV}", Handler.commit),
    ("POST", rf"/api/models/{REPO}/branch/{REV}", Handler.branch),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", rf"/_lfs/verify/{REPO}", Handler.verify),
    ("PUT", r"/_lfs/(?P<key>\w+)/(?P<oid>\w+)", Handler.put),
    ("GET/HEAD", rf"/_cdn/{REPO}/(?P<key>\w+)/(?P<file>.+)", Handler.cdn),
    ("GET/HEAD", rf"/{REPO}/resolve/{REV}/(?P<file>.+)", Handler.resolve),
)


def main(folder: str) -> None:
    """Serve until stdin is closed."""

    class Served(Handler):
        state = State(Path(folder))

    # A short queue: what a killed client left in it is not an upload that went on.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
