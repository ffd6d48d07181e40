"""``mergekit-lines`` itself: light until a command is called, and ``doctor``'s verdicts."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mergekit_lines import __version__
from mergekit_lines.cli import COMMANDS, main
from tests.e2e import runner

DOCTOR: Any = importlib.import_module("mergekit_lines.cli.doctor")
HEAVY = {"torch", "mergekit", "transformers", "numpy", "safetensors", "huggingface_hub", "yaml"}
PATH = f"{runner.BIN}{os.pathsep}{os.environ.get('PATH', '')}"


def imported(command: list[str], cwd: Path, env: runner.Environment) -> tuple[str, set[str]]:
    """Run a script; return its stdout and all modules that its interpreter imported."""
    done = runner.run(command, cwd, {**env, "PYTHONPROFILEIMPORTTIME": "1"}).succeeded()
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.stdout, {line.rpartition("|")[2].strip() for line in lines}


# --- light ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str, tmp_path: Path) -> None:
    """``--help`` and ``--version`` of the script import no command, and nothing but click."""
    said, modules = imported(["mergekit-lines", option], tmp_path, {})
    assert said.startswith("Usage: mergekit-lines" if option == "--help" else "mergekit-lines, ")
    assert "click" in modules
    assert not {name.partition(".")[0] for name in modules} & {*HEAVY, "json", "logging"}
    ours = {name for name in modules if name.startswith("mergekit_lines")}
    assert ours == {f"mergekit_lines{name}" for name in ("", "._version", ".cli", ".errors")}


def test_help_names_every_command_and_exit_status(tmp_path: Path) -> None:
    """The help lists the commands with one line each, the exit statuses and completion."""
    said = runner.run(["mergekit-lines", "--help"], tmp_path).succeeded().stdout
    for name, line in COMMANDS.items():
        assert f"  {name}" in said
        assert line in said
    for text in ("0  done", "1  a problem", "2  wrong usage", "zsh_source mergekit-lines"):
        assert text in said
    assert f"version {__version__}" in runner.run(["mergekit-lines", "--version"], tmp_path).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lines_known_are_the_commands_own(name: str) -> None:
    """What the help says of a command without importing it is the first line of its own help."""
    if importlib.util.find_spec(f"mergekit_lines.cli.{name}") is None:
        pytest.skip(f"{name} is not built yet")
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert str(command.help).splitlines()[0] == COMMANDS[name]


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    """A misspelt command is wrong usage, exit status 2, with the right one named."""
    done = runner.run(["mergekit-lines", "doktor"], tmp_path)
    assert done.returncode == 2
    assert "No such command 'doktor'" in done.stderr
    assert "Did you mean 'doctor'?" in done.stderr
    assert runner.run(["mergekit-lines", "edit", "--nothing"], tmp_path).returncode == 2


# --- pipes ---------------------------------------------------------------------------------


WORDS = "edit a --base b --gamma 1 --print-recipe"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    """A pipe that is closed after a line, or before any, leaves stderr empty."""
    # The file is made by a reader that has gone: the second one's command waits for it.
    command = f"while [ ! -e gone ]; do sleep 0.01; done; mergekit-lines {WORDS}"
    for reader in ("touch gone; exec head -1", "exec 0<&-; touch gone"):
        (tmp_path / "gone").unlink(missing_ok=True)
        script = f"({command}) | ({reader})"
        assert runner.run(["bash", "-c", script], tmp_path, {"PATH": PATH}).stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_for_stdout_is_a_sentence(tmp_path: Path) -> None:
    """``> FILE`` on a full disk ends with status 1 and the system's words."""
    script = f"mergekit-lines {WORDS} > /dev/full"
    done = runner.run(["bash", "-c", script], tmp_path, {"PATH": PATH})
    assert done.returncode == 1
    assert done.stderr == (
        "Error: [lines] stdout or another file: No space left on device. Check the place and the "
        "disk.\n"
    )


