"""What ``inspect`` shows: tables, JSON, pipes and terminals."""

from __future__ import annotations

import json
import shutil
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mergekit_lines
from mergekit_lines.cli import main
from mergekit_lines.inspection import tables
from mergekit_lines.inspection.findings import Coefficient, Inspection, Outside
from tests import models as make
from tests.cases.case import Models
from tests.cases.recipes import recipe
from tests.inspection.command import inspect, told, write
from tests.test_recipes import BLOCKS

DOCUMENT = {
    "name": None,
    "merge_method": "lines",
    "wraps": ["task_arithmetic"],
    "seed": 0,
    "alpha": 0.3,
    "alpha_source": "the recipe",
    "deep": None,
    "notes": [],
    "problems": [],
    "troubles": [],
}
BLOCK = {"index", "coefficients", "tensors", "parameters", "bytes"}
INPUT = {
    *("model", "checkpoint", "download", "merge", "calibration", "cuts", "adapter", "copy", "read"),
}
TOTALS = {"tensors", "parameters", "output", "read", "download", "disk", "memory"}
MEMORY = {"process", "tensor", "loaded", "total", "device", "workers"}


def test_json_keeps_its_form(sound: Models, tmp_path: Path) -> None:
    """The JSON object has these keys and no others: programs rely on them; see FORMAT."""
    result = inspect(write(tmp_path, recipe(sound)), "--json")
    content = json.loads(result.stdout)
    (document,) = content.pop("documents")
    assert content == {
        "format": 1,
        "mergekit_lines": mergekit_lines.__version__,
        "recipe": str(tmp_path / "recipe.yml"),
    }
    lists = {key: document.pop(key) for key in ("containers", "outside", "inputs", "totals")}
    assert document == DOCUMENT
    (container,) = lists["containers"]
    assert set(container) == {"name", "blocks"}
    assert all(set(block) == BLOCK for block in container["blocks"])
    assert all(set(value) == {"value", "plus_alpha"} for value in block_values(container))
    assert all(
        set(tensor) == {"name", "coefficient", "parameters", "bytes"} for tensor in lists["outside"]
    )
    assert all(set(model) == INPUT for model in lists["inputs"])
    assert set(lists["totals"]) == TOTALS
    assert set(lists["totals"]["memory"]) == MEMORY


def block_values(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for block in container["blocks"] for value in block["coefficients"]]


def test_json_stays_json_where_the_recipe_is_refused(sound: Models, tmp_path: Path) -> None:
    """With problems stdout holds the object all the same, the message is on stderr, status 1."""
    path = write(tmp_path, recipe(sound, dtpye="float32", parameters={"beat": 0.3}))
    result = inspect(path, "--json")
    assert result.exit_code == 1
    (document,) = json.loads(result.stdout)["documents"]
    assert len(document["problems"]) == 2
    assert result.stderr.startswith("Error: [lines] 2 problems")
    # The blocks and their sizes do not hang on the parameters.
    assert len(document["containers"][0]["blocks"]) == BLOCKS
    assert not block_values(document["containers"][0])


