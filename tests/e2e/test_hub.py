"""To the Hub and back, with the real commands against a Hub on loopback."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests import models
from tests.e2e import runner
from tests.e2e.runner import ForkServer, Result
from tests.hub import Hub

TOKEN = "hf_PlantedTokenThatNobodyMaySee"
README = "---\nlicense: {licence}\nlanguage: en\n---\n# {name}\n"
PRELOAD = ("mergekit_lines.hub.push", "mergekit_lines.hub.pull", "matplotlib.figure")
CIRCLE_FLAGS = ["--out-shard-size", "60000"]
NEEDED = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
}
KILLS = 10
SPEED = 24_000_000  # bytes per second at which the Hub takes weights while a push is killed


@dataclass
class World:
    """A Hub with three models of two licences, and commands that know it."""

    hub: Hub
    server: ForkServer
    folder: Path  # of the models
    work: Path  # where commands run
    merged: Path  # from Hub models alone, in four shards
    verbose: Result  # of that merge, with -vv

    def run(self, *command: str | Path) -> Result:
        return self.server.run(command, self.work, self.work)

    def killed(self, *command: str | Path, after: int) -> Result:
        """Kill a push as soon as the Hub has received so many bytes of weights."""
        mark, ended = self.work / "kill", threading.Event()
        mark.unlink(missing_ok=True)
        before = sum(self.hub.state()["received"].values())

        def watch() -> None:
            while sum(self.hub.state()["received"].values()) - before < after:
                if ended.wait(0.01):
                    return
            mark.touch()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            more = {"until": str(mark)}
            return self.server.ask(command, self.work, self.work, runner.STUCK, more)[0]
        finally:
            ended.set()
            watcher.join()

    def merge(self, name: str, *flags: str, **changes: Any) -> Result:
        (self.work / f"{name}.yml").write_text(yaml.safe_dump({**RECIPE, **changes}))
        return self.run("mergekit-yaml", f"{name}.yml", name, *flags)

    def refusal(self, *command: str | Path) -> str:
        result = self.run(*command)
        assert result.returncode == 1, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert result.stderr.count("Error: [lines]") == 1, result.stderr
        return result.stderr.split("Error: [lines] ")[1]


RECIPE: dict[str, Any] = {
    "merge_method": "lines",
    "base_model": "org/base",
    "models": [{"model": "org/math"}, {"model": "org/code"}],
    "parameters": {"wrap": "ties", "beta": 0.5},
}


def card_beside(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(README.format(licence=licence, name=folder.name))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    models.llama(folder / "base", seed=1)
    for seed, name in enumerate(("math", "code", "free"), 2):
        models.finetuned(folder / "base", folder / name, seed=seed)
    for name in ("base", "math", "code", "free"):
        card_beside(folder / name, "mit" if name == "free" else "apache-2.0")
    # What nobody needs: another copy of the weights, one below, a picture.
    for name in ("consolidated.safetensors", "original/model.safetensors"):
        (folder / "base" / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "math" / "model.safetensors", folder / "base" / name)
    (folder / "base" / "picture.png").write_bytes(b"\x89PNG")
    published = {f"org/{path.name}": path for path in folder.iterdir()}
    with Hub(published) as hub:
        hub.user("user", TOKEN)
        hub.user("reader", "hf_reader", write=False)
        changes = hub.environment(work / "home", TOKEN)
        (work / "merged.yml").write_text(yaml.safe_dump(RECIPE))
        merge = ["mergekit-yaml", "merged.yml", "merged", *CIRCLE_FLAGS, "-vv"]
        verbose = runner.run(merge, work, changes).succeeded()
        with ForkServer(work / "log", changes, PRELOAD) as server:
            yield World(hub, server, folder, work, work / "merged", verbose)


# --- the whole circle --------------------------------------------------------------------


@pytest.fixture
def empty_cache(world: World, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Puts the cache aside when it is called; after the test it is back."""
    cache, aside = world.work / "home", tmp_path / "aside"
    yield lambda: shutil.move(cache, aside)
    shutil.rmtree(cache)
    shutil.move(aside, cache)