# --- completion ----------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_come_out(shell: str, tmp_path: Path) -> None:
    """Each shell's script names the command and its own function, and imports nothing heavy."""
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")
    env = {"_MERGEKIT_LINES_COMPLETE": f"{shell}_source"}
    said, modules = imported(["mergekit-lines"], tmp_path, env)
    assert "_mergekit_lines_completion" in said
    assert f"{shell}_complete" in said
    assert not {name.partition(".")[0] for name in modules} & HEAVY


@pytest.mark.parametrize(
    ("shell", "words", "place", "answer"),
    [
        ("bash", "mergekit-lines in", "1", "plain,inspect"),
        ("zsh", "mergekit-lines in", "1", f"plain\ninspect\n{COMMANDS['inspect']}"),
        ("fish", "mergekit-lines", "in", f"plain,inspect\t{COMMANDS['inspect']}"),
        ("bash", "mergekit-lines ed", "1", "plain,edit"),
        ("bash", "mergekit-lines edit --ga", "2", "plain,--gamma"),
        ("bash", "mergekit-lines --ver", "1", "plain,--version"),
    ],
)
def test_completion_answers_without_torch(
    shell: str, words: str, place: str, answer: str, tmp_path: Path
) -> None:
    """``mergekit-lines in`` completes to ``inspect`` in each shell; torch stays unimported."""
    env = {
        "_MERGEKIT_LINES_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": place,
    }
    said, modules = imported(["mergekit-lines"], tmp_path, env)
    assert said.strip() == answer
    assert not {name.partition(".")[0] for name in modules} & {"torch", "mergekit", "transformers"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes(tmp_path: Path) -> None:
    """The line of the help, evaluated by bash, makes bash complete ``in`` to ``inspect``."""
    script = """
        eval "$(_MERGEKIT_LINES_COMPLETE=bash_source mergekit-lines)"
        COMP_WORDS=(mergekit-lines in) COMP_CWORD=1
        _mergekit_lines_completion mergekit-lines
        echo "${COMPREPLY[@]}"
    """
    done = runner.run(["bash", "-c", script], tmp_path, {"PATH": PATH}).succeeded()
    assert done.stdout.split() == ["inspect"]


# --- doctor --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runner.Result]:
    """What the real command says in three environments, each with this environment's PATH."""
    environments: dict[str, dict[str, str]] = {
        "fine": {},
        "off": {"MERGEKIT_LINES_AUTOLOAD": "0"},
        "torch off": {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    }
    work = tmp_path_factory.mktemp("doctor")
    # In the current folder, where a command's interpreter does not look.
    (work / "torch.py").write_text("raise ImportError('the wrong torch')\n")

    def ask(env: dict[str, str]) -> runner.Result:
        return runner.run(["mergekit-lines", "doctor"], work, {**env, "PATH": PATH})

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(environments, pool.map(ask, environments.values()), strict=True))


def test_doctor_when_all_is_well(verdicts: dict[str, runner.Result]) -> None:
    """Where lines works the exit status is 0, and versions, methods and extras are told."""
    said = verdicts["fine"].succeeded().stdout
    assert "`merge_method: lines` works in mergekit-yaml here." in said
    for name in DOCTOR.PACKAGES:
        assert f"{name} " in said
        assert importlib.metadata.version(name) in said
    assert "autoload: active in a fresh interpreter" in said
    assert "lines, lines_postprocess" in said
    for wrap in ("ties", "dare_linear", "task_arithmetic"):
        assert wrap in said
    assert "passthrough" not in said
    for extra in ("matplotlib", "plotly", "optuna", "cmaes", "ray", "lm_eval"):
        assert f"  {extra} " in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("how", "name"),
    [("off", "MERGEKIT_LINES_AUTOLOAD"), ("torch off", "TORCH_DEVICE_BACKEND_AUTOLOAD")],
)
def test_doctor_where_a_switch_is_off(
    verdicts: dict[str, runner.Result], how: str, name: str
) -> None:
    """Where a variable turns autoload off the exit status is 1, and the remedy unsets it."""
    done = verdicts[how]
    assert done.returncode == 1
    assert "`merge_method: lines` does not work in mergekit-yaml here:" in done.stdout
    assert f"{name}: found '0'" in done.stdout
    assert f"Run `unset {name}`." in done.stdout
    assert done.stdout.count("unset") == 1
    assert "no  autoload" in done.stdout
    assert "ok  mergekit:" in done.stdout