def test_a_pipe_gets_whole_lines(sound: Models, tmp_path: Path) -> None:
    """In a pipe no name is cut or folded however long, and there is no escape sequence."""
    long = tmp_path / ("a-model-with-a-long-name-" * 8)
    make.finetuned(sound.base, long, seed=7)
    result = inspect(write(tmp_path, recipe(sound, models=[{"model": long}])))
    assert result.exit_code == 0, result.stderr
    assert any(line.startswith(str(long)) for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout and "…" not in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    for index, value in enumerate(("0.3", "0.4", "0.5", "0.6"), 1):
        assert [str(index), value, "9", "9,280", "37,120"] in rows


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("plain", [True, False])
def test_a_terminal(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal folds long names and no number; NO_COLOR leaves all escapes out."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    name = "a_tensor_with_a_name_" * 5
    outside = (Outside(name, Coefficient(0.3), 10**10, 2 * 10**10),)
    tables.show([Inspection(None, "lines", outside=outside)], "recipe.yml")
    text = terminal.getvalue()
    assert ("\x1b" not in text) == plain
    numbers = ["0.3", "1", "10,000,000,000", "20,000,000,000"]
    assert any(line.split()[1:] == numbers for line in text.splitlines())
    assert name in "".join(line.split(" ")[0] for line in text.splitlines())


def test_an_encoding_without_greek(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdout cannot write a letter, as on Windows in a pipe, its name is written."""
    written = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(written, encoding="ascii", write_through=True))
    tables.show([Inspection("two", "lines", alpha=0.5, alpha_source="é")], "recipe.yml")
    assert written.getvalue().splitlines()[:3] == [
        b"recipe.yml - two",
        b"merge_method lines, seed 0",
        b"alpha = 0.5: ?",
    ]


def test_several_coefficients_in_a_block(sound: Models, tmp_path: Path) -> None:
    """Where filters give a block several coefficients, all of them are shown."""
    beta = [{"filter": "mlp", "value": 0.9}, {"value": 0.3}]
    (found,) = told(write(tmp_path, recipe(sound, parameters={"alpha": 0.3, "beta": beta})))
    last = found["containers"][0]["blocks"][-1]
    assert [value["value"] for value in last["coefficients"]] == pytest.approx([0.6, 1.2])


def test_another_method(sound: Models, tmp_path: Path) -> None:
    """A recipe that only mergekit merges has nothing to show: status 1, and what merges it."""
    result = inspect(write(tmp_path, recipe(sound, merge_method="linear", parameters={})))
    assert result.exit_code == 1
    assert "found 'linear'" in result.stderr and "mergekit-yaml /" in result.stderr
    assert result.stdout == ""


def test_documents_of_mergekits_methods_alone(sound: Models, tmp_path: Path) -> None:
    """Several recipes are mergekit-multi's, by which mergekit's methods are not merged by ours."""
    first = {"name": "one", **recipe(sound, merge_method="ties", parameters={"weight": 1})}
    second = recipe(sound, merge_method="ties", parameters={"weight": 1})
    result = inspect(write(tmp_path, first, second))
    assert result.exit_code == 1
    assert "found 2 recipes of mergekit's own methods" in result.stderr
    assert result.stdout == ""


def test_document_named_as_the_wrap(sound: Models, tmp_path: Path) -> None:
    """What mergekit-multi would put in the place of a wrap's name is told."""
    first = {"name": "ties", **recipe(sound)}
    second = recipe(
        sound,
        models=[{"model": "ties"}],
        parameters={"wrap": "ties", "alpha": 0.3, "beta": 0.3},
    )
    result = inspect(write(tmp_path, first, second))
    assert result.exit_code == 1
    assert all(word in result.stderr for word in ("wrap", "ties", "document"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "recipe"),
        ("- 1", "recipe"),
        ("merge_method: [", "recipe"),
        ("merge_method: lines\nmodels: 3", "models: Input should be a valid list."),
        ("some words", "found 'some words', wanted a recipe"),
        ("a: 1\n---\nwords", "found 'words', wanted a recipe"),
    ],
)
def test_no_recipe(text: str, wanted: str, tmp_path: Path) -> None:
    """A file that mergekit cannot read as a recipe is one sentence and status 1."""
    path = tmp_path / "bad.yml"
    path.write_text(text)
    result = inspect(path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: [lines] {path}") and wanted in result.stderr


@pytest.mark.parametrize(
    "flags",
    [("absent.yml",), (), ("RECIPE", "--plot", "a.pdf"), ("RECIPE", "--out-shard-size", "x")],
)
def test_usage(flags: tuple[str, ...], sound: Models, tmp_path: Path) -> None:
    """Wrong usage ends with status 2."""
    path = str(write(tmp_path, recipe(sound)))
    words = [path if flag == "RECIPE" else flag for flag in flags]
    assert CliRunner().invoke(main, ["inspect", *words]).exit_code == 2


def test_disk_that_is_too_small(
    sound: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --out a disk that lacks the room is a problem, in the words of the merge."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "new" / "out"
    path = write(tmp_path, recipe(sound))
    result = inspect(path, "--out", str(out))
    with pytest.raises(mergekit_lines.LinesError, match="which has 1,000 free") as refused:
        mergekit_lines.merge(path, out, quiet=True)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {refused.value.format_message()}\n"
    assert not (tmp_path / "new").exists()
    told(path)
