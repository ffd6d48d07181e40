"""A merged model to the Hub: large files first, then one commit that shows it all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from packaging.version import Version

from mergekit_lines.card import PICTURE, Place, assembled, body, is_edited
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.findings import Block, Coefficient, Container, Inspection, Outside
from mergekit_lines.hub.failures import told
from mergekit_lines.hub.metadata import (
    Facts,
    Licence,
    checked,
    disagreement,
    facts,
    front_matter,
    inherited,
)
from mergekit_lines.hub.origins import Origins, joined
from mergekit_lines.hub.whole import RECIPE, REPORT, Merged, merged_model
from mergekit_lines.report import to_json

CARD = "README.md"
PUBLIC = "https://huggingface.co"
# Settings that transformers writes, in which a path may be changed without harm.
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
# What an earlier model in the same repository may have left, and loaders would take for ours.
STALE = re.compile(
    r"[^/]+\.(safetensors|bin)|[^/]+\.(safetensors|bin)\.index\.json|adapter_config\.json"
    r"|tokenizer[^/]*\.(json|model)|vocab\.(json|txt)|merges\.txt|spiece\.model"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)"
    r"|generation_config\.json"
)
_PIECE = 1 << 22
_OVERLAP = 4096  # longer than any path or token


@dataclass(frozen=True)
class Wanted:
    """What the command was told.

    Raises:
        LinesError: ``repo`` is no name of a model.
    """

    repo: str
    private: bool = False
    branch: str | None = None
    message: str | None = None
    create_pr: bool = False
    licence: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no name."""
        try:
            validate_repo_id(self.repo)
        except HFValidationError:
            good = False
        else:
            good = self.repo.count("/") == 1
        if not good:
            raise LinesError(f"{self.repo}: found no name of a model on the Hub, wanted USER/NAME.")


@dataclass
class Parcel:
    """All that a push sends, by its path in the repository: a file, or a text made for it."""

    files: dict[str, Path | bytes]
    notes: list[str] = field(default_factory=list)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    @property
    def card(self) -> str:
        """The text of README.md."""
        content = self.files[CARD]
        return content.decode() if isinstance(content, bytes) else content.read_text("utf-8")


def pack(out: Path, wanted: Wanted) -> Parcel:
    """Check a merged model and return what a push of it sends; nothing is written.

    Args:
        out: the merge's folder.
        wanted: what the command was told.

    Raises:
        LinesError: the folder is no whole model with a matching report, its licence is not
            known, or a file tells of this machine.
    """
    merged = merged_model(out)
    origins = Origins(merged.config, merged.report.get("inputs", {}), out)
    parcel = Parcel({name: out / name for name in merged.files}, list(merged.notes))
    parcel.files[RECIPE] = origins.recipe(merged.report["recipe"]).encode()
    parcel.files[REPORT] = to_json(origins.report(merged.report)).encode()
    for name in SETTINGS:
        if name in parcel.files:
            given = (out / name).read_text(encoding="utf-8")
            cleaned = origins.settings(given)
            if cleaned != given:
                parcel.files[name] = cleaned.encode()
    picture = _picture(merged, parcel)
    found = facts(origins, HfApi())
    licence = _licence(out, wanted, found)
    parcel.files[CARD] = _card(merged, origins, wanted, found, licence, picture).encode()
    local = [origin.name for origin in origins.local]
    if local:
        parcel.notes.append(
            f"{joined(local)}: not on the Hub, so that others cannot make this merge again"
        )
    problems = list(_leaks(parcel, origins))
    if problems:
        raise LinesError(problems)
    return parcel


def _licence(out: Path, wanted: Wanted, found: Sequence[Facts]) -> Licence:
    if wanted.licence:
        return Licence(wanted.licence)
    try:
        data = ModelCard.load(out / CARD, ignore_metadata_errors=True).data
    except (OSError, ValueError):
        data = None
    if data is not None and data.get("license"):
        return Licence(data.license, data.get("license_name"), data.get("license_link"))
    licence = inherited(found)
    if licence is None:
        raise LinesError(
            f"license: the inputs do not agree on one, or do not say it ({disagreement(found)}), "
            f"and wanted is one that they all allow. Give it with --license."
        )
    return licence


def _card(
    merged: Merged,
    origins: Origins,
    wanted: Wanted,
    found: Sequence[Facts],
    licence: Licence,
    picture: str | None,
) -> str:
    name = wanted.repo.split("/")[1]
    data = front_matter(merged.folder, origins, found, licence, name)
    path = merged.folder / CARD
    given = path.read_text(encoding="utf-8") if path.exists() else None
    if given is None or not is_edited(given):
        place = Place(name, wanted.repo, picture)
        text = body(merged.folder, merged.config, origins, merged.report, place)
        return assembled(data, text)
    # Somebody wrote into it: their words stay, and front matter is only added.
    card = ModelCard(checked(given))
    for key, value in vars(data).items():
        given_anew = key.startswith("license") and wanted.licence
        if value is not None and (card.data.get(key) is None or given_anew):
            card.data[key] = value
    card.text = origins.scrubbed(card.text)
    return checked(str(card))


