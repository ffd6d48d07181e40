"""Requests to the Hub that come to an end: with a timeout each, and put off as the Hub asks.

huggingface_hub sends most of its requests without a timeout, and sleeps as long as a server tells
it to. Within :func:`hub_session` its client does neither. ``HF_HUB_DOWNLOAD_TIMEOUT`` says how
many seconds pass without a byte before a request is given up; what writes to the Hub, which has to
store it first, has six times as long.
"""

from __future__ import annotations

import email.utils
import functools
import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import _http

from mergekit_lines.errors import tell

PATIENCE = 300.0  # seconds that a request is put off at most: the Hub counts by five minutes
PUT_OFF = 5  # times that one is put off
BUSY = frozenset({408, 429, 500, 502, 503, 504})
# A commit may have been made all the same after the others.
_NOT_DONE = frozenset({429, 503})
_WRITES = frozenset({"POST", "PUT"})
_WRITING = 6  # timeouts
_WINDOW = 6  # timeouts in which an answer has to bring this many bytes
_LEAST = 1024
_ANSWER = 64 << 20  # bytes of an answer that is no file: the list of a model's files is the longest
_LIMITS = ("connect", "read", "write", "pool")
_RATE = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)', re.ASCII)


class HubSilent(OfflineModeIsEnabled):
    """The Hub does not answer. huggingface_hub then takes from its cache what is there."""


@dataclass
class _Hosts:
    """What was seen of the hosts in this session."""

    silent: dict[bytes, str] = field(default_factory=dict)  # by host, what happened
    failed: set[bytes] = field(default_factory=set)  # those whose last answer did not come
    busy: set[bytes] = field(default_factory=set)  # those that have used up a request's patience
    quiet_until: float = 0.0  # until when nothing is said of waiting


_LOCK = threading.Lock()
_before: list[Callable[[], Any]] = []  # the client factory of before, once per block around


@contextmanager
def hub_session() -> Iterator[None]:
    """Give every request to the Hub in the block an end; blocks may lie in each other."""
    with _LOCK:
        if not _before:
            factory = _http._GLOBAL_CLIENT_FACTORY
            hosts = _Hosts()
            set_client_factory(lambda: _patient(factory(), hosts))
            _before.append(factory)
        else:
            _before.append(_before[0])
    try:
        yield
    finally:
        with _LOCK:
            factory = _before.pop()
            if not _before:
                set_client_factory(factory)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which a server wants to be asked again, where it says so."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if text:
        try:
            moment = email.utils.parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):
            return None
        return max(0.0, moment - time.time())
    match = _RATE.search(headers.get("RateLimit") or "")
    return float(match[1][:9]) if match else None


def _patient(client: Any, hosts: _Hosts) -> Any:
    """Put our transport in front of those of a client, the proxies' among them."""
    # httpx or httpx2, whichever this release of huggingface_hub uses.
    client_class = next(kind for kind in type(client).__mro__ if kind.__name__ == "Client")
    library = importlib.import_module(client_class.__module__.partition(".")[0])
    client._transport = _Patient(client._transport, library, hosts)
    client._mounts = {
        pattern: transport and _Patient(transport, library, hosts)
        for pattern, transport in client._mounts.items()
    }
    return client


