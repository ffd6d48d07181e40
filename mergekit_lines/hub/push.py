"""A merged model to the Hub: large files first, then one commit that shows it all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import RepositoryNotFoundError
from packaging.version import Version

from mergekit_lines.checkpoint.remote.failures import PUBLIC, push_failures
from mergekit_lines.checkpoint.remote.headers import SHA256, files_of
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.files import CARD
from mergekit_lines.hub.parcel import Parcel, PushOptions

# What an earlier model in the same repository may have left, and loaders would take for ours.
STALE = re.compile(
    r"[^/]+\.(safetensors|bin)|[^/]+\.(safetensors|bin)\.index\.json|adapter_config\.json"
    r"|tokenizer[^/]*\.(json|model)|vocab\.(json|txt)|merges\.txt|spiece\.model"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)"
    r"|generation_config\.json"
)


@hub_session()
def reach(options: PushOptions) -> None:
    """Look whether the Hub can be reached with this token, before anything is read or drawn.

    Raises:
        LinesError: there is no token, it is not accepted, or there is no network.
    """
    if constants.HF_HUB_OFFLINE:
        raise LinesError(
            f"{options.repo}: HF_HUB_OFFLINE is set, and a push needs the network. Unset it."
        )
    if not get_token():
        raise LinesError(
            f"{options.repo}: found no token for the Hub, wanted one that may write. Log in with "
            f"`hf auth login`, or set HF_TOKEN."
        )
    with push_failures(options.repo), suppress(RepositoryNotFoundError):
        HfApi().model_info(options.repo)


@hub_session()
def send(parcel: Parcel, options: PushOptions, say: Callable[[str], None]) -> str:
    """Send a parcel: each large file by itself, then everything in one commit.

    What the Hub has already, from an earlier push that did not end, is not sent again. Weights of
    another model in the repository are deleted by the same commit.

    Args:
        parcel: of :func:`~mergekit_lines.hub.parcel.pack`.
        options: of the push.
        say: takes a line on what happens.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        LinesError: the Hub refuses or cannot be reached; it then shows nothing new.
    """
    api = HfApi()
    with push_failures(options.repo):
        _validate(parcel.card)
        head = _repository(api, options)
        operations = _upload(api, parcel, options, say)
        present = api.list_repo_files(options.repo, revision=options.branch)
        stale = [name for name in present if name not in parcel.files and STALE.fullmatch(name)]
        if stale:
            say(f"of the model that is there now, {', '.join(sorted(stale))} will be deleted")
        done = api.create_commit(
            options.repo,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=options.message or "Merge with mergekit-lines",
            revision=options.branch,
            create_pr=options.create_pr,
            parent_commit=None if options.create_pr else head,
        )
    _check_there(options, done, operations)
    if done.oid == head:
        say("the Hub has all of it already: nothing was committed")
    return str(done.pr_url or done.commit_url)


def _upload(
    api: HfApi, parcel: Parcel, options: PushOptions, say: Callable[[str], None]
) -> list[CommitOperationAdd]:
    """Send the weights; return all files of a parcel as a commit takes them."""
    operations = []
    large = [name for name in parcel.files if name.endswith(".safetensors")]
    for number, name in enumerate(large, 1):
        say(f"{name}, {parcel.size(name):,} bytes ({number} of {len(large)})")
        operation = CommitOperationAdd(name, parcel.files[name])  # reads it for its digest
        api.preupload_lfs_files(
            options.repo,
            [operation],
            revision=options.branch,
            create_pr=options.create_pr,
            free_memory=False,
        )
        operations.append(operation)
    small = [(name, content) for name, content in parcel.files.items() if name not in large]
    return operations + [CommitOperationAdd(name, content) for name, content in small]


def _check_there(
    options: PushOptions, done: CommitInfo, operations: Sequence[CommitOperationAdd]
) -> None:
    """Hold what the Hub now shows of large files against what was sent.

    Raises:
        LinesError: it shows something else.
    """
    sent = {one.path_in_repo: one.upload_info.sha256.hex() for one in operations}
    try:
        digests = files_of(options.repo, done.pr_revision or done.oid).digests
    except Exception:  # noqa: BLE001 - the commit is made, whether it can be looked at or not
        return
    wrong = [
        name
        for name, digest in digests.items()
        if len(digest) == SHA256 and name in sent and digest != sent[name]
    ]
    if wrong:
        raise LinesError(
            f"{options.repo}: the Hub has taken {some(wrong, 3)} and shows another content of it "
            f"(by its SHA-256). Run the same command again, or look at the model's page."
        )


def _validate(text: str) -> None:
    """Let the Hub read the front matter before gigabytes are sent; a commit would be refused."""
    if constants.ENDPOINT != PUBLIC and Version(version("huggingface_hub")) < Version("2.4"):
        return  # these ask the public Hub, whatever HF_ENDPOINT says
    try:
        ModelCard(text).validate()
    except ValueError as error:
        messages = ", ".join(re.findall(r'"message": ?"((?:[^"\\]|\\.)*)"', str(error)))
        raise LinesError(
            f"{CARD}: the Hub refuses its front matter ({messages or reason(error)}). Mend it, or "
            f"give another --license."
        ) from error


def _repository(api: HfApi, options: PushOptions) -> str | None:
    """Make the repository and the branch where they are not there; return the branch's commit."""
    info: Any
    try:
        info = api.model_info(options.repo)
    except RepositoryNotFoundError:
        if options.create_pr:
            raise LinesError(
                f"{options.repo}: the Hub has no such model, or hides it from this token, and "
                f"--create-pr wants one. Check the name, or leave --create-pr out."
            ) from None
        api.create_repo(options.repo, private=options.private or None, exist_ok=True)
        info = api.model_info(options.repo)
    if options.private and not info.private:
        raise LinesError(
            f"{options.repo}: it is there already and public, and --private changes no model that "
            f"is there. Make it private on its page, or push to another name."
        )
    if options.branch:
        api.create_branch(options.repo, branch=options.branch, exist_ok=True)
        info = api.model_info(options.repo, revision=options.branch)
    commit: str | None = info.sha
    return commit
