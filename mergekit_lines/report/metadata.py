"""A card's front matter: what a merge inherits from its inputs, and what is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results

from mergekit_lines.checkpoint.bounded import check_yaml, parse_yaml, read_json, read_text
from mergekit_lines.checkpoint.remote.failures import PUBLIC, put_off, reading
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.report.library import library, task_of
from mergekit_lines.report.origins import Origin, Origins

TAGS = ("mergekit", "merge")
BY_DEPTH = "lines"  # one more, where something is scaled by depth
RESULTS = "results.json"
RESULTS_FORMAT = 1
LINE = 300  # letters of a name or an address in a card
# Licences that say nothing without a name: two inputs may mean two different ones.
UNNAMED = ("other", "unknown")


@dataclass(frozen=True)
class Licence:
    """A licence as front matter has it: the id, and for ``other`` its name and its text."""

    license: str
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True)
class Facts:
    """What an input's own card says."""

    origin: Origin
    licence: Licence | None = None
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None


def facts(origins: Origins, api: HfApi | None = None) -> list[Facts]:
    """Return what the inputs' cards say.

    Args:
        origins: the inputs.
        api: asked for models on the Hub; without it only what is on this machine is read.

    Raises:
        LinesError: the Hub is busy or silent, and would say at another time.
    """
    parts = {origin.name: origin for origin in origins.parts.values()}
    return [_facts(origin, api) for origin in parts.values()]


def _facts(origin: Origin, api: HfApi | None) -> Facts:
    data: Any = None
    if origin.on_hub and api is not None:
        try:
            info = api.model_info(origin.name, revision=origin.commit or origin.revision)
            data = info.card_data
        except Exception as error:
            if put_off(error):
                raise LinesError(reading(f"model {origin.name}", error, folder=False)) from error
            data = None
    data = data or _read(origin)
    if data is None:
        return Facts(origin)
    licence, language, task = (data.get(key) for key in ("license", "language", "pipeline_tag"))
    name, link = (data.get(key) for key in ("license_name", "license_link"))
    listed = [language] if isinstance(language, str) else language
    licence, link = _only_text(licence), _only_text(link)
    if link and not re.match("https?://", link):  # a file beside the input's card
        link = f"{PUBLIC}/{origin.name}/blob/main/{link}" if origin.on_hub else None
    return Facts(
        origin,
        Licence(licence, _only_text(name), link) if licence else None,
        tuple(filter(_only_text, listed)) if isinstance(listed, list) else (),
        _only_text(task),
    )


def _only_text(value: Any) -> str | None:
    """Return a line of text; whatever else stands in somebody's card is left out."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < LINE else None


def _read(origin: Origin) -> Any:
    """Return the front matter of a card on this machine, or None."""
    path: Any = Path(origin.path, "README.md")
    if origin.on_hub and not path.exists():
        path = try_to_load_from_cache(origin.name, "README.md", revision=origin.commit)
    try:
        text = read_text(Path(path))
        matter = REGEX_YAML_BLOCK.match(text) if text[:3] == "---" else None
        data = parse_yaml(matter[2]) if matter else None
    except (OSError, ValueError, TypeError):  # a card that cannot be read says nothing
        return None
    return data if isinstance(data, dict) else None


def inherited(inputs: Sequence[Facts]) -> Licence | None:
    """Return the licence that every input has, if there is one.

    ``other`` is one only with its name. Of the links to its text the base's is taken.
    """
    licences = [fact.licence for fact in inputs]
    first = licences[0] if licences else None
    if first is None or (first.license in UNNAMED and not first.license_name):
        return None
    same = {licence and (licence.license, licence.license_name) for licence in licences}
    return first if len(same) == 1 else None


def disagreement(inputs: Sequence[Facts]) -> str:
    """Say what each input's licence is."""
    return ", ".join(
        f"{fact.origin.name}: {_called(fact.licence) if fact.licence else 'not known'}"
        for fact in inputs
    )


def _called(licence: Licence) -> str:
    if licence.license not in UNNAMED:
        return licence.license
    return f"{licence.license} ({licence.license_name or 'without a name'})"


def front_matter(
    folder: Path,
    origins: Origins,
    inputs: Sequence[Facts],
    licence: Licence | None,
    name: str,
    *,
    by_depth: bool = True,
) -> ModelCardData:
    """Return the front matter of a merge.

    Args:
        folder: the merged model.
        origins: its inputs.
        inputs: what their cards say.
        licence: the merge's, if it is known.
        name: the merged model's, for its results.
        by_depth: whether it is scaled by depth.

    Raises:
        LinesError: the results file cannot be read.
    """
    hub_ids = list(dict.fromkeys(origin.name for origin in origins.hub))
    tasks = {fact.pipeline_tag for fact in inputs if fact.pipeline_tag}
    task = task_of(folder) or (tasks.pop() if len(tasks) == 1 else None)
    languages = list(inputs[0].language) if inputs else []  # the base's: tuning seldom adds one
    more: dict[str, Any] = {"base_model_relation": "merge"} if hub_ids else {}
    if licence is not None:
        more |= {key: value for key, value in vars(licence).items() if value is not None}
    results = read_results(folder, name)
    if results is not None:
        more |= {"model_name": name, "eval_results": results}
    return ModelCardData(
        base_model=hub_ids or None,
        library_name=library(folder),
        tags=[*TAGS, BY_DEPTH] if by_depth else list(TAGS),
        language=languages or None,
        pipeline_tag=task,
        **more,
    )


def read_results(folder: Path, name: str) -> list[Any] | None:
    """Return the results in a model's folder, if there are any.

    ``results.json`` holds ``{"format": 1, "results": [...]}``, the list as the Hub's
    ``model-index`` has it: for each task and dataset ``{"task": {"type"}, "dataset": {"type",
    "name"}, "metrics": [{"type", "value"}]}``.

    Raises:
        LinesError: it is something else.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        content = read_json(path, finite=True)
        if content.get("format") != RESULTS_FORMAT:
            raise ValueError(f"format {content.get('format')!r}")  # noqa: TRY301
        _, results = model_index_to_eval_results([{"name": name, "results": content["results"]}])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LinesError(
            f"{RESULTS}: cannot be read ({reason(error)}), wanted format {RESULTS_FORMAT}, with "
            f"results as the Hub's model-index has them. Mend the file or remove it."
        ) from error
    return results or None


def read_card(text: str, *, ignore_metadata_errors: bool = False) -> ModelCard:
    """Return a card as huggingface_hub reads it, once its front matter is known to be bounded.

    Raises:
        ValueError: its front matter cannot be read.
    """
    if matter := REGEX_YAML_BLOCK.search(text):
        check_yaml(matter[2])
    return ModelCard(text, ignore_metadata_errors=ignore_metadata_errors)


def checked(text: str) -> str:
    """Return a card as huggingface_hub's classes read and write it.

    Raises:
        LinesError: its front matter does not survive that.
    """
    try:
        card = read_card(text)
        again = read_card(card.content)
    except Exception as error:
        raise LinesError(
            f"README.md: its front matter cannot be read ({reason(error)}). Mend what stands "
            f"between the first two lines of ---."
        ) from error
    if vars(card.data) != vars(again.data) or not re.match(r"---\r?\n", text):
        raise LinesError(
            "README.md: its front matter is lost when it is read and written, wanted YAML between "
            "two lines of ---. Mend it."
        )
    return str(card.content)