class _Patient:
    """A transport of httpx that knows when to ask again, and when to stop."""

    def __init__(self, inner: Any, library: Any, hosts: _Hosts) -> None:
        self._inner, self._library, self._hosts = inner, library, hosts

    def __enter__(self) -> _Patient:
        self._inner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._inner.__exit__(*exception)

    def close(self) -> None:
        self._inner.close()

    def handle_request(self, request: Any) -> Any:
        """Send a request, and again where the Hub puts it off.

        Raises:
            HubSilent: there is no answer.
            HfHubHTTPError: the Hub is busy, and stays so.
        """
        _limit(request)
        waited = 0.0
        for tries in count(1):
            response = self._answer(request)
            if response.status_code not in BUSY or not _may_repeat(request, response):
                kind: type = type(response.stream)
                response.stream = _watched_class(kind)(response.stream, request, self)
                return response
            wait = asked_wait(response.headers)
            wait = min(2.0 ** (tries - 1), 8.0) if wait is None else wait
            host = request.url.netloc
            if tries > PUT_OFF or waited + wait > PATIENCE or host in self._hosts.busy:
                self._hosts.busy.add(host)
                response.request = request
                response.read()
                _http.hf_raise_for_status(response)
            if not _can_replay(request):
                return response  # huggingface_hub rewinds the file and asks again
            response.close()
            self._tell(response.status_code, wait)
            time.sleep(wait)
            waited += wait
        raise AssertionError  # count() has no end

    def _answer(self, request: Any) -> Any:
        """Return the answer to a request, which is sent again where there is none."""
        host = request.url.netloc
        if host in self._hosts.silent:
            raise HubSilent(self._hosts.silent[host])
        # A download that goes on had an answer before: the network may come back.
        most = 1 if _is_commit(request) else 5 if "Range" in request.headers else 2
        for tries in count(1):
            try:
                response = self._inner.handle_request(request)
            except self._library.ProxyError:
                raise
            except (
                self._library.TimeoutException,
                self._library.NetworkError,
                self._library.RemoteProtocolError,
            ) as error:
                if not _can_replay(request) and host not in self._hosts.failed:
                    self._hosts.failed.add(host)
                    raise  # huggingface_hub rewinds the file and asks again
                if tries >= most:
                    raise self.silent(host, error) from error
            else:
                self._hosts.failed.discard(host)
                return response
            time.sleep(min(2.0 ** (tries - 1), 8.0))
        raise AssertionError  # likewise

    def silent(self, host: bytes, error: Exception | str) -> HubSilent:
        """Return the failure of a host that does not answer, and ask it no more."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._hosts.silent[host] = text
        return HubSilent(text)

    def _tell(self, status: int, wait: float) -> None:
        now = time.monotonic()
        if now < self._hosts.quiet_until or wait < 1:
            return
        self._hosts.quiet_until = now + wait
        what = "too many requests" if status == 429 else "it is busy"
        tell(f"the Hub asks to wait ({status}, {what}): {wait:.0f} s")


def _limit(request: Any) -> None:
    """Give a request the timeouts that it lacks."""
    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if request.method in _WRITES:
        seconds *= _WRITING
    own = request.extensions.get("timeout") or {}
    limits = {name: own.get(name) or seconds for name in _LIMITS}
    request.extensions = {**request.extensions, "timeout": limits}


def _can_replay(request: Any) -> bool:
    """Tell whether a request's body is held, and is no file that is read as it is sent."""
    return request.method in ("GET", "HEAD") or hasattr(request, "_content")


def _is_commit(request: Any) -> bool:
    return request.method == "POST" and "/commit/" in request.url.path


def _may_repeat(request: Any, response: Any) -> bool:
    return not _is_commit(request) or response.status_code in _NOT_DONE


class _Watched:
    """An answer's bytes as they come, as long as they come."""

    def __init__(self, stream: Any, request: Any, transport: _Patient) -> None:
        self._stream, self._request, self._transport = stream, request, transport

    def __iter__(self) -> Iterator[bytes]:
        window = _WINDOW * self._request.extensions["timeout"]["read"]
        begun, came, whole = time.monotonic(), 0, 0
        for chunk in self._stream:
            came += len(chunk)
            whole += len(chunk)
            if whole > _ANSWER and self._request.url.path.startswith("/api/"):
                host = self._request.url.netloc
                raise self._transport.silent(host, f"without an end in {_ANSWER >> 20} MiB")
            now = time.monotonic()
            if now - begun > window:
                if came < _LEAST:
                    host = self._request.url.netloc
                    raise self._transport.silent(host, f"{came} bytes in {now - begun:.0f} s")
                begun, came = now, 0
            yield chunk

    def close(self) -> None:
        self._stream.close()


@functools.cache
def _watched_class(kind: type) -> type:
    # Of httpx's own class of streams, which its client insists on.
    base = next(base for base in kind.__mro__ if base.__name__ == "SyncByteStream")
    return type("Watched", (_Watched, base), {})
