"""A Hub that is silent, slow, lying or busy: merge, inspect, push and pull come to an end.

Each command is the real one, against a server in a process of its own. Where the Hub goes silent a
command waits a second for it; where it answers, as long as a busy machine may take. No verdict
hangs on how long anything took: a command that waits for ever is ended by the test's own bound, far
above what it needs.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import models
from tests.e2e.runner import STUCK, ForkServer, Result
from tests.hub import Hub

TOKEN = "hf_write"
README = "---\nlicense: mit\n---\n# a model\n"
PRELOAD = ("mergekit_lines.hub.push", "mergekit_lines.hub.pull")
SHORT, LONG = 1, 120  # seconds without a byte, after which a request is given up
RECIPE: dict[str, Any] = {
    "merge_method": "lines",
    "base_model": "org/base",
    "models": [{"model": "org/tuned"}],
    "parameters": {"alpha": 0.3, "beta": 0.5},
}
COMMANDS = {
    "merge": ("mergekit-yaml", "recipe.yml", "never"),
    "inspect": ("mergekit-lines", "inspect", "recipe.yml"),
    "push": ("mergekit-lines", "push", "merged", "user/never"),
    "pull": ("mergekit-lines", "pull", "org/merged", "never.yml", "--force"),
}


@dataclass
class World:
    """A Hub with two models and their merge, and commands that know it."""

    hub: Hub
    server: ForkServer
    work: Path
    digest: str  # of the merge's weights
    patience: int = LONG

    def run(self, *command: str | Path) -> Result:
        more = {"patience": self.patience}
        return self.server.ask(command, self.work, self.work, STUCK, more)[0]

    def forget(self) -> None:
        """Empty the cache, and mend the Hub."""
        self.hub.set(faults=[])
        shutil.rmtree(self.work / "home", ignore_errors=True)
        shutil.rmtree(self.work / "again", ignore_errors=True)

    def refused(self, *command: str | Path) -> str:
        """Return what a command says that fails, and leaves nothing."""
        result = self.run(*command)
        assert result.returncode == 1, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert not (self.work / "never").exists()
        assert not (self.work / "never.yml").exists()
        return result.stdout + result.stderr

    def merged(self) -> str:
        """Return the digest of what a merge of the same recipe now comes to."""
        self.run("mergekit-yaml", "recipe.yml", "again").succeeded()
        return models.weights_digest(self.work / "again")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    models.llama(folder / "base", seed=1)
    models.finetuned(folder / "base", folder / "tuned", seed=2)
    for name in ("base", "tuned"):
        (folder / name / "README.md").write_text(README)
    (work / "recipe.yml").write_text(yaml.safe_dump(RECIPE))
    with Hub({f"org/{path.name}": path for path in folder.iterdir()}) as hub:
        hub.user("user", TOKEN)
        with ForkServer(work / "log", hub.environment(work / "home", TOKEN), PRELOAD) as server:
            server.run(("mergekit-yaml", "recipe.yml", "merged"), work, work).succeeded()
            hub.publish("org/merged", work / "merged")
            yield World(hub, server, work, models.weights_digest(work / "merged"))


@pytest.fixture(autouse=True)
def anew(world: World) -> None:
    world.patience = LONG
    world.forget()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_silent_hub(world: World, command: str) -> None:
    """It takes every request and answers none: said with the Hub's address, after a second try."""
    world.patience = SHORT
    before = len(world.hub.requests)
    world.hub.set(faults=[{"match": ".", "kind": "silent", "times": 99}])
    text = world.refused(*COMMANDS[command])
    assert f"the Hub ({world.hub.url}) does not answer" in text
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in text
    # Asked twice; for the other model it is not waited for again.
    assert len(world.hub.requests) - before == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_that_goes_silent_while_it_answers(world: World, command: str) -> None:
    """The first request is answered, what comes after that is not."""
    world.patience = SHORT
    part = "POST" if command == "push" else "resolve"
    world.hub.set(faults=[{"match": part, "kind": "silent", "times": 99}])
    assert "does not answer" in world.refused(*COMMANDS[command])