def test_there_and_back(world: World, empty_cache: Callable[[], None], tmp_path: Path) -> None:
    """Hub ids → merge → push → pull with an empty cache → merge: the same bytes.

    Every command is a process of its own, the first merge that of the fixture.
    """
    hub = world.hub
    world.run("mergekit-lines", "push", "merged", "user/circle").succeeded()
    empty_cache()
    before = dict(hub.sent)
    pull = ["mergekit-lines", "pull", "user/circle", "back.yml", "--pin"]
    told = world.server.run(pull, tmp_path, tmp_path).succeeded().stdout
    found = re.findall(r"(org/\w+)@[0-9a-f]{40} +on the Hub, ([\d,]+) bytes", told)
    assert [name for name, _ in found] == ["org/base", "org/math", "org/code"]
    # The files that a merge needs, but for those that the look itself fetched whole; of the
    # weights it reads a part, if more than once.
    for name, size in found:
        left = 0
        for file, (total, _) in hub.files(name).items():
            key = f"{name}/{file}"
            came = hub.sent.get(key, 0) - before.get(key, 0)
            partly = file == "model.safetensors" or came < total
            left += total if file in NEEDED and partly else 0
        assert int(size.replace(",", "")) == left
    # The flags that the bytes hang on are told by the report.
    command = re.findall(r"run it with `(.*)`", told)
    assert command == [f"mergekit-yaml back.yml OUT {' '.join(CIRCLE_FLAGS)}"]
    assert command[0].replace("back", "recipe") in hub.read("user/circle", "README.md").decode()
    merge = ["mergekit-yaml", "back.yml", "again", *CIRCLE_FLAGS]
    world.server.run(merge, tmp_path, tmp_path).succeeded()
    again = tmp_path / "again"
    assert models.weights_digest(again) == models.weights_digest(world.merged)
    shards = sorted(path.name for path in again.glob("*.safetensors"))
    assert len(shards) > 2
    on_hub = hub.files("user/circle")
    for name in [*shards, "model.safetensors.index.json", "config.json", "tokenizer.json"]:
        content = (again / name).read_bytes()
        assert content == (world.merged / name).read_bytes(), name
        assert content == hub.read("user/circle", name), name
    # One commit has it all; the one before it is the empty repository's.
    assert len(hub.state()["repos"]["user/circle"]["log"]) == 2
    assert set(on_hub) == {
        *(".gitattributes", "README.md", "lines.png", "lines_report.json", "mergekit_config.yml"),
        *(path.name for path in world.merged.iterdir()),
    }
    # Pinned recipes name the commits that the report has.
    report = json.loads(hub.read("user/circle", "lines_report.json"))
    pinned = yaml.safe_load((tmp_path / "back.yml").read_text())
    places = [pinned["base_model"], *(entry["model"] for entry in pinned["models"])]
    for place, (name, facts) in zip(places, report["inputs"].items(), strict=True):
        assert place == f"{name}@{facts['revision']}"


def test_a_card_shows_no_foreign_flag(world: World) -> None:
    """A report that somebody else has edited puts nothing into a command to copy."""
    shutil.copytree(world.merged, world.work / "foreign")
    changed(world.work / "foreign", "lines_report.json", flags=["--trust-remote-code"])
    push = ("mergekit-lines", "push", "foreign", "user/foreign", "--dry-run")
    card = world.run(*push).succeeded().stdout
    assert "mergekit-yaml recipe.yml OUT\n" in card
    assert "--trust-remote-code" not in card


def test_the_card_on_the_hub(world: World) -> None:
    """Front matter that the Hub takes, partly inherited; picture, recipe, versions."""
    world.run("mergekit-lines", "push", "merged", "user/card", "--message", "Mine").succeeded()
    card = ModelCard(world.hub.read("user/card", "README.md").decode())
    assert card.data.to_dict() == {
        "base_model": ["org/base", "org/math", "org/code"],
        "base_model_relation": "merge",
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["mergekit", "merge", "lines"],
    }
    assert world.hub.state()["repos"]["user/card"]["log"][-1]["title"] == "Mine"
    text = card.text
    assert text.startswith("\n# card\n")
    assert 'AutoModelForCausalLM.from_pretrained("user/card")' in text
    assert "![λ over the residual blocks, first to last](lines.png)" in text
    assert world.hub.read("user/card", "lines.png").startswith(b"\x89PNG")
    assert "mergekit-lines pull user/card recipe.yml --pin" in text
    report = json.loads((world.merged / "lines_report.json").read_text())
    assert f"α = {report['alpha']['value']}, found by Eq. 2" in text
    assert f"torch {report['versions']['torch']}" in text
    assert (world.merged / "mergekit_config.yml").read_text().strip() in text
    # In OUT nothing changed, and the card there says what is known without a network.
    local = ModelCard((world.merged / "README.md").read_text(encoding="utf-8"))
    assert local.data.base_model == ["org/base", "org/math", "org/code"]
    assert local.data.license is None
    assert not (world.merged / "lines.png").exists()


# --- interrupted -------------------------------------------------------------------------


