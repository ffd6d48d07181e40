"""The story of vision, at its smallest: what it prints is what was measured."""

from __future__ import annotations

import hashlib
import io
import json
import re
import statistics
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.e2e import runner

EXAMPLES = Path(__file__).parents[2] / "examples"
ARCHITECTURES = ("ViT", "ConvNeXt")
EDITED = ("rugs",)
MERGED = ("rugs", "tiles")
CONTROL = "quilts"
TASKS = (CONTROL, *MERGED)
MERGES = ("task arithmetic", "TIES, mergekit's")
WAYS = ("plain", "uniform, best", "uniform, equal mean", "LiNeS")
SEEDS = 2


class Told(NamedTuple):
    """What a run left and said."""

    folder: Path
    text: str
    stories: dict[str, Any]

    def cells(self, row: str, architecture: str) -> list[str]:
        """Target, controls, and LiNeS minus it, as a row of the table has them."""
        (line,) = re.findall(rf"^{re.escape(row)}  +(\d.*)$", self.text, re.MULTILINE)
        numbers = re.split(r"  +", line.strip())
        assert len(numbers) == 3 * len(ARCHITECTURES)
        at = 3 * ARCHITECTURES.index(architecture)
        return numbers[at : at + 3]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run, of models that hardly learnt anything."""
    folder = tmp_path_factory.mktemp("vision") / "work"
    flags = ("--tiny", "--folder", folder, "--seeds", str(SEEDS), "--num-threads", "1")
    command = (sys.executable, EXAMPLES / "vision.py", *flags)
    text = runner.run(command, folder.parent, runner.ONE_THREAD).succeeded().stdout
    return Told(folder, text, json.loads((folder / "vision.json").read_text("utf-8")))


def text(values: list[float]) -> str:
    """Mean and standard error over seeds, in percent."""
    error = 100 * statistics.stdev(values) / SEEDS**0.5
    return f"{100 * statistics.fmean(values):.1f} ± {error:.1f}"


def interval(values: list[float]) -> str:
    """Mean and 95% interval over two seeds, in points: Student's t of one degree of freedom."""
    mean, reach = 100 * statistics.fmean(values), 1270.6 * statistics.stdev(values) / 2**0.5
    return f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"


def ratios(edit: dict[str, Any], accuracies: dict[str, float], kind: str) -> list[float]:
    """Accuracy on the target over the fine-tuned one's, on the others over the base's."""
    target, table = edit["target"], edit[kind]
    base = table["pre-trained"]
    kept = [accuracies[task] / base[task] for task in TASKS if task != target]
    return [accuracies[target] / table["fine-tuned"][target], statistics.fmean(kept)]


def edit_numbers(story: dict[str, Any], way: str, place: int) -> list[float]:
    """A way's normalised accuracy on targets (place 0) or controls (1): a number for each seed."""
    return [
        statistics.fmean(
            ratios(edit, edit["test"][way], "test")[place]
            for edit in story["edits"]
            if edit["seed"] == seed
        )
        for seed in range(SEEDS)
    ]


def merge_numbers(story: dict[str, Any], merge: str, way: str) -> list[float]:
    """The merged tasks' accuracy over the fine-tuned models': a number for each seed."""
    tests = [each["test"][way] for each in story["merges"] if each["merge"] == merge]
    return [
        statistics.fmean(test[task] / own["tuned"][task] for task in MERGED)
        for test, own in zip(tests, story["inputs"], strict=True)
    ]