@pytest.mark.parametrize(
    "fault", [{"kind": "silent"}, {"status": 503, "headers": {"Retry-After": "0"}}]
)
def test_licences_that_the_hub_does_not_say_now(world: World, fault: dict[str, Any]) -> None:
    """A push that cannot ask for the inputs' licences says so, and not that they have none."""
    world.patience = SHORT if "kind" in fault else LONG
    world.hub.set(faults=[{"match": "api/models/org/", "times": 99, **fault}])
    text = world.refused(*COMMANDS["push"])
    assert "model org/base: the Hub" in text and "license" not in text
    assert "does not answer" in text or "at fault or overloaded" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_that_dwindles(world: World, command: str) -> None:
    """A byte now and then keeps every timeout from its end; the command ends all the same."""
    world.patience = SHORT
    world.hub.set(faults=[{"match": "api/models", "kind": "drip", "pause": 0.3, "times": 99}])
    assert re.search(r"does not answer \(\d+ bytes in \d+ s", world.refused(*COMMANDS[command]))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_without_end(world: World, command: str) -> None:
    """More than any list of files is long: neither memory nor patience is used up by it."""
    world.hub.set(faults=[{"match": "api/models", "kind": "endless", "times": 99}])
    assert "does not answer (without an end in 64 MiB" in world.refused(*COMMANDS[command])


def test_a_download_that_dwindles(world: World) -> None:
    """Weights too; what has come is there when the Hub is well again."""
    world.patience = SHORT
    world.hub.set(faults=[{"match": "_cdn.*", "kind": "drip", "pause": 0.3, "times": 99}])
    text = world.refused(*COMMANDS["merge"])
    assert re.search(r"does not answer \(\d+ bytes in \d+ s", text), text
    world.patience = LONG
    world.hub.set(faults=[])
    assert world.merged() == world.digest


@pytest.mark.parametrize("command", COMMANDS)
def test_too_many_requests(world: World, command: str) -> None:
    """A Hub that asks to wait a second is waited for, and everything comes to its end."""
    headers = {"Retry-After": "1"}
    world.hub.set(faults=[{"match": ".", "status": 429, "times": 2, "headers": headers}])
    words = {
        "merge": ("mergekit-yaml", "recipe.yml", "again"),
        "push": ("mergekit-lines", "push", "merged", "user/busy"),
        "pull": ("mergekit-lines", "pull", "org/merged", "busy.yml"),
    }
    result = world.run(*words.get(command, COMMANDS[command])).succeeded()
    assert "[lines] the Hub asks to wait (429, too many requests): 1 s" in result.stderr
    if command == "merge":
        assert models.weights_digest(world.work / "again") == world.digest
    if command == "push":
        weights = hashlib.sha256((world.work / "merged" / "model.safetensors").read_bytes())
        assert world.hub.files("user/busy")["model.safetensors"][1] == weights.hexdigest()


@pytest.mark.parametrize("command", COMMANDS)
def test_more_patience_than_anyone_has(world: World, command: str) -> None:
    """A Hub that wants an hour is not waited for, but told of, with its own words."""
    fault = {"status": 429, "text": "rate limited", "headers": {"Retry-After": "3600"}}
    world.hub.set(faults=[{"match": ".", "times": 99, **fault}])
    before = len(world.hub.requests)
    text = world.refused(*COMMANDS[command])
    assert "too many requests (429 rate limited)" in text and "again in 3600 s" in text
    assert "hf auth login" in text
    assert len(world.hub.requests) - before <= 2  # one for each model


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_at_fault(world: World, command: str) -> None:
    """A 503 is asked again, as often as the Hub may be busy, and told as the Hub's own."""
    fault = {"status": 503, "text": "maintenance", "headers": {"Retry-After": "0"}}
    world.hub.set(faults=[{"match": ".", "times": 99, **fault}])
    before = world.hub.requests
    text = world.refused(*COMMANDS[command])
    assert "at fault or overloaded (503 maintenance), at every try" in text
    lines = world.hub.requests[len(before) :]
    assert lines.count(lines[0]) == 6
    assert len(lines) <= 7


def test_a_transfer_that_is_put_off(world: World) -> None:
    """Weights that are put off go on; a commit that may have been made is not repeated."""
    zero = {"headers": {"Retry-After": "0"}}
    world.hub.set(faults=[{"match": "_cdn", "status": 503, "times": 2, **zero}])
    assert world.merged() == world.digest
    world.hub.set(faults=[{"match": "PUT", "status": 503, "times": 1, **zero}])
    world.run("mergekit-lines", "push", "merged", "user/put-off").succeeded()
    assert "model.safetensors" in world.hub.files("user/put-off")
    for status, commits in ((500, 1), (503, 2)):
        name = f"user/commit-{status}"
        before = len(world.hub.requests)
        world.hub.set(faults=[{"match": "/commit/", "status": status, "times": 1, **zero}])
        result = world.run("mergekit-lines", "push", "merged", name)
        assert result.returncode == (commits == 1)
        asked = [line for line in world.hub.requests[before:] if "/commit/" in line]
        assert len(asked) == commits