FOUND: dict[str, Any] = {
    "called": True,
    "active": True,
    "warnings": [],
    "seams": None,
    "seam_count": 70,
    "methods": ["lines", "lines_postprocess"],
    "wraps": ["ties"],
    "devices": [],
}


def told(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """Run doctor here on what a fresh interpreter would have found."""
    monkeypatch.setattr(DOCTOR, "probe", lambda: {**FOUND, **changes})
    monkeypatch.setenv("PATH", PATH)
    return CliRunner().invoke(main, ["doctor"], color=True)


def test_colour_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the marks are coloured; NO_COLOR leaves them plain."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in told(monkeypatch).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in told(monkeypatch).output


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"active": False, "warnings": ["mergekit-lines could not x"]}, ["could not x"]),
        (
            {"active": False, "seams": "mergekit 0.2.0 is installed"},
            ["mergekit 0.2.0 is installed", "no  autoload"],
        ),
        (
            {"error": "OSError: libtorch.so", "active": False},
            ["cannot be imported in a fresh interpreter (OSError: libtorch.so)", "pip install"],
        ),
        (
            {"active": False, "called": False},
            ["torch did not call the entry point", "mergekit_lines.register()"],
        ),
    ],
)
def test_doctor_tells_each_reason(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], texts: list[str]
) -> None:
    """Whatever keeps lines from working is told with exit status 1."""
    monkeypatch.setenv("NO_COLOR", "1")
    result = told(monkeypatch, **changes)
    assert result.exit_code == 1
    for text in texts:
        assert text in result.output


def test_doctor_tells_a_missing_entry_point_and_an_old_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without our entry point, or with a torch that calls none, the remedy is an install."""
    found = {**FOUND, "active": False, "called": False}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    (problem,) = DOCTOR.autoload_problems(found, {})
    assert "no entry point in the group torch.backends" in problem
    assert "pip install --force-reinstall" in problem
    monkeypatch.undo()
    monkeypatch.setattr(DOCTOR, "_version", lambda name: "2.4.1+cu121")
    (problem,) = DOCTOR.autoload_problems(found, {})
    assert "torch: found 2.4.1+cu121, wanted 2.5 or newer" in problem


def script(folder: Path, head: str) -> Path:
    folder.mkdir()
    path = folder / "mergekit-yaml"
    path.write_text(head + "\nimport sys\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_doctor_knows_another_environments_command(tmp_path: Path) -> None:
    """A mergekit-yaml of another environment is told apart by the interpreter it names."""
    own = script(tmp_path / "own", f"#!{sys.executable}")
    assert DOCTOR.command_problems(str(own), own) == []
    spaced = script(
        tmp_path / "spaced", f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''"
    )
    assert DOCTOR.command_problems(str(spaced), own) == []
    other = script(tmp_path / "other", "#!/elsewhere/bin/python3.12")
    (problem,) = DOCTOR.command_problems(str(other), own)
    assert f"the one on PATH is {other}, which runs /elsewhere/bin/python3.12" in problem
    assert f"or write {own}" in problem
    (problem,) = DOCTOR.command_problems(None, own)
    assert "not on PATH" in problem
    (problem,) = DOCTOR.command_problems(None, tmp_path / "nowhere" / "mergekit-yaml")
    assert "--no-deps mergekit`" in problem
