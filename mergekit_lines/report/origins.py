"""Where a recipe's models come from, and its texts without the paths of the merging machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_lines.checkpoint.bounded import check_yaml, parse_json
from mergekit_lines.errors import TextError
from mergekit_lines.files import COMMIT
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.report.markdown import code

# ``models--org--name/snapshots/COMMIT`` is where huggingface_hub keeps a model.
_CACHED = re.compile(r"(?:^|/)models--([^/]+?)/snapshots/([0-9a-f]{40})/?$")
# The keys of a recipe that hold a model, or hold one among other things.
_KEYS = {"model", "base_model", "path", "lora", "source", "tokenizer_source"}
# What ends a path that stands in a text.
_REST = r"(?:[/\\][^\s\"'`<>|,;)\]}]*)?"
# In files that transformers writes, what a model or a tokenizer was loaded from.
_LOADED_FROM = ("_name_or_path", "name_or_path")


@dataclass(frozen=True)
class Origin:
    """A model or an adapter: its name for others, and where it is.

    Attributes:
        path: in the recipe, without a revision.
        name: on the Hub, else that of its folder.
        on_hub: whether ``name`` is its id on the Hub.
        commit: of the Hub, where it is known.
        revision: in the recipe.
    """

    path: str
    name: str
    on_hub: bool
    commit: str | None = None
    revision: str | None = None

    @property
    def written(self) -> str:
        """What stands for :attr:`path` in a recipe for others; ``./`` marks a folder."""
        if not self.on_hub:
            return f"./{self.name}"
        # The cache names a commit, which the recipe then has no revision for.
        pinned = self.path != self.name and self.commit and not self.revision
        return f"{self.name}@{self.commit}" if pinned else self.name


class Origins:
    """The models of one recipe.

    Args:
        config: the recipe.
        inputs: ``inputs`` of the merge's report, which knows what came from the Hub.
        out: the merged model's folder, whose surroundings are nobody's business either.
    """

    def __init__(self, config: MergeConfiguration, inputs: Mapping[str, Any], out: Path) -> None:
        self.parts: dict[tuple[str, str | None], Origin] = {}
        self.models = models_in_order(config)
        for model in self.models:
            entry = inputs.get(str(model), {})
            self._add(model.model, entry.get("revision"), reported=bool(entry))
            if model.lora is not None:
                commit = entry.get("adapter", {}).get("revision")
                self._add(model.lora, commit, reported=bool(entry))
        roots = {Path.home(), Path.cwd(), out.absolute().parent, out.resolve().parent}
        roots |= {Path(place).absolute() for place in (constants.HF_HOME, constants.HF_HUB_CACHE)}
        for part in self.parts.values():
            place = Path(part.path).expanduser()
            if place.is_absolute():
                roots |= {place, place.parent}
        texts = sorted((str(root) for root in roots if root != root.parent), key=len, reverse=True)
        listed = "|".join(map(_root, texts))
        self._machine = re.compile(rf"(?<![\w.:-])(?:{listed}){_REST}") if texts else None

    def _add(self, part: Any, commit: str | None, *, reported: bool) -> None:
        """Take in one path of the recipe; ``reported`` where the report tells of the model."""
        key = (part.path, part.revision)
        if key in self.parts:
            return
        if not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
            commit = None
        cached = _CACHED.search(part.path.replace("\\", "/"))
        if cached:
            name = cached[1].replace("--", "/", 1)
            self.parts[key] = Origin(part.path, name, True, cached[2], part.revision)
        elif commit or not (reported or is_local(part.path)):
            self.parts[key] = Origin(part.path, part.path, True, commit, part.revision)
        else:
            folder = Path(part.path.replace("\\", "/")).expanduser()
            name = stem = folder.name or folder.absolute().name or "model"
            if name == "..":
                name = stem = folder.resolve().name
            taken = {origin.name for origin in self.parts.values()}
            count = 1
            while name in taken:  # of folders with one name
                count += 1
                name = f"{stem}-{count}"
            self.parts[key] = Origin(part.path, name, False, None, part.revision)

    @property
    def hub(self) -> list[Origin]:
        """Those on the Hub, in the recipe's order."""
        return [origin for origin in self.parts.values() if origin.on_hub]

    @property
    def local(self) -> list[Origin]:
        """Those that lie on this machine only."""
        return [origin for origin in self.parts.values() if not origin.on_hub]

    def of(self, model: ModelReference) -> list[Origin]:
        """Return a model's own origin, and its adapter's."""
        parts = [model.model, *([model.lora] if model.lora is not None else [])]
        return [self.parts[part.path, part.revision] for part in parts]

    def reference(self, text: str) -> str:
        """Return a model as the recipe for others names it, given as the recipe names it."""
        try:
            model = ModelReference.parse(text)
        except Exception:  # noqa: BLE001 - a word such as `union`
            return text
        pieces = []
        for part in (model.model, model.lora):
            if part is None:
                continue
            origin = self.parts.get((part.path, part.revision))
            written = origin.written if origin else part.path
            pieces.append(f"{written}@{part.revision}" if part.revision else written)
        return "+".join(pieces)

    def pinned(self, text: str) -> str:
        """Return a recipe in which every model on the Hub has the commit that was merged."""
        pins = {
            f"{origin.name}@{origin.revision}" if origin.revision else origin.name: (
                f"{origin.name}@{origin.commit}"
            )
            for origin in self.hub
            if origin.commit
        }

        def pin(value: str) -> str:
            return "+".join(pins.get(piece, piece) for piece in value.split("+"))

        return _rewritten(text, pin)

    def recipe(self, text: str) -> str:
        """Return the recipe's text with every model as others can know it, comments kept."""
        return self.scrubbed(_rewritten(text, self.reference))

    def report(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the report with no path of this machine in it."""
        renamed = {
            key: {self.reference(name): facts for name, facts in content[key].items()}
            for key in ("inputs", "dropped")
            if isinstance(content.get(key), dict)
        }
        result = {**content, **renamed}
        if isinstance(result.get("recipe"), str):
            result["recipe"] = self.recipe(result["recipe"])
        cleaned: dict[str, Any] = self._walk(result)
        return cleaned

    def settings(self, text: str) -> str:
        """Return the text of a config.json or the like; as it was where nothing was to hide."""
        try:
            content = parse_json(text)
        except TextError:
            return self.scrubbed(text)
        cleaned = self._walk(content)
        if isinstance(cleaned, dict):
            for key in _LOADED_FROM:
                if isinstance(cleaned.get(key), str):
                    cleaned[key] = self._loaded_from(content[key])
        if cleaned == content:
            return text
        return json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n"

    def _loaded_from(self, path: str) -> str:
        for origin in self.parts.values():
            if origin.path == path:
                return origin.name
        cached = _CACHED.search(path)
        if cached:
            return cached[1].replace("--", "/", 1)
        # Wherever it was saved: a path says nothing to anyone else.
        return Path(path).name if is_local(path) else path

    def _walk(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._walk(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._walk(entry) for entry in value]
        return self.scrubbed(value) if isinstance(value, str) else value

    def scrubbed(self, text: str) -> str:
        """Return a text in which of every path of this machine the last name is left."""
        if self._machine is None:
            return text
        return self._machine.sub(lambda match: Path(match[0]).name, text)

    def leak(self, text: str) -> str | None:
        """Return the first path of this machine in a text, if there is one."""
        match = self._machine.search(text) if self._machine else None
        return match[0] if match else None


def _root(text: str) -> str:
    """Return a pattern for a folder; one at the top (``/root``) may be a word of a vocabulary."""
    alone = len(Path(text).parts) > 2
    return re.escape(text) + (r"(?![\w-])" if alone else r"(?=[/\\][\w.-])")


def is_local(path: str) -> bool:
    """Tell whether a recipe's path is a folder, there or not, and no model on the Hub."""
    if path[:1] in ("/", ".", "~", "") or "\\" in path or Path(path).exists():
        return True
    return not is_repo_id(path)


def is_repo_id(name: str) -> bool:
    """Tell whether a name is one that the Hub could have given to a model."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _rewritten(text: str, change: Callable[[str], str]) -> str:
    """Return a recipe with its models changed, every other character as it was."""
    try:
        check_yaml(text)
    except TextError:
        return text
    places = [place for node in yaml.compose_all(text) if node for place in _models(node)]
    for node in sorted(set(places), key=lambda node: -node.start_mark.index):
        new = change(node.value)
        if new != node.value:
            start, end = node.start_mark.index, node.end_mark.index
            text = text[:start] + _scalar(new) + text[end:]
    return text


def _models(node: yaml.Node, key: str = "") -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        if key in _KEYS:
            yield node
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _models(entry, key)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _models(value, str(name.value))


def _scalar(text: str) -> str:
    plain = re.fullmatch(r"[\w./][\w./@+-]*", text, re.ASCII)
    return text if plain and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)


def joined(names: Iterable[str]) -> str:
    """Return names for a sentence: `a`, `b` and `c`."""
    listed = [code(name) for name in names]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
