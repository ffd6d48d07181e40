"""How long a server asks to be left alone, and that a session leaves no trace."""

from __future__ import annotations

import email.utils
import time

import pytest
from huggingface_hub.utils import _http

from mergekit_lines.checkpoint.remote.session import asked_wait, hub_session


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "17"}, 17.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "9" * 400}, 999_999_999.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_what_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds or a date of HTTP, or the Hub's own header; what is neither asks for nothing."""
    assert asked_wait(headers) == seconds


def test_a_date_to_come() -> None:
    """RFC 9110 10.2.3: a date means the seconds until then."""
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    wait = asked_wait({"Retry-After": later})
    assert wait is not None
    assert 0 < wait <= 3600


def test_sessions_lie_in_each_other() -> None:
    """The client is changed once, and is as it was behind the outermost block."""
    before = _http._GLOBAL_CLIENT_FACTORY
    with hub_session():
        inside = _http._GLOBAL_CLIENT_FACTORY
        with hub_session():
            assert _http._GLOBAL_CLIENT_FACTORY is inside is not before
        assert _http._GLOBAL_CLIENT_FACTORY is inside
    assert _http._GLOBAL_CLIENT_FACTORY is before