def test_killed_at_any_moment(world: World) -> None:
    """Half a model is never seen; the next push sends what the Hub lacks, and nothing twice."""
    hub, random_moments = world.hub, random.Random(6)
    # Shards larger than what the system keeps for a client that is gone.
    base = models.llama(world.work / "large", layers=2, hidden=512)
    tuned = models.finetuned(base, world.work / "tuned", seed=1)
    recipe = {"base_model": str(base), "models": [{"model": str(tuned)}]}
    world.merge("heavy", "--out-shard-size", "8M", **recipe).succeeded()
    command = ("mergekit-lines", "push", "heavy", "user/killed", "--license", "mit")
    shards = sorted(path.name for path in (world.work / "heavy").glob("*.safetensors"))
    world.run(*command).succeeded()
    sent = {name: hub.files("user/killed")[name] for name in [*shards, "lines.png"]}
    between, within = 0, 0  # kills after the first shard and before the last, and in a shard
    total = sum(size for size, _ in sent.values())
    kills = 0
    while kills < KILLS or (kills < 20 * KILLS and not (between >= 2 and within >= 1)):
        hub.set(forget=["user/killed"], forget_objects=[sha256 for _, sha256 in sent.values()])
        hub.set(speed=SPEED)
        before = hub.state()["received"]
        # The first before a byte has come.
        after = random_moments.randrange(total) if kills else 0
        kills += 1
        with suppress(TimeoutError):
            world.killed(*command, after=after)
        hub.set(speed=0)
        middle = hub.settled()
        visible = hub.files("user/killed")
        assert set(visible) in (set(), {".gitattributes"}) or visible.items() >= sent.items()
        missing = {name for name, (_, sha256) in sent.items() if sha256 not in middle["objects"]}
        between += 0 < len(missing.intersection(shards)) < len(shards)
        for name, (size, sha256) in sent.items():
            came = middle["received"].get(sha256, 0) - before.get(sha256, 0)
            assert came < size if name in missing else came == size
            within += 0 < came < size
        world.run(*command).succeeded()
        assert hub.files("user/killed").items() >= sent.items()
        after = hub.state()["received"]
        for name, (size, sha256) in sent.items():
            came = after[sha256] - middle["received"].get(sha256, 0)
            assert came == (size if name in missing else 0), name
    assert between >= 2
    assert within >= 1


def test_a_hub_that_fails(world: World) -> None:
    """A commit that is refused leaves nothing; a second model replaces the first one's shards."""
    hub = world.hub
    hub.set(faults=[{"match": "/commit/", "status": 507, "text": "storage limit", "times": 1}])
    told = world.refusal("mergekit-lines", "push", "merged", "user/fails")
    assert "no room" in told and "storage limit" in told
    assert set(hub.files("user/fails")) == {".gitattributes"}
    world.run("mergekit-lines", "push", "merged", "user/fails").succeeded()
    assert "model-00001-of-00004.safetensors" in hub.files("user/fails")
    received = sum(hub.state()["received"].values())
    done = world.run("mergekit-lines", "push", "merged", "user/fails").succeeded()
    assert "nothing was committed" in done.stderr
    assert sum(hub.state()["received"].values()) == received
    world.merge("single").succeeded()
    done = world.run("mergekit-lines", "push", "single", "user/fails").succeeded()
    assert "will be deleted" in done.stderr
    weights = {name for name in hub.files("user/fails") if "safetensors" in name}
    assert weights == {"model.safetensors"}


# --- options -----------------------------------------------------------------------------


def test_dry_run_sends_nothing(world: World) -> None:
    """It prints the card that would be pushed, and every file with its size."""
    before = world.hub.state()
    told = world.run("mergekit-lines", "push", "merged", "user/dry", "--dry-run").succeeded().stdout
    after = world.hub.state()
    assert "license: apache-2.0" in told and "# dry" in told
    for path in world.merged.iterdir():
        assert re.search(rf"[\d,]+  {re.escape(path.name)}\n", told), path.name
    shard = world.merged / "model-00001-of-00004.safetensors"
    assert f"{shard.stat().st_size:,}  {shard.name}" in told
    assert not any(
        line.startswith(("POST", "PUT")) for line in after["requests"][len(before["requests"]) :]
    )
    assert "user/dry" not in after["repos"]


