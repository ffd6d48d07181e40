"""What went wrong between here and the Hub, in one sentence without addresses or tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mergekit_lines.checkpoint.remote.session import HubSilent, asked_wait
from mergekit_lines.errors import LinesError, reason

PUBLIC = "https://huggingface.co"
LOGIN = "`hf auth login`"
# huggingface_hub talks through httpx or httpx2, depending on its release.
_UNREACHED = {"ConnectError", "TimeoutException", "NetworkError", "ProtocolError", "ProxyError"}
_ADDRESS = re.compile(r"\b(?:https?|s3)://\S+")
_TOKEN = re.compile(r"\bhf_\w+")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error stands for, if the server answered."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def _response(error: BaseException) -> Any:
    """Return the answer that an error stands for, None where there was none."""
    answers = (cause.response for cause in _causes(error) if isinstance(cause, HfHubHTTPError))
    return next((response for response in answers if response is not None), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def unreached(error: BaseException) -> bool:
    """Tell whether there was no answer at all: no network, no server, or none allowed."""
    return any(
        isinstance(cause, (OfflineModeIsEnabled, ConnectionError, TimeoutError))
        or _UNREACHED & {kind.__name__ for kind in type(cause).__mro__}
        for cause in _causes(error)
    )


def _silence(error: BaseException) -> str | None:
    """Return what came instead of an answer, where the Hub was waited for."""
    return next((str(cause) for cause in _causes(error) if isinstance(cause, HubSilent)), None)


def _busy(error: BaseException) -> str | None:
    """Say that the Hub puts everybody off, or this user; None where it does not."""
    status, message = status_of(error), message_of(error)
    if status == 429:
        seconds = asked_wait(_response(error).headers)
        later = f"in {seconds:.0f} s" if seconds else "later"
        return (
            f"the Hub answers that there were too many requests ({message}). Run the same command "
            f"again {later}; with a token it allows more of them: {LOGIN}."
        )
    if status is not None and status >= 500 and status != 507:
        return (
            f"the Hub is at fault or overloaded ({message}), at every try. Run the same command "
            f"again later."
        )
    return None


def put_off(error: BaseException) -> bool:
    """Tell whether a Hub that is there was busy, at fault or silent: another time it may answer."""
    silence = _silence(error)
    return _busy(error) is not None or (silence is not None and "Connect" not in silence)


def _unanswered(error: BaseException) -> str:
    """Say that there is no answer: no network, or a server that is silent."""
    silence = _silence(error)
    if silence is None or "Connect" in silence:
        return f"the Hub ({constants.ENDPOINT}) cannot be reached"
    return (
        f"the Hub ({constants.ENDPOINT}) does not answer ({_clean(silence)}; "
        f"HF_HUB_DOWNLOAD_TIMEOUT sets how long it has)"
    )


def message_of(error: BaseException) -> str:
    """Return what an error says, without addresses (they may be signed) and tokens."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            message = cause.response.headers.get("X-Error-Message") or cause.server_message or ""
            return _clean(f"{cause.response.status_code} {message}".strip())[:200]
    return _clean(reason(error))


def _clean(text: str) -> str:
    token = get_token()  # other servers' tokens may look otherwise
    text = text.replace(token, "…") if token else text
    return _TOKEN.sub("…", _ADDRESS.sub("…", text))


def reading(where: str, error: BaseException, *, folder: bool = True, hint: str = "") -> str:
    """Say why a model on the Hub cannot be read.

    Args:
        where: the model, as ``model org/name@revision``.
        error: what huggingface_hub raised.
        folder: whether a folder might have been meant.
        hint: what follows the advice to check the name.
    """
    message = message_of(error)
    absent = "there is no such folder, and " if folder else ""
    reasons = (
        (
            _is(error, GatedRepoError),
            f"the Hub gives access to it only on request ({message}). Ask for it on the model's "
            f"page, then {LOGIN}.",
        ),
        (
            _is(error, RevisionNotFoundError),
            "the Hub has no such revision. Check what stands after the @.",
        ),
        (
            "nvalid credentials" in message,
            f"the Hub does not accept your token. Log in again with {LOGIN}.",
        ),
        (
            _is(error, RepositoryNotFoundError),
            f"{absent}the Hub has no such model. Check the name{hint}, and for a private model "
            f"{LOGIN}.",
        ),
        (_busy(error) is not None, f"{_busy(error)}"),
        (
            constants.HF_HUB_OFFLINE,
            f"{absent}no whole snapshot of it is in the local cache, while HF_HUB_OFFLINE keeps "
            f"from the network. Unset it, or download the model first.",
        ),
        (
            unreached(error),
            f"{absent}{_unanswered(error)}. Check the network, or download the model first.",
        ),
        (
            True,
            f"the Hub does not give it ({message}). Check the name{hint} and the network, or "
            f"download it first.",
        ),
    )
    return f"{where}: {_first(reasons)}"


def _is(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _first(reasons: Sequence[tuple[bool, str]]) -> str:
    return next(text for holds, text in reasons if holds)


@contextmanager
def push_failures(where: str) -> Iterator[None]:
    """Turn what huggingface_hub raises during a push into one sentence.

    Raises:
        LinesError: in place of it.
    """
    try:
        yield
    except (LinesError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename and status_of(error) is None:
            raise LinesError(
                f"{error.filename}: cannot be read any more ({error.strerror}), and nothing was "
                f"committed. Leave the folder as it is during a push."
            ) from error
        raise LinesError(_writing(where, error)) from error


def _writing(where: str, error: Exception) -> str:
    status, message = status_of(error), message_of(error)
    reasons = (
        (isinstance(error, HFValidationError), "found no name of a model, wanted USER/NAME."),
        (
            constants.HF_HUB_OFFLINE
            or (_is(error, OfflineModeIsEnabled) and not _is(error, HubSilent)),
            "HF_HUB_OFFLINE is set, and this needs the network. Unset it.",
        ),
        (
            _is(error, LocalTokenNotFoundError),
            f"found no token, wanted one that may write. Log in with {LOGIN}.",
        ),
        (status == 401, f"the Hub wants a token that may write ({message}). Log in with {LOGIN}."),
        (
            status == 403,
            f"your token may not do this ({message}). Push to a name of your own, or log "
            f"in with a token that may write there: {LOGIN}.",
        ),
        (_is(error, RevisionNotFoundError), "the Hub has no such branch. Check --branch."),
        (
            _is(error, RepositoryNotFoundError),
            "the Hub has no such model, or hides it from this token. Check the name.",
        ),
        (
            status in (409, 412),
            f"somebody else has changed it meanwhile ({message}), and nothing was "
            f"committed. Run the same command again.",
        ),
        (
            status in (402, 413, 507),
            f"the Hub has no room for it ({message}). Free some of your storage.",
        ),
        (_busy(error) is not None, f"{_busy(error)} What the Hub has is not sent twice."),
        (
            unreached(error),
            f"{_unanswered(error)}. Check the network and run the same command again: what the Hub "
            f"has is not sent twice.",
        ),
        (
            True,
            f"the Hub refused ({message}), and no commit was made. Run the same command again; "
            f"what the Hub has is not sent twice.",
        ),
    )
    return f"{where}: {_first(reasons)}"
