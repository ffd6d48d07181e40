"""Hostile files in every place where a stranger's file is read, and every command over them.

Whatever the file holds, a command ends, within ten seconds of CPU time and without a traceback;
it touches no file outside its own OUT, and nothing that a terminal would obey is on its output.

``HOSTILE_CASES=all`` runs every place with every content, some minutes; else a fifth is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mergekit_lines.checkpoint.out import HIDDEN_CONFIG
from mergekit_lines.checkpoint.state import MARK
from tests import models
from tests.e2e import hostile
from tests.e2e.hostile import RAW, RECIPE, Write
from tests.e2e.runner import STUCK, ForkServer, Result
from tests.hub import Hub

TOKEN = "hf_PlantedTokenThatNobodyMaySee"
CPU = 10  # seconds
PRELOAD = (
    "mergekit_lines.hub.push",
    "mergekit_lines.hub.pull",
    "mergekit_lines.verify.verify",
    "mergekit_lines.inspection.documents",
    "mergekit_lines.inspection.tables",
    "mergekit_lines.merges.folder",
    "mergekit_lines.merges.single_file",
    "matplotlib.figure",
    "peft",
)
EDIT = ("mergekit-lines", "edit", "./tuned", "--base", "./base", "--gamma", "0.3", "--out", "E")
MERGE, INSPECT = ("mergekit-yaml", "r.yml", "M"), ("mergekit-lines", "inspect", "r.yml")
SHOW, VERIFY = ("mergekit-lines", "inspect", "OUT"), ("mergekit-lines", "verify", "OUT")
PUSH = ("mergekit-lines", "push", "OUT", "user/pushed", "--license", "mit")
PULL = ("mergekit-lines", "pull", "org/evil", "p.yml", "--pin")

Command = tuple[str, ...]


# --- where it is read, and by what -------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One file, what it is made to be, and the command that meets it."""

    file: str
    write: Write
    command: Command

    def __str__(self) -> str:
        return f"{self.file}-{self.write.__name__}-{'-'.join(self.command[:2])}"


INPUTS = (MERGE, INSPECT, EDIT, VERIFY)
CARDS = tuple(map(hostile.card, hostile.YAMLS))
RECIPES = tuple(map(hostile.recipe, hostile.YAMLS))
PARAMETERS = tuple(map(hostile.parameters, hostile.YAMLS))
# A mapping as a value is what mergekit's own parser refuses, shortly, with a traceback of its own.
BEFORE_MERGEKIT = tuple(write for write in PARAMETERS if write.__name__ != "parameters-key")
SPECIAL = (hostile.pipe, hostile.device, hostile.folder)
HEADERS = (hostile.header, hostile.header_deep, hostile.header_long, *SPECIAL)
JSONS = (*hostile.JSONS, *SPECIAL)
SHARD, INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
PLACES: dict[str, tuple[tuple[Write, ...], tuple[Command, ...]]] = {
    "tuned/README.md": ((*CARDS, hostile.no_text, *SPECIAL), (MERGE, PUSH)),
    "tuned/config.json": (JSONS, INPUTS),
    "base/config.json": (JSONS, INPUTS),
    "base/generation_config.json": (JSONS, (MERGE, EDIT)),
    "base/tokenizer_config.json": (JSONS, (MERGE, INSPECT)),
    "tuned/tokenizer.json": (JSONS, (MERGE, INSPECT)),
    f"tuned/{INDEX}": ((*JSONS, hostile.outside), INPUTS),
    f"tuned/{SHARD}": (HEADERS, INPUTS),
    "adapter/adapter_config.json": ((*JSONS, hostile.slow_patterns), (MERGE, INSPECT)),
    "adapter/adapter_model.safetensors": (HEADERS, (MERGE, INSPECT)),
    "r.yml": ((hostile.names, *RECIPES, *PARAMETERS, *SPECIAL), (INSPECT,)),
    "./r.yml": ((*RECIPES, *BEFORE_MERGEKIT), (MERGE,)),
    "OUT/lines_report.json": ((*JSONS, hostile.outside), (SHOW, VERIFY, PUSH)),
    "OUT/README.md": ((*CARDS, hostile.no_text, *SPECIAL), (PUSH, VERIFY)),
    "OUT/results.json": (JSONS[3:], (PUSH,)),
    "OUT/config.json": (JSONS, (PUSH, VERIFY)),
    "OUT/tokenizer_config.json": (JSONS, (PUSH,)),
    f"OUT/{INDEX}": ((*JSONS, hostile.outside), (PUSH, VERIFY)),
    f".M.partial/{MARK}": (JSONS, (MERGE,)),
    "evil/mergekit_config.yml": ((hostile.names, *RECIPES, hostile.no_text), (PULL,)),
    "evil/lines_report.json": (hostile.JSONS, (PULL,)),
}