def test_private_branch_and_pull_request(world: World) -> None:
    """--private hides a new model; --branch and --create-pr leave main as it was."""
    hub = world.hub
    world.merge("one").succeeded()
    world.run("mergekit-lines", "push", "merged", "user/mine", "--private").succeeded()
    assert hub.state()["repos"]["user/mine"]["private"]
    world.run("mergekit-lines", "push", "one", "user/mine", "--branch", "dev").succeeded()
    assert "model.safetensors" in hub.files("user/mine", "dev")
    assert "model.safetensors" not in hub.files("user/mine")
    done = world.run("mergekit-lines", "push", "one", "user/mine", "--create-pr").succeeded()
    assert done.stdout.strip().endswith("/user/mine/discussions/1")
    assert "model.safetensors" in hub.files("user/mine", "refs/pr/1")
    assert "model.safetensors" not in hub.files("user/mine")
    world.run("mergekit-lines", "push", "merged", "user/open").succeeded()
    told = world.refusal("mergekit-lines", "push", "merged", "user/open", "--private")
    assert "public" in told
    # Anyone may propose a change to a public model, and nothing else.
    done = world.run("mergekit-lines", "push", "merged", "org/code", "--create-pr").succeeded()
    assert done.stdout.strip().endswith("/org/code/discussions/1")
    assert "model-00001-of-00004.safetensors" in hub.files("org/code", "refs/pr/1")
    assert "rights" in world.refusal("mergekit-lines", "push", "merged", "org/code")
    card = hub.read("user/mine", "README.md", "dev", TOKEN).decode()
    assert 'from_pretrained("user/mine", revision="dev")' in card
    assert "mergekit-lines pull user/mine@dev recipe.yml --pin" in card
    both = world.run("mergekit-lines", "push", "merged", "user/x", "--branch", "a", "--create-pr")
    assert both.returncode == 2


def test_a_licence_is_inherited_or_asked_for(world: World) -> None:
    """Inputs that differ, or say none, have the user decide."""
    world.merge("mixed", models=[{"model": "org/free"}]).succeeded()
    told = world.refusal("mergekit-lines", "push", "mixed", "user/mixed")
    assert "--license" in told and "org/free: mit" in told and "org/base: apache-2.0" in told
    assert "user/mixed" not in world.hub.state()["repos"]
    world.run("mergekit-lines", "push", "mixed", "user/mixed", "--license", "mit").succeeded()
    assert ModelCard(world.hub.read("user/mixed", "README.md").decode()).data.license == "mit"


def test_a_licence_with_a_name_and_a_text(world: World) -> None:
    """`other` is inherited by its name; the link leads to the base's own file."""
    other = "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n"
    for name in ("base", "math"):
        shutil.copytree(world.folder / name, world.work / f"named-{name}")
        (world.work / f"named-{name}" / "README.md").write_text(other)
        world.hub.publish(f"org/named-{name}", world.work / f"named-{name}")
    models = [{"model": "org/named-math"}]
    world.merge("named", base_model="org/named-base", models=models).succeeded()
    told = world.run("mergekit-lines", "push", "named", "user/named", "--dry-run").succeeded()
    data = ModelCard(told.stdout).data
    assert (data.license, data.license_name) == ("other", "ours")
    assert data.license_link == "https://huggingface.co/org/named-base/blob/main/LICENSE"


def test_a_card_that_was_edited_keeps_its_words(world: World) -> None:
    """What its owner wrote stays; front matter is only added. Results become a model-index."""
    out = world.work / "edited"
    shutil.copytree(world.merged, out)
    text = (out / "README.md").read_text(encoding="utf-8")
    # Front matter of one's own stays beside our text, but for a licence that is given anew.
    mine = text.replace("- lines\n", "- lines\n- mine\nlicense: other\nlicense_name: x\n")
    (out / "README.md").write_text(mine, encoding="utf-8")
    for flags, licence in (((), ("other", "x")), (("--license", "mit"), ("mit", None))):
        world.run("mergekit-lines", "push", "edited", "user/front", *flags).succeeded()
        card = ModelCard(world.hub.read("user/front", "README.md").decode())
        assert (card.data.license, card.data.license_name) == licence
        assert card.data.tags == ["mergekit", "merge", "lines", "mine"]
        assert "# front\n" in card.text and "![λ" in card.text
    text = text.replace("# merged\n", "# My own title\n").replace("- lines\n", "- lines\n- mine\n")
    (out / "README.md").write_text(text, encoding="utf-8")
    metric = {"type": "accuracy", "value": 0.75, "name": "Accuracy"}
    dataset = {"type": "news", "name": "BBC news"}
    task = {"type": "text-classification"}
    results = [{"task": task, "dataset": dataset, "metrics": [metric]}]
    (out / "results.json").write_text(json.dumps({"format": 1, "results": results}))
    world.run("mergekit-lines", "push", "edited", "user/edited").succeeded()
    card = ModelCard(world.hub.read("user/edited", "README.md").decode())
    assert "# My own title" in card.text and "![λ" not in card.text
    assert card.data.tags == ["mergekit", "merge", "lines", "mine"]
    assert card.data.license == "apache-2.0"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("BBC news", 0.75)


FORGED = ("no output as the merge writes them", "restore it")
NO_NUMBER = (
    '{"format": 1, "results": [{"task": {"type": "a"}, "dataset": {"type": "b", "name": "c"}, '
    '"metrics": [{"type": "d", "value": NaN}]}]}'
)