def records(told: Told, architecture: str, seed: int, *search: str) -> list[dict[str, Any]]:
    """What a search measured."""
    path = told.folder.joinpath(architecture.lower(), f"seed-{seed}", *search, "search")
    text = (path / "results.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_both_architectures_are_edited_and_merged(told: Told) -> None:
    """Each target and merge with each seed; every way is measured on every task."""
    assert tuple(told.stories) == ARCHITECTURES
    for story in told.stories.values():
        pairs = [(edit["seed"], edit["target"]) for edit in story["edits"]]
        assert pairs == [(seed, target) for seed in range(SEEDS) for target in EDITED]
        pairs = [(each["seed"], each["merge"]) for each in story["merges"]]
        assert pairs == [(seed, merge) for seed in range(SEEDS) for merge in MERGES]
        tests = [accuracies for each in story["edits"] for accuracies in each["test"].values()]
        tests += [accuracies for each in story["merges"] for accuracies in each["test"].values()]
        assert len(tests) == SEEDS * (8 * len(EDITED) + 4 * len(MERGES))
        for accuracies in tests:
            assert set(accuracies) == set(TASKS)
            assert all(0 <= value <= 1 for value in accuracies.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_shows_the_edits(told: Told, architecture: str) -> None:
    """Normalised accuracies over seeds, and LiNeS minus each way by the paper's rule over 3."""
    story = told.stories[architecture]

    def retention(way: str) -> list[float]:
        target, controls = (edit_numbers(story, way, place) for place in (0, 1))
        return [(2 * one + other) / 3 for one, other in zip(target, controls, strict=True)]

    for way in ("fine-tuned", "LiNeS", "uniform, equal mean", "uniform, best", "reversed"):
        gaps = [own - other for own, other in zip(retention("LiNeS"), retention(way), strict=True)]
        assert told.cells(way, architecture) == [
            text(edit_numbers(story, way, 0)),
            text(edit_numbers(story, way, 1)),
            "-" if way == "LiNeS" else interval(gaps),
        ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_shows_the_merges(told: Told, architecture: str) -> None:
    """Accuracy on the merged tasks over the fine-tuned models', on the other over the base's."""
    story = told.stories[architecture]
    for merge in MERGES:
        own = merge_numbers(story, merge, "LiNeS")
        for way in WAYS:
            values = merge_numbers(story, merge, way)
            kept = [
                each["test"][way][CONTROL] / story["inputs"][each["seed"]]["base"][CONTROL]
                for each in story["merges"]
                if each["merge"] == merge
            ]
            gap = interval([one - other for one, other in zip(own, values, strict=True)])
            want = [text(values), text(kept), "-" if way == "LiNeS" else gap]
            assert told.cells(f"{merge}: {way}", architecture) == want


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gamma_is_the_best_on_validation(told: Told, architecture: str) -> None:
    """2·M_target + M_control of every γ, by validation images: no test image has a say."""
    for edit in told.stories[architecture]["edits"]:
        measured = records(told, architecture, edit["seed"], "forgetting", edit["target"])
        assert {record["split"] for record in measured} == {"validation"}
        scores = {
            key: 2 * target + controls
            for key, accuracies in edit["validation"].items()
            for target, controls in [ratios(edit, accuracies, "validation")]
        }
        for way, keys in (
            ("LiNeS", ("0,1", "0.5,1", "1,1")),
            ("reversed", ("1,0", "1,0.5", "1,1")),
            ("uniform, best", ("0.5,0.5", "0.75,0.75", "1,1")),
        ):
            assert edit["chosen"][way] in keys
            assert scores[edit["chosen"][way]] == pytest.approx(max(scores[key] for key in keys))


def test_every_tensor_moves_by_its_block(told: Told) -> None:
    """A ConvNeXt's blocks are counted through its stages: so the sweep's own record has it."""
    measured = records(told, "ConvNeXt", 0, "forgetting", "rugs")
    (line,) = [
        record for record in measured if record["recipe"].get("parameters") == {"schedule": "0,1"}
    ]
    assert line["mean"] == pytest.approx(0.5)


def test_the_figure_is_drawn(told: Told) -> None:
    """A PNG file."""
    assert (told.folder / "vision.png").read_bytes().startswith(b"\x89PNG")


def test_splits_share_no_image(modules: Any) -> None:
    """Classes take turns, no image is in two splits, and the seed shuffles."""
    images = modules("_images")
    sizes = {"validation": 40, "test": 80, "train": 1000}
    splits = images.split("rugs", Path(), sizes, 0)
    assert [len(splits[part].labels) for part in sizes] == [40, 80, images.TINY_POOL - 120]
    assert np.bincount(splits["test"].labels).tolist() == [20] * images.TINY_CLASSES
    rows = [each.tobytes() for part in splits.values() for each in part.pixels]
    assert len(set(rows)) == len(rows) == images.TINY_POOL
    again, other = (images.split("rugs", Path(), sizes, seed)["test"] for seed in (0, 1))
    assert (again.pixels == splits["test"].pixels).all()
    assert not (other.pixels == again.pixels).all()


def test_a_head_is_a_logistic_regression(modules: Any) -> None:
    """The logits are scikit-learn's, of features that are standardised before."""
    accuracy, linear = modules("_image_accuracy"), pytest.importorskip("sklearn.linear_model")
    draw = np.random.default_rng(0)
    labels = np.arange(90) % 3
    states = draw.normal(size=(90, 5)) * [1, 2, 3, 4, 5] + np.outer(labels, [1, 0, 2, 0, -2]) + 7
    scaled = (states - states.mean(0)) / states.std(0, ddof=1)
    strength = 1 / (2 * accuracy.PENALTY * len(labels))
    want = linear.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(scaled, labels)
    features = torch.from_numpy(states).float()
    head = accuracy.fitted(features, torch.from_numpy(labels))
    chances = accuracy.classified(features, head).softmax(1).numpy()
    assert np.abs(chances - want.predict_proba(scaled)).max() < 1e-3


def test_files_of_a_debian_package(modules: Any, tmp_path: Path) -> None:
    """Members of ``ar`` begin at even bytes; the one called data.tar is opened."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as files:
        member = tarfile.TarInfo("./usr/share/words")
        member.size = 5
        files.addfile(member, io.BytesIO(b"words"))
    package = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", archive.getvalue())):
        head = f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n"
        package += head.encode() + content + b"\n" * (len(content) % 2)
    path = tmp_path / "words.deb"
    path.write_bytes(package)
    with modules("_packages").debian_files(path) as files:
        held = files.extractfile("./usr/share/words")
        assert held is not None
        assert held.read() == b"words"


def test_another_file_than_the_named_one_is_refused(modules: Any, tmp_path: Path) -> None:
    """By its SHA-256; nothing of it is kept. The right one is fetched once."""
    source, folder = tmp_path / "images.tgz", tmp_path / "downloads"
    source.write_bytes(b"one")
    fetched, digest = modules("_packages").fetched, hashlib.sha256(b"one").hexdigest()
    with pytest.raises(SystemExit, match=f"SHA-256 is {digest}, wanted 0000"):
        fetched(source.as_uri(), "0000", folder)
    assert list(folder.iterdir()) == []
    path = fetched(source.as_uri(), digest, folder)
    source.unlink()
    assert fetched(source.as_uri(), digest, folder) == path
    assert path.read_bytes() == b"one"
