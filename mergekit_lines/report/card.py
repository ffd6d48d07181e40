"""The model card of a merge: written without a network call, completed when it is pushed.

A card holds no path of the merging machine. It ends with a comment that has the digest of its
own text: with that a push tells a card that someone has edited, whose text it leaves alone.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCardData
from mergekit.config import MergeConfiguration

from mergekit_lines.errors import visible
from mergekit_lines.recipe.options import merging_command
from mergekit_lines.report.file import is_by_depth
from mergekit_lines.report.flags import safe_flags
from mergekit_lines.report.library import loading_code
from mergekit_lines.report.markdown import code, fenced, prose
from mergekit_lines.report.metadata import (
    checked,
    facts,
    front_matter,
    inherited,
    read_card,
    read_results,
)
from mergekit_lines.report.origins import Origin, Origins, joined

PICTURE = "lines.png"
LONG = 12  # blocks from which on a table is folded away
_MARK = re.compile(r"\n<!-- mergekit-lines:([0-9a-f]{16}) -->\n\Z")
_TEXT = """
# {name}

{merge}{scaled}; made with
[mergekit](https://github.com/arcee-ai/mergekit) and mergekit-lines ({method}).

{models}

{idea}## Use it

```python
{load}
```

{coefficients}## Recipe

{recipe}

## Make it again

{repeat}
{results}{citation}"""
_IDEA = """\
[LiNeS](https://arxiv.org/abs/2410.17146) (ICLR 2025) scales what the models learnt beyond their
base block by block, with a coefficient λ that goes from α at the first block to α + β at the last.
Shallow blocks stay close to the base and deep ones keep what was learnt, against forgetting and
against interference between the models.

"""
_COEFFICIENTS = """## Coefficients

α = {alpha}

{picture}{tables}

"""
_CITATION = """
## Citation

```bibtex
@inproceedings{wang2025lines,
  title     = {{LiNeS}: Post-training Layer Scaling Prevents Forgetting and Enhances
               Model Merging},
  author    = {Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jimenez,
               Guillermo and Fleuret, Fran{\\c{c}}ois and Frossard, Pascal},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}
```
"""


@dataclass(frozen=True)
class Place:
    """Where a card is read: beside a model on a disk, or on the Hub.

    Attributes:
        name: the folder's, or the repository's.
        repo: on the Hub, with its owner; None on a disk.
        branch: there, if it is not the default one.
        picture: the file with λ over depth, if there is one.
    """

    name: str
    repo: str | None = None
    branch: str | None = None
    picture: str | None = None


def card(folder: Path, config: MergeConfiguration, content: Mapping[str, Any], name: str) -> str:
    """Return README.md of a merge that was just made; nothing is asked of the Hub.

    Args:
        folder: the merged model.
        config: the recipe.
        content: the merge's report.
        name: of the folder that the model will be in.
    """
    origins = Origins(config, content.get("inputs", {}), folder)
    inputs = facts(origins)
    licence, by_depth = inherited(inputs), is_by_depth(content)
    data = front_matter(folder, origins, inputs, licence, name, by_depth=by_depth)
    return assembled(data, body(folder, config, origins, content, Place(name)))


def assembled(data: ModelCardData, text: str) -> str:
    """Return a whole card with its mark."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return checked(f"---\n{data.to_yaml()}\n---\n{text}\n<!-- mergekit-lines:{digest} -->\n")


def is_edited(text: str) -> bool:
    """Tell whether the text below the front matter of a card is no longer what we wrote."""
    below = read_card(text, ignore_metadata_errors=True).text
    mark = _MARK.search(below)
    if mark is None:
        return True
    return hashlib.sha256(below[: mark.start()].encode()).hexdigest()[:16] != mark[1]


def body(
    folder: Path,
    config: MergeConfiguration,
    origins: Origins,
    content: Mapping[str, Any],
    place: Place,
) -> str:
    """Return the card's text below its front matter.

    Args:
        folder: the merged model.
        config: the recipe.
        origins: the recipe's models.
        content: the merge's report.
        place: where the card will be read.
    """
    recipe = origins.recipe(content["recipe"])
    wraps = [wrap for wrap in content["wrap"] if wrap]
    by_depth = is_by_depth(content)
    return _TEXT.format(
        name=prose(place.name),
        method=code(f"merge_method: {content['merge_method']}"),
        merge=f"A merge by {joined(wraps)}" if wraps else "A fine-tuned model's change",
        models=_models(config, origins, content),
        scaled=", scaled block by block with LiNeS" if by_depth else "",
        idea=_IDEA if by_depth else "",
        load=_load(folder, place),
        coefficients=_coefficients(content, place) if by_depth else "",
        recipe=fenced(recipe, "yaml"),
        repeat=_repeat(origins, content, place),
        results=_results(folder),
        citation=_CITATION if by_depth else "",
    )


def _coefficients(content: Mapping[str, Any], place: Place) -> str:
    title = "λ over the residual blocks, first to last"
    picture = f"![{title}]({place.picture})\n\n" if place.picture else ""
    alpha, tables = _alpha(content["alpha"]), _tables(content)
    return _COEFFICIENTS.format(alpha=alpha, picture=picture, tables=tables)


def _models(config: MergeConfiguration, origins: Origins, content: Mapping[str, Any]) -> str:
    base = config.base_model
    other = "Merged" if any(content["wrap"]) else "Fine-tuned"
    lines = []
    for model in origins.models:
        role = "Base" if model == base else other
        shown = " with the adapter ".join(_shown(origin) for origin in origins.of(model))
        lines.append(f"- {role}: {shown}")
    if base is None:
        lines.append("- The base is given slice by slice; see the recipe.")
    dropped = content.get("dropped") or {}
    count = sum(map(len, dropped.values()))
    if count:
        lines.append(f"- {count} tensors that the base lacks were left out.")
    return "\n".join(lines)


def _shown(origin: Origin) -> str:
    if not origin.on_hub:
        return f"{code(origin.name)}, a folder that is not on the Hub"
    link = f"[{prose(origin.name)}](https://huggingface.co/{quote(origin.name)})"
    pinned = origin.commit or origin.revision
    return f"{link} at {code(pinned[:12])}" if pinned else link


def _load(folder: Path, place: Place) -> str:
    name = place.repo or f"path/to/{place.name}"
    return loading_code(folder, name, place.branch, on_hub=place.repo is not None)


def _alpha(alpha: Mapping[str, Any]) -> str:
    value = alpha["value"]
    if value is None:
        return "given tensor by tensor, see the recipe."
    if "models" not in alpha:
        return f"{value}, given by the recipe."
    if "blocks" in alpha:
        norm = alpha["norm"].upper()
        return (
            f"found for each block, by Eq. 2 of the paper over the tensors in it "
            f"({alpha['models']} models, {norm} norms); {value} over the whole model."
        )
    how = "in closed form" if alpha.get("tau_sum") is None else f"by {alpha['norm'].upper()} norms"
    return f"{value}, found by Eq. 2 of the paper over {alpha['models']} models, {how}."


def _tables(content: Mapping[str, Any]) -> str:
    parts = []
    for container in content["containers"]:
        blocks = container["coefficients"]
        rows = [f"| {code(container['name'], cell=True)} | λ |", "| --- | ---: |"]
        for number, value in enumerate(blocks, 1):
            rows.append(f"| block {number} | {_values(value)} |")
        if len(blocks) > LONG:
            extent = f"{len(blocks)} blocks, λ from {_values(blocks[0])} to {_values(blocks[-1])}"
            name = html.escape(visible(container["name"]))
            title = f"<summary><code>{name}</code>: {extent}</summary>"
            rows = ["<details>", title, "", *rows, "", "</details>"]
        parts.append("\n".join(rows))
    outside = content["outside"]
    if outside:
        values = sorted(set(outside.values()))
        count = f"{len(outside)} tensors" if len(outside) > 1 else "1 tensor"
        parts.append(f"Outside the blocks: {count}, λ = {_values(values)}.")
    return "\n\n".join(parts)


def _values(value: float | Sequence[float]) -> str:
    listed = [value] if isinstance(value, (int, float)) else value
    return ", ".join(f"{entry:.6g}" for entry in listed)


def _repeat(origins: Origins, content: Mapping[str, Any], place: Place) -> str:
    versions = {"mergekit-lines": content["mergekit_lines"], **content["versions"]}
    listed = prose(", ".join(f"{name} {version}" for name, version in versions.items()))
    source = f"{place.repo}@{place.branch}" if place.branch else place.repo
    pull = f"mergekit-lines pull {source} recipe.yml --pin\n" if source else ""
    first = "" if source else "Save the recipe as `recipe.yml` and run\n\n"
    words = [*merging_command(content["merge_method"]), "recipe.yml", "OUT"]
    merge = visible(" ".join([*words, *safe_flags(content.get("flags"))]))
    text = (
        f"{first}{fenced(pull + merge, 'sh')}\n\n"
        f"The same inputs and versions give the same bytes on the same kind of device: {listed}."
    )
    local = [origin.name for origin in origins.local]
    if local:
        it = "it is" if len(local) == 1 else "they are"
        text += (
            f"\n\n{joined(local)} {'was' if len(local) == 1 else 'were'} on the disk of whoever "
            f"merged: only where {it} at hand can the merge be made again, with its path in "
            f"the recipe."
        )
    return text


def _results(folder: Path) -> str:
    results = read_results(folder, "model") or []
    if not results:
        return ""
    rows = ["| dataset | metric | value |", "| --- | --- | ---: |"]
    for result in results:
        cells = (
            result.dataset_name,
            result.metric_name or result.metric_type,
            _measured(result.metric_value),
        )
        rows.append(f"| {' | '.join(prose(' '.join(str(cell).split())) for cell in cells)} |")
    return "\n## Results\n\n" + "\n".join(rows) + "\n"


def _measured(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