# --- refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda out: (out / "lines_report.json").unlink(), ("no lines_report.json", "Merge again")),
        (lambda out: (out / "config.json").write_text("{"), ("config.json", "transformers")),
        (lambda out: next(out.glob("*2-of*")).unlink(), ("model-00002", "is not there")),
        (lambda out: cut(out / "model-00001-of-00004.safetensors"), ("model-00001", "bytes")),
        (lambda out: reheaded(out / "model-00001-of-00004.safetensors"), ("another header",)),
        (lambda out: (out / "model.safetensors.index.json").unlink(), ("index", "shards")),
        (lambda out: (out / "old.bin").write_bytes(b"x"), ("old.bin", "not tell of")),
        (lambda out: (out / "results.json").write_text("[1]"), ("results.json", "model-index")),
        (lambda out: (out / "results.json").write_text('{"format": 2}'), ("format 2", "format 1")),
        (lambda out: (out / "results.json").write_text(NO_NUMBER), ("NaN", "results.json")),
        (lambda out: (out / "README.md").write_text("---\n- a\n---\n"), ("front matter", "Mend")),
        (lambda out: (out / "README.md").write_bytes(b"\xff"), ("README.md", "UTF-8")),
        (lambda out: changed(out, "lines_report.json", format=2), ("format 2", "merge again")),
        (lambda out: changed(out, "lines_report.json", inputs=[]), ("no inputs", "restore it")),
        (lambda out: changed(out, "config.json", num_hidden_layers=5), ("9 tensors", "random")),
        (lambda out: changed(out, "config.json", hidden_size=64), ("another shape", "config.json")),
        (lambda out: (out / "log.txt").write_text(f"t={TOKEN}"), ("log.txt", "token")),
        (lambda out: (out / "log.txt").write_text(f"at {out}/x"), ("log.txt", "path of this")),
        (lambda out: reported(out, "../key.safetensors"), FORGED),
        (lambda out: reported(out, "/etc/passwd"), FORGED),
        (lambda out: reported(out, ".."), FORGED),
        (
            lambda out: changed(out, "lines_report.json", output={"shards": {"config.json": 1}}),
            FORGED,
        ),
        (
            lambda out: linked(out, "chat_template.jinja"),
            ("chat_template.jinja is a link", "cp -L"),
        ),
        (lambda out: linked(out, "below/key"), ("below/key is a link", "out of this folder")),
        (shutil.rmtree, ("no such folder", "merged model")),
    ],
)
def test_what_is_not_pushed(world: World, change: Any, wanted: tuple[str, ...]) -> None:
    """Anything but a whole model that is as its report says, told before a byte is sent."""
    out = world.work / "broken"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(world.merged, out)
    change(out)
    before = len(world.hub.requests)
    told = world.refusal("mergekit-lines", "push", "broken", "user/broken")
    assert all(phrase in told for phrase in wanted), told
    assert TOKEN not in told
    assert not [line for line in world.hub.requests[before:] if line.startswith(("POST", "PUT"))]


def changed(out: Path, file: str, **changes: Any) -> None:
    content = json.loads((out / file).read_text())
    (out / file).write_text(json.dumps({**content, **changes}))


def reported(out: Path, shard: str) -> None:
    """Let the report name a file that lies elsewhere, as it is."""
    key = out.parent / "key.safetensors"
    shutil.copy(out / "model-00001-of-00004.safetensors", key)
    content = json.loads((out / "lines_report.json").read_text())
    shards = content["output"]["shards"]
    content["output"]["shards"] = {**shards, shard: shards["model-00001-of-00004.safetensors"]}
    (out / "lines_report.json").write_text(json.dumps(content))


def linked(out: Path, name: str) -> None:
    """Plant a link to a file that is nobody's business."""
    key = out.parent / "id_ed25519"
    key.write_text("PRIVATE KEY")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(key)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def reheaded(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"F32")] = ord("I")
    path.write_bytes(content)


def test_no_tokenizer_is_told(world: World) -> None:
    """It may be wanted so: a note, and no refusal."""
    out = world.work / "bare"
    shutil.copytree(world.merged, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).unlink()
    done = world.run("mergekit-lines", "push", "bare", "user/bare", "--dry-run").succeeded()
    assert "no tokenizer" in done.stderr
    assert "AutoTokenizer" not in done.stdout


