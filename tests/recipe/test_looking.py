"""Recipes that mergekit's parsers cannot get through end its own commands in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mergekit.scripts import merge_raw_pytorch, multimerge, run_yaml

from mergekit_lines.recipe.looking import look_at

OURS = "merge_method: lines\nbase_model: ./base\nmodels:\n- model: ./tuned\n"
LISTS = "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
BOMB = f"  - &a0 [1, 2]\n{LISTS}"
ENTANGLED = {
    f"parameters:\n  beta:\n{BOMB}": "it comes to more than 50,000 values, aliases written out",
    f"parameters:\n  beta: {'[' * 80}{']' * 80}\n": "it is nested more than 64 deep",
    f"parameters:\n  beta: {'[' * 5000}\n": "it is no YAML: ",
    "parameters: &a\n  beta: *a\n": "its alias *a stands for what it is itself a part of",
    "parameters:\n  beta: &a [*a]\n": "its alias *a stands for what it is itself a part of",
    f"parameters:\n  beta: 1:{':'.join(['59'] * 500)}\n": "a value of more than 1,000 digits",
    f"# {'-' * (1 << 20)}\n": "it holds more than 1 MiB",
}
COMMANDS = {
    "mergekit-yaml": (run_yaml, ()),
    "mergekit-multi": (multimerge, ("--intermediate-dir", "steps", "--out-path")),
    "mergekit-pytorch": (merge_raw_pytorch, ()),
}


def ended(command: str, text: str) -> Result:
    module, flags = COMMANDS[command]
    Path("r.yml").write_text(text, encoding="utf-8")
    return CliRunner().invoke(module.main, ["r.yml", *flags, "out"])


@pytest.mark.parametrize("text", ENTANGLED, ids=ENTANGLED.values())
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_in_words(
    command: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aliases of aliases, a value within itself, depth and digits: one sentence, status 1."""
    monkeypatch.chdir(tmp_path)
    result = ended(command, f"{OURS}{text}")
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1
    assert result.stderr.startswith("Error: [lines] r.yml: ")
    assert ENTANGLED[text] in result.stderr
    assert result.stderr.rstrip().endswith(". Write it plainly.")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "start", ['{"merge_method": "lines_postprocess"}\n---\n', "x: [merge_method]\n" + OURS]
)
def test_however_it_is_written(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of ours is found in JSON, in another document and behind other keys."""
    monkeypatch.chdir(tmp_path)
    result = ended("mergekit-multi", f"{start}parameters: &a\n  beta: *a\n")
    assert "its alias *a stands for" in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: ties\nx: &a [*a]\n",
        "x: [lines, merge_method]\ny: lines\nz: &a [*a]\n",
        "merge_method: lines_of_another\nx: &a [*a]\n",
        "merge_method: {lines: &a [*a]}\n",
        f"merge_method: linear\n# {'-' * (1 << 20)}\n",
    ],
)
def test_a_recipe_of_others_is_mergekits(text: str, tmp_path: Path) -> None:
    """Whatever it holds, nothing is said of a recipe that names no method of ours."""
    file = tmp_path / "r.yml"
    file.write_text(text, encoding="utf-8")
    look_at(file)


def test_what_is_no_file_is_left_to_the_command(tmp_path: Path) -> None:
    """A pipe can be read once, and a file that is not there is told of by the command."""
    look_at(tmp_path / "nothing.yml")
    look_at(tmp_path)
    reading, writing = os.pipe()
    try:
        os.write(writing, f"{OURS}x: &a [*a]\n".encode())
        look_at(Path(f"/dev/fd/{reading}"))
        assert os.read(reading, 19) == b"merge_method: lines"
    finally:
        os.close(reading)
        os.close(writing)
