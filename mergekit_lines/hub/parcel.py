"""What a push sends of a merged model: its files, with texts that tell nothing of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, get_token

from mergekit_lines.checkpoint.bounded import read_text
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.files import CARD, RECIPE, REPORT
from mergekit_lines.hub.whole import MergedModel, merged_model
from mergekit_lines.report.card import PICTURE, Place, assembled, body, is_edited
from mergekit_lines.report.file import is_by_depth, to_json
from mergekit_lines.report.metadata import (
    Facts,
    Licence,
    checked,
    disagreement,
    facts,
    front_matter,
    inherited,
)
from mergekit_lines.report.origins import Origins, is_repo_id, joined

# Settings that transformers writes, in which a path may be changed without harm.
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
_PIECE = 1 << 22
_OVERLAP = 4096  # longer than any path or token


@dataclass(frozen=True)
class PushOptions:
    """What a push was asked for: where to, how, under which licence.

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
        if not is_repo_id(self.repo) or self.repo.count("/") != 1:
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


@hub_session()
def pack(out: Path, options: PushOptions) -> Parcel:
    """Check a merged model and return what a push of it sends; nothing is written.

    Args:
        out: the merge's folder.
        options: of the push.

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
            text = _utf8(out / name)
            cleaned = origins.settings(text)
            if cleaned != text:
                parcel.files[name] = cleaned.encode()
    picture = _picture(merged, parcel)
    inputs = facts(origins, HfApi())
    own_card = _own_card(out)
    licence = _licence(own_card, options, inputs)
    card = _card(merged, origins, options, inputs, licence, picture, own_card)
    parcel.files[CARD] = card.encode()
    local = [origin.name for origin in origins.local]
    if local:
        parcel.notes.append(
            f"{joined(local)}: not on the Hub, so that others cannot make this merge again"
        )
    if problems := list(_leaks(parcel, origins)):
        raise LinesError(problems)
    return parcel


def _utf8(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise LinesError(
            f"{path}: cannot be read ({reason(error)}), wanted a text in UTF-8. Mend the file."
        ) from error


def _own_card(out: Path) -> ModelCard | None:
    """Return the card that lies in the folder: ours as the merge wrote it, or someone's."""
    path = out / CARD
    return ModelCard(checked(_utf8(path))) if path.exists() else None


def _licence(own_card: ModelCard | None, options: PushOptions, inputs: Sequence[Facts]) -> Licence:
    if options.licence:
        return Licence(options.licence)
    if own_card is not None and own_card.data.get("license"):
        data = own_card.data
        return Licence(str(data.get("license")), data.get("license_name"), data.get("license_link"))
    licence = inherited(inputs)
    if licence is None:
        raise LinesError(
            f"license: the inputs do not agree on one, or do not say it ({disagreement(inputs)}), "
            f"and wanted is one that they all allow. Give it with --license."
        )
    return licence


def _card(
    merged: MergedModel,
    origins: Origins,
    options: PushOptions,
    inputs: Sequence[Facts],
    licence: Licence,
    picture: str | None,
    own_card: ModelCard | None,
) -> str:
    name = options.repo.split("/")[1]
    by_depth = is_by_depth(merged.report)
    data = front_matter(merged.folder, origins, inputs, licence, name, by_depth=by_depth)
    if own_card is not None:
        # What somebody wrote stays, and front matter is only added.
        values = {key: value for key, value in vars(own_card.data).items() if value is not None}
        if options.licence:
            values = {key: value for key, value in values.items() if not key.startswith("license")}
        vars(data).update(values)
    if own_card is None or not is_edited(own_card.content):
        place = Place(name, options.repo, options.branch, picture)
        return assembled(data, body(merged.folder, merged.config, origins, merged.report, place))
    own_card.data = data
    own_card.text = origins.scrubbed(own_card.text)
    return checked(str(own_card))


def _picture(merged: MergedModel, parcel: Parcel) -> str | None:
    """Draw λ over depth, where matplotlib is there to do it."""
    from mergekit_lines.inspection.plot import Panel, draw

    if not merged.report["containers"]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PICTURE)
        try:
            draw([Panel.reported(merged.report)], path)
        except LinesError:
            parcel.notes.append(
                "the card has no picture: `pip install 'mergekit-lines[plot]'` draws one"
            )
            return None
        parcel.files[PICTURE] = path.read_bytes()
    return PICTURE


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