# --- lies --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_contents_that_are_not_what_the_hub_names(world: World, file: str) -> None:
    """One bit is enough: told by the file's name, not merged, not kept, and asked for anew."""
    world.hub.set(faults=[{"match": f"GET .*org/tuned.*{file}$", "kind": "flip", "times": 99}])
    text = world.refused(*COMMANDS["merge"])
    assert f"model org/tuned: {file} has come with the digest" in text, text
    assert "removed from the cache" in text
    world.hub.set(faults=[])
    assert world.merged() == world.digest


def test_a_download_that_was_killed_before_it_was_checked(world: World) -> None:
    """What an earlier run fetched and did not come to check is checked by the next."""
    assert world.merged() == world.digest
    shutil.rmtree(world.work / "again")
    cache = world.work / "home" / "hub" / "models--org--tuned"
    (weights,) = cache.glob("snapshots/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    (cache / f"{weights.parent.name}.unchecked").write_text(weights.name)
    assert "model.safetensors has come with" in world.refused(*COMMANDS["merge"])
    assert not weights.exists()
    assert world.merged() == world.digest
    assert not list(cache.glob("*.unchecked"))


def test_bytes_too_few(world: World) -> None:
    """A transfer that always ends early is no model."""
    world.hub.set(faults=[{"match": "GET .*_cdn.*org/tuned", "kind": "cut", "times": 99}])
    text = world.refused(*COMMANDS["merge"])
    assert "model org/tuned" in text
    world.hub.set(faults=[])
    assert world.merged() == world.digest


def test_a_lying_recipe_is_not_pulled(world: World) -> None:
    """The recipe and the report are held against the Hub's digests too."""
    for file in ("mergekit_config.yml", "lines_report.json"):
        world.forget()
        world.hub.set(faults=[{"match": f"GET .*{file}", "kind": "flip", "times": 9}])
        text = world.refused(*COMMANDS["pull"])
        assert f"{file} has come with the digest" in text, text


def test_a_push_that_becomes_something_else(world: World) -> None:
    """What the Hub then shows of the weights is held against what was sent."""
    world.hub.set(faults=[{"match": "POST .*/commit/", "kind": "swap", "times": 1}])
    text = world.refused("mergekit-lines", "push", "merged", "user/swapped")
    assert "user/swapped: the Hub has taken model.safetensors and shows another content" in text
    world.run("mergekit-lines", "push", "merged", "user/swapped").succeeded()


def write_recipe(world: World, name: str, model: str) -> str:
    recipe = {**RECIPE, "models": [{"model": model}]}
    (world.work / name).write_text(yaml.safe_dump(recipe))
    return name


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_on_the_hub(world: World, tmp_path: Path, file: str) -> None:
    """A repository that was pushed without git-lfs holds pointers: called by their name."""
    shutil.copytree(world.work / "merged", tmp_path / "pointed")
    (tmp_path / "pointed" / file).write_text(models.POINTER)
    world.hub.publish("org/pointed", tmp_path / "pointed")
    recipe = write_recipe(world, "pointed.yml", "org/pointed")
    for command in (("mergekit-yaml", recipe, "never"), ("mergekit-lines", "inspect", recipe)):
        text = world.refused(*command)
        assert f"{file} is a git-lfs pointer on the Hub" in text and "without git-lfs" in text


def test_an_adapter_on_the_hub(world: World, tmp_path: Path) -> None:
    """Its weights are held against the Hub's digest as a model's are, and may be a pointer."""
    base = models.llama(tmp_path / "base", seed=1)
    folder = models.lora(base, tmp_path / "adapter", seed=3)
    world.hub.publish("org/adapter", folder)
    recipe = write_recipe(world, "adapted.yml", "org/base+org/adapter")
    fault = {"match": "GET .*_cdn.*org/adapter", "kind": "flip", "times": 9}
    world.hub.set(faults=[fault])
    text = world.refused("mergekit-yaml", recipe, "never")
    assert "adapter org/adapter: adapter_model.safetensors has come with the digest" in text
    world.hub.set(faults=[])
    world.run("mergekit-yaml", recipe, "again").succeeded()
    pointed = shutil.copytree(folder, tmp_path / "pointed")
    (pointed / "adapter_model.safetensors").write_text(models.POINTER)
    world.hub.publish("org/adapter", pointed)
    world.forget()
    text = world.refused("mergekit-yaml", recipe, "never")
    assert "adapter_model.safetensors is a git-lfs pointer on the Hub" in text