def _picture(merged: Merged, parcel: Parcel) -> str | None:
    """Draw λ over depth, where matplotlib is there to do it."""
    from mergekit_lines.plot import draw

    report = merged.report
    if not report["containers"]:
        return None
    told_of = Inspection(
        None,
        report["merge_method"],
        wraps=tuple(wrap for wrap in report["wrap"] if wrap),
        containers=tuple(
            Container(
                container["name"],
                tuple(
                    Block(number, _coefficients(value), 0, 0, 0)
                    for number, value in enumerate(container["coefficients"], 1)
                ),
            )
            for container in report["containers"]
        ),
        outside=tuple(
            Outside(name, Coefficient(value), 0, 0) for name, value in report["outside"].items()
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PICTURE)
        try:
            draw([told_of], path)
        except LinesError:
            parcel.notes.append(
                "the card has no picture: `pip install 'mergekit-lines[plot]'` draws one"
            )
            return None
        parcel.files[PICTURE] = path.read_bytes()
    return PICTURE


def _coefficients(value: float | list[float]) -> tuple[Coefficient, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(Coefficient(entry) for entry in values)


def _leaks(parcel: Parcel, origins: Origins) -> Iterator[str]:
    """Tell which files hold a path of this machine, or the token."""
    token = get_token()
    for name, content in parcel.files.items():
        if Path(name).suffix in (".safetensors", ".png"):
            continue
        for piece in _pieces(content):
            if token and token in piece:
                yield f"{name}: holds your token for the Hub. Take it out and push again."
                break
            if (path := origins.leak(piece)) is not None:
                yield (
                    f"{name}: holds a path of this machine ({path}), which is nobody else's "
                    f"business. Take it out of the file, or the file out of the folder."
                )
                break


def _pieces(content: Path | bytes) -> Iterator[str]:
    if isinstance(content, bytes):
        yield content.decode("utf-8", "replace")
        return
    with content.open("rb") as file:
        before = b""
        while piece := file.read(_PIECE):
            yield (before + piece).decode("utf-8", "replace")
            before = piece[-_OVERLAP:]


def reach(wanted: Wanted) -> None:
    """Look whether the Hub can be reached with this token, before anything is read or drawn.

    Raises:
        LinesError: there is no token, it is not accepted, or there is no network.
    """
    if constants.HF_HUB_OFFLINE:
        raise LinesError(
            f"{wanted.repo}: HF_HUB_OFFLINE is set, and a push needs the network. Unset it."
        )
    if not get_token():
        raise LinesError(
            f"{wanted.repo}: found no token for the Hub, wanted one that may write. Log in with "
            f"`hf auth login`, or set HF_TOKEN."
        )
    with told(wanted.repo), suppress(RepositoryNotFoundError):
        HfApi().model_info(wanted.repo)


def send(parcel: Parcel, wanted: Wanted, say: Callable[[str], None]) -> str:
    """Send a parcel: each large file by itself, then everything in one commit.

    What the Hub has already, from an earlier push that did not end, is not sent again. Weights of
    another model in the repository are deleted by the same commit.

    Args:
        parcel: of :func:`pack`.
        wanted: what the command was told.
        say: is told what happens.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        LinesError: the Hub refuses or cannot be reached; it then shows nothing new.
    """
    api = HfApi()
    with told(wanted.repo):
        _validate(parcel.card)
        head = _repository(api, wanted)
        revision = wanted.branch
        operations = [CommitOperationAdd(name, content) for name, content in _by_size(parcel)]
        large = [operation for operation in operations if _is_weights(operation.path_in_repo)]
        for number, operation in enumerate(large, 1):
            size = parcel.size(operation.path_in_repo)
            say(f"{operation.path_in_repo}, {size:,} bytes ({number} of {len(large)})")
            api.preupload_lfs_files(
                wanted.repo,
                [operation],
                revision=revision,
                create_pr=wanted.create_pr,
                free_memory=False,
            )
        there = api.list_repo_files(wanted.repo, revision=revision)
        stale = [name for name in there if name not in parcel.files and STALE.fullmatch(name)]
        if stale:
            say(f"of the model that is there now, {', '.join(sorted(stale))} will be deleted")
        done = api.create_commit(
            wanted.repo,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=wanted.message or "Merge with mergekit-lines",
            revision=revision,
            create_pr=wanted.create_pr,
            parent_commit=None if wanted.create_pr else head,
        )
    if done.oid == head:
        say("the Hub has all of it already: nothing was committed")
    return str(done.pr_url or done.commit_url)


def _validate(text: str) -> None:
    """Let the Hub read the front matter before gigabytes are sent; a commit would be refused."""
    if constants.ENDPOINT != PUBLIC and Version(version("huggingface_hub")) < Version("2.4"):
        return  # these ask the public Hub, whatever HF_ENDPOINT says
    try:
        ModelCard(text).validate()
    except ValueError as error:
        said = ", ".join(re.findall(r'"message": ?"((?:[^"\\]|\\.)*)"', str(error)))
        raise LinesError(
            f"{CARD}: the Hub refuses its front matter ({said or reason(error)}). Mend it, or give "
            f"another --license."
        ) from error


def _repository(api: HfApi, wanted: Wanted) -> str | None:
    """Make the repository and the branch where they are not there; return the branch's commit."""
    info: Any
    try:
        info = api.model_info(wanted.repo)
    except RepositoryNotFoundError:
        if wanted.create_pr:
            raise LinesError(
                f"{wanted.repo}: the Hub has no such model, or hides it from this token, and "
                f"--create-pr wants one. Check the name, or leave --create-pr out."
            ) from None
        api.create_repo(wanted.repo, private=wanted.private or None, exist_ok=True)
        info = api.model_info(wanted.repo)
    if wanted.private and not info.private:
        raise LinesError(
            f"{wanted.repo}: it is there already and public, and --private changes no model that "
            f"is there. Make it private on its page, or push to another name."
        )
    if wanted.branch:
        api.create_branch(wanted.repo, branch=wanted.branch, exist_ok=True)
        info = api.model_info(wanted.repo, revision=wanted.branch)
    commit: str | None = info.sha
    return commit


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _by_size(parcel: Parcel) -> list[tuple[str, Path | bytes]]:
    return sorted(parcel.files.items(), key=lambda item: not _is_weights(item[0]))