def test_a_model_without_the_head_of_its_class_is_sent(world: World, tmp_path: Path) -> None:
    """As its inputs are, so it is merged and pushed, and its card loads what is there."""
    for seed, name in enumerate(("base", "a"), 1):
        models.bert_seqcls(tmp_path / name, seed=seed)
        models.rewrite(
            tmp_path / name,
            lambda held: {n: t for n, t in held.items() if not n.startswith("classifier.")},
        )
    listed = {"base_model": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "a")}]}
    world.merge("trunk", **listed).succeeded()
    done = world.run("mergekit-lines", "push", "trunk", "user/trunk", "--license", "mit")
    assert "no head of BertForSequenceClassification" in done.succeeded().stderr
    sent = world.hub.files("user/trunk")["model.safetensors"]
    assert sent[0] == (world.work / "trunk" / "model.safetensors").stat().st_size
    card = ModelCard(world.hub.read("user/trunk", "README.md").decode())
    assert 'AutoModel.from_pretrained("user/trunk")' in card.text
    assert card.data.pipeline_tag is None


# --- pull --------------------------------------------------------------------------------


def test_mergekits_method_by_our_kernels_goes_round(world: World, tmp_path: Path) -> None:
    """Its card has no tag of LiNeS, and pull names the command that gives its bytes again."""
    recipe = {**RECIPE, "merge_method": "dare_ties", "parameters": {"weight": 0.5, "density": 0.5}}
    (world.work / "unscaled.yml").write_text(yaml.safe_dump(recipe))
    merge = ["mergekit-lines", "merge", "unscaled.yml", "unscaled", "--random-seed", "3"]
    world.run(*merge).succeeded()
    world.run("mergekit-lines", "push", "unscaled", "user/unscaled").succeeded()
    card = ModelCard(world.hub.read("user/unscaled", "README.md").decode())
    assert card.data.tags == ["mergekit", "merge"] and card.data.base_model_relation == "merge"
    assert "mergekit-lines merge recipe.yml OUT --random-seed 3" in card.text
    told = world.run("mergekit-lines", "pull", "user/unscaled", "again.yml").succeeded().stdout
    assert "run it with `mergekit-lines merge again.yml OUT --random-seed 3`" in told
    world.run("mergekit-lines", "merge", "again.yml", "again", *merge[-2:]).succeeded()
    weights = [models.weights_digest(world.work / name) for name in ("unscaled", "again")]
    assert weights[0] == weights[1]
    # Of mergekit's own merge, which has no report, it is mergekit's own command.
    (tmp_path / "mergekit_config.yml").write_text(yaml.safe_dump(recipe))
    world.hub.publish("org/stock", tmp_path)
    told = world.run("mergekit-lines", "pull", "org/stock", "stock.yml").succeeded().stdout
    assert "run it with `mergekit-yaml stock.yml OUT`" in told


def test_pull_of_any_merge(world: World, tmp_path: Path) -> None:
    """mergekit's own recipes come too, with what they need; a file is not written over."""
    recipe = {
        "merge_method": "slerp",
        "base_model": "org/base",
        "models": [{"model": "org/math"}, {"model": "/home/somebody/code"}],
        "parameters": {"t": 0.5},
    }
    (tmp_path / "mergekit_config.yml").write_text(yaml.safe_dump(recipe))
    world.hub.publish("org/slerp", tmp_path)
    told = world.run("mergekit-lines", "pull", "org/slerp", "slerp.yml").succeeded().stdout
    assert yaml.safe_load((world.work / "slerp.yml").read_text()) == recipe
    assert "merge_method slerp" in told
    assert re.search(r"/home/somebody/code +a folder of whoever merged", told)
    assert "would be refused here" in told
    sent = dict(world.hub.sent)
    assert "is there already" in world.refusal("mergekit-lines", "pull", "org/slerp", "slerp.yml")
    assert world.hub.sent == sent