def _cases() -> list[Case]:
    """Return every place with every write; of the commands each in turn."""
    return [
        Case(file, write, commands[number % len(commands)])
        for file, (writes, commands) in PLACES.items()
        for number, write in enumerate(writes)
    ]


def _some(cases: list[Case]) -> list[Case]:
    """Return a fifth of the cases, and the first of every write that is in none of them."""
    chosen = cases[::5]
    writes = {case.write for case in chosen}
    first = {case.write: case for case in reversed(cases)}
    return chosen + [case for write, case in first.items() if write not in writes]


CASES = _cases() if os.environ.get("HOSTILE_CASES") == "all" else _some(_cases())


@dataclass
class World:
    """Two models, an adapter, a merge of them, a Hub, and files that are nobody's business."""

    folder: Path
    hub: Hub
    server: ForkServer

    def run(self, command: Command, place: Path, scratch: Path) -> Result:
        return self.server.ask(command, place, scratch, STUCK, {"cpu": CPU})[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("world")
    models.llama(place / "base", layers=2, hidden=16, seed=1, max_shard_size="20KB")
    models.finetuned(place / "base", place / "tuned", seed=2)
    models.lora(place / "base", place / "adapter", seed=3, r=2)
    (place / "r.yml").write_text(yaml.safe_dump(RECIPE))
    for name in ("base", "tuned"):
        (place / name / "README.md").write_text("---\nlicense: mit\n---\n# x\n")
    partial = place / ".M.partial"
    partial.mkdir()
    moving = ["notes.txt", "../precious/key.safetensors"]
    (partial / MARK).write_text(json.dumps({"merge": {"a": {"b": "c"}}, "moving": moving}))
    (partial / HIDDEN_CONFIG).write_text("{}")
    (place / "M").mkdir()
    (place / "M" / "notes.txt").write_text("mine")
    (place / "precious").mkdir()
    shutil.copy(next((place / "tuned").glob("*.safetensors")), place / "precious/key.safetensors")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        shutil.copy(place / "tuned" / name, place / "precious" / name)
    with Hub() as hub:
        hub.user("user", TOKEN)
        changes = {**hub.environment(place / "home", TOKEN), "COLUMNS": "100"}
        with ForkServer(place / "log", changes, PRELOAD) as server:
            merge = ("mergekit-yaml", "r.yml", "OUT", "--out-shard-size", "20K")
            server.run(merge, place, place).succeeded()
            results = {"task": {"type": "t"}, "dataset": {"type": "d", "name": "n"}, "metrics": []}
            content = json.dumps({"format": 1, "results": [results]})
            (place / "OUT" / "results.json").write_text(content)
            (place / "evil").mkdir()
            for name in ("mergekit_config.yml", "lines_report.json", "README.md"):
                shutil.copy(place / "OUT" / name, place / "evil" / name)
            yield World(place, hub, server)


def seen(place: Path, changeable: set[str]) -> dict[str, str]:
    """Return the digests of all files but those below what a command may write."""
    files = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if name.parts[0] in changeable or not path.is_file() or path.is_symlink():
            continue
        files[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_file(case: Case, world: World, tmp_path: Path) -> None:
    """The command ends by itself, in words, and has touched nothing that is not its own."""
    place = tmp_path / "place"
    shutil.copytree(world.folder, place, ignore=shutil.ignore_patterns("home", "log", "place"))
    if not case.file.startswith(".M"):
        shutil.rmtree(place / "M")
        shutil.rmtree(place / ".M.partial")
    case.write(place / case.file)
    if case.file.startswith("evil"):
        world.hub.publish("org/evil", place / "evil")
    changeable = {"M", ".M.partial", "E", ".E.partial", "p.yml", ".cache", "scratch"}
    changeable = {name for name in changeable if name != "M" or not case.file.startswith(".M")}
    before = seen(place, changeable)
    (place / "scratch").mkdir()
    result = world.run(case.command, place, place / "scratch")
    shown = result.stdout + result.stderr
    assert result.returncode in (0, 1, 2), shown
    assert "Traceback" not in shown, shown
    assert not [text for text in RAW if text in shown], shown
    after = seen(place, changeable)
    if case.file.startswith(".M"):
        after = {name: after.get(name, "") for name in before}
    assert after == before
    assert not list(tmp_path.rglob("FORGED*"))