def test_pull_of_what_anyone_may_write(world: World, tmp_path: Path) -> None:
    """Odd recipes and reports: a method that is unknown here, an adapter, no sound report."""
    recipe = {
        "merge_method": "slurp",
        "base_model": "org/base",
        "models": [{"model": "org/base+org/adapter"}, {"model": "org/base+org/code"}],
    }
    (tmp_path / "mergekit_config.yml").write_text(yaml.safe_dump(recipe))
    report = {"inputs": {"org/base": 1}, "alpha": [], "flags": ["; rm -rf /"]}
    (tmp_path / "lines_report.json").write_text(json.dumps(report))
    world.hub.publish("org/odd", tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / file).write_text("{}")
    world.hub.publish("org/adapter", adapter)
    told = world.run("mergekit-lines", "pull", "org/odd", "odd.yml", "--pin").succeeded().stdout
    assert yaml.safe_load((world.work / "odd.yml").read_text()) == recipe
    assert "--pin: no commit is known for org/base, org/adapter, org/code\n" in told
    assert re.search(r"org/adapter +on the Hub, an adapter, 4 bytes to download", told)
    assert "adapter org/code: found no adapter_config.json" in told
    assert "merge_method slurp: mergekit 0.1.5 does not have it. Did you mean 'slerp'?" in told
    assert "when that is mended, run it with `mergekit-yaml odd.yml OUT`" in told
    # A printed command is copied: none but a merge's own flags stand in it.
    flags = ["--trust-remote-code", "--random-seed", "7", "--lora-merge-cache", "/home"]
    (tmp_path / "lines_report.json").write_text(json.dumps({"flags": flags}))
    world.hub.publish("org/flags", tmp_path)
    told = world.run("mergekit-lines", "pull", "org/flags", "flags.yml").succeeded().stdout
    assert "run it with `mergekit-yaml flags.yml OUT --random-seed 7`" in told
    assert "flags that no merge writes there" in told
    assert "trust" not in told and "/home" not in told
    # A report that is not given out is no report that is not there.
    world.hub.set(faults=[{"match": "lines_report.json", "status": 403, "times": 9}])
    world.hub.publish("org/even", tmp_path)
    told = world.refusal("mergekit-lines", "pull", "org/even", "even.yml")
    world.hub.set(faults=[])
    assert "model org/even: the Hub does not give it (403" in told
    assert not (world.work / "even.yml").exists()
    told = world.refusal("mergekit-lines", "pull", "org/odd", "a" * 300)
    assert "cannot be written (File name too long)" in told


@pytest.mark.parametrize(
    ("repo", "wanted"),
    [
        ("org/base", ("no mergekit_config.yml", "Ask its owner")),
        ("org/nobody", ("no such model", "Check the name")),
        ("org/base@nowhere", ("no such revision",)),
        ("a/b/c", ("wanted USER/NAME",)),
    ],
)
def test_nothing_to_pull(world: World, repo: str, wanted: tuple[str, ...]) -> None:
    """The cause, and what to do; no file appears."""
    told = world.refusal("mergekit-lines", "pull", repo, "nothing.yml")
    assert all(phrase in told for phrase in wanted), told
    assert not (world.work / "nothing.yml").exists()


# --- inputs ------------------------------------------------------------------------------


def test_only_what_is_needed_is_downloaded(world: World) -> None:
    """No second copy of the weights, no picture; each file once; the commits are in the report."""
    fetched = {name.removeprefix("org/base/") for name in world.hub.sent if "org/base/" in name}
    assert {"config.json", "generation_config.json", "model.safetensors"} <= fetched <= NEEDED
    report = json.loads((world.merged / "lines_report.json").read_text())
    log = world.hub.state()["repos"]["org/base"]["log"]
    assert report["inputs"]["org/base"]["revision"] == log[0]["sha"]


def test_without_a_network_the_cache_is_enough(world: World, tmp_path: Path) -> None:
    """What was merged once from the Hub is merged again offline, to the same bytes."""
    command = ["mergekit-yaml", world.work / "merged.yml", "again", *CIRCLE_FLAGS]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(world.work / "home"), "HF_HUB_CACHE": None}
    runner.run(command, tmp_path, offline).succeeded()
    assert models.weights_digest(tmp_path / "again") == models.weights_digest(world.merged)


def test_a_revision_is_merged_as_it_was(world: World) -> None:
    """A newer commit on main changes nothing for a recipe that names an older one."""
    hub = world.hub
    hub.publish("org/moving", world.folder / "math")
    first = hub.state()["repos"]["org/moving"]["log"][-1]["sha"]
    hub.publish("org/moving", world.folder / "code")
    world.merge("old", models=[{"model": f"org/moving@{first}"}]).succeeded()
    world.merge("math", models=[{"model": "org/math"}]).succeeded()
    assert models.weights_digest(world.work / "old") == models.weights_digest(world.work / "math")
    report = json.loads((world.work / "old" / "lines_report.json").read_text())
    assert report["inputs"][f"org/moving@{first}"]["revision"] == first


def test_what_the_token_opens(world: World) -> None:
    """A private model of one's own, and a gated one that was granted."""
    hub = world.hub
    hub.publish("user/closed", world.folder / "math", private=True)
    hub.publish("org/granted", world.folder / "code", gated=True)
    hub.user("user", TOKEN, granted=("org/granted",))
    listed = [{"model": "user/closed"}, {"model": "org/granted"}]
    world.merge("opened", "--out-shard-size", "60K", models=listed).succeeded()
    assert models.weights_digest(world.work / "opened") == models.weights_digest(world.merged)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("org/gated", ("on request", "hf auth login")),
        ("org/hidden", ("no such model", "hf auth login")),
        ("org/nobody", ("no such model", "Check the name")),
        ("org/math@nowhere", ("no such revision", "after the @")),
        ("org/empty", ("no config.json",)),
        ("org/base+org/math", ("no adapter_config.json", "PEFT adapter")),
    ],
)
def test_models_that_the_hub_does_not_give(
    world: World, tmp_path: Path, model: str, wanted: tuple[str, ...]
) -> None:
    """One sentence with the model's name, before a weight is downloaded."""
    (tmp_path / "nothing.txt").write_text("x")
    world.hub.publish("org/gated", world.folder / "math", gated=True)
    world.hub.publish("org/hidden", world.folder / "math", private=True)
    world.hub.publish("org/empty", tmp_path)
    sent = {name: size for name, size in world.hub.sent.items() if "safetensors" in name}
    result = world.merge("never", models=[{"model": model}])
    assert result.returncode == 1
    told = result.stderr
    assert told.count("Error: [lines]") == 1 and "Traceback" not in told
    assert all(phrase in told for phrase in (model.split("+")[-1], *wanted)), told
    assert not (world.work / "never").exists()
    assert sent == {name: size for name, size in world.hub.sent.items() if "safetensors" in name}


# --- secrets -----------------------------------------------------------------------------


def test_no_token_and_no_path_gets_out(world: World) -> None:
    """Both are planted everywhere; neither is in a file on the Hub, a line printed, a request."""
    place = world.work / "geheim-4711" / "models"
    shutil.copytree(world.folder / "math", place / "mine")
    config = json.loads((world.folder / "base" / "config.json").read_text())
    shutil.copytree(world.folder / "base", place / "ground")
    config["_name_or_path"] = str(place / "ground")
    (place / "ground" / "config.json").write_text(json.dumps(config))
    settings = json.loads((place / "ground" / "tokenizer_config.json").read_text())
    settings["name_or_path"] = str(place / "ground")
    (place / "ground" / "tokenizer_config.json").write_text(json.dumps(settings))
    (world.work / "secret.yml").write_text(
        f"# from {place}, and {place}/notes.txt\nmerge_method: lines\n"
        f"base_model: {place}/ground\nmodels:\n- model: ./geheim-4711/models/mine  # mine\n"
        f"- model: org/math\nparameters: {{beta: 0.5}}\n"
    )
    printed = []
    printed.append(world.run("mergekit-yaml", "secret.yml", "secret").succeeded())
    for file in ("README.md", "config.json"):
        assert "geheim" not in (world.work / "secret" / file).read_text(), file
    push = ("mergekit-lines", "push", "secret", "user/secret")
    printed.append(world.run(*push, "--dry-run").succeeded())
    for status in (401, 403, 409, 500):
        said = f"for {TOKEN} at https://x.y/z?sig={TOKEN}"
        world.hub.set(faults=[{"match": "/commit/", "status": status, "times": 1, "text": said}])
        printed.append(world.run(*push))
        assert printed[-1].returncode == 1 and "Traceback" not in printed[-1].stderr
    world.hub.set(faults=[])
    printed.append(world.run(*push).succeeded())
    pull = ("mergekit-lines", "pull", "user/secret", "secret-back.yml")
    printed.append(world.run(*pull).succeeded())
    texts = [text for result in printed for text in (result.stdout, result.stderr)]
    files = [world.hub.read("user/secret", name) for name in world.hub.files("user/secret")]
    texts += [content.decode("utf-8", "replace") for content in files]
    texts += [*world.hub.requests, (world.work / "log").read_text()]
    for text in texts:
        for secret in (TOKEN, "geheim", str(world.work), str(Path.home()) + "/"):
            assert secret not in text, text[:2000]
    # No token in what libraries tell when asked for everything, nor in any file of a cache or OUT.
    debug = {**world.hub.environment(world.work / "home", TOKEN), "HF_DEBUG": "1"}
    command = ["mergekit-lines", "push", "merged", "user/debug", "--dry-run"]
    shown = runner.run(command, world.work, debug).succeeded()
    assert "<TOKEN>" in shown.stderr and "DEBUG" in world.verbose.stderr
    for result in (shown, world.verbose):
        assert TOKEN not in result.stdout + result.stderr
    files = [path for path in world.work.rglob("*") if path.is_file()]
    assert any("models--org--base" in str(path) for path in files)
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    recipe = world.hub.read("user/secret", "mergekit_config.yml").decode()
    assert yaml.safe_load(recipe)["base_model"] == "./ground"
    assert "- model: ./mine  # mine\n- model: org/math\n" in recipe
    assert recipe.startswith("# from models, and notes.txt\n")
    report = json.loads(world.hub.read("user/secret", "lines_report.json"))
    assert list(report["inputs"]) == ["./ground", "./mine", "org/math"]
    assert report["recipe"] == recipe
    told = (world.work / "secret-back.yml").read_text()
    assert told == recipe
    assert re.search(r"\./ground +a folder of whoever merged", printed[-1].stdout)
