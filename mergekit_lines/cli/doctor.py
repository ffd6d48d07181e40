"""``mergekit-lines doctor``: whether ``lines`` works in this environment's ``mergekit-yaml``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from packaging.version import Version

from mergekit_lines._autoload import OFF
from mergekit_lines._version import __version__
from mergekit_lines.cli.options.probe import probe
from mergekit_lines.host.seams import MERGEKIT

PACKAGES = (
    *("mergekit", "torch", "transformers", "accelerate", "safetensors"),
    *("huggingface_hub", "peft"),
)
EXTRAS = {
    "matplotlib": "draws figures",
    "plotly": "draws the page of show",
    "optuna": "proposes the points of search",
    "cmaes": "likewise, for --sampler cmaes",
    "ray": "shares work among --workers",
    "lm_eval": "evaluates models",
}
TORCH_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
TORCH = Version("2.5")  # the first that calls the entry points of torch.backends
COMMAND = "mergekit-yaml"


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Tell whether merge_method: lines works in mergekit-yaml here.

    It starts a fresh interpreter as mergekit-yaml does and looks. The exit status is 0 when
    lines works, else 1, with what to do about it.
    """
    answers = probe()
    _show("versions", versions())
    path, own = shutil.which(COMMAND), Path(sysconfig.get_path("scripts"), COMMAND)
    parts = {
        "mergekit": mergekit_problems(answers),
        "autoload": autoload_problems(answers, os.environ),
        COMMAND: command_problems(path, own),
    }
    fine = {
        "mergekit": f"in range {MERGEKIT}, all {answers.get('seam_count')} seams in place",
        "autoload": "active in a fresh interpreter",
        COMMAND: f"{path}, of this environment",
    }
    click.echo("checks")
    for name, problems in parts.items():
        good = not problems and (name != "autoload" or answers.get("active"))
        mark = click.style("ok", fg="green") if good else click.style("no", fg="red")
        click.echo(f"  {mark}  {name}: {fine[name] if good else 'see below'}")
    click.echo()
    registered = {"methods": ", ".join(answers.get("methods", [])) or "none"}
    registered["can be wrapped"] = ", ".join(answers.get("wraps", [])) or "none"
    _show("registered" if answers.get("active") else "registered (by hand)", registered)
    _show("extras", {name: f"{_version(name)} ({use})" for name, use in EXTRAS.items()})
    _show(
        "devices", {"cuda": "; ".join(answers.get("devices", [])) or "none, merges run on the CPU"}
    )
    every_problem = [problem for problems in parts.values() for problem in problems]
    if every_problem:
        click.echo(f"`merge_method: lines` does not work in {COMMAND} here:")
        for problem in every_problem:
            click.echo(textwrap.indent(problem, "  "))
        ctx.exit(1)
    click.echo(f"`merge_method: lines` works in {COMMAND} here.")


def versions() -> dict[str, str]:
    """Return the version of every package that takes part."""
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "mergekit-lines": f"{__version__} ({Path(__file__).parents[1]})",
        **{name: _version(name) for name in PACKAGES},
    }


def mergekit_problems(answers: Mapping[str, Any]) -> list[str]:
    """Return why mergekit cannot be extended: it does not import, or is another release."""
    if "error" in answers:
        return [
            f"torch and mergekit cannot be imported in a fresh interpreter ({answers['error']}). "
            f"Run `{sys.executable} -m pip install --upgrade mergekit-lines` and look again."
        ]
    return [answers["seams"]] if answers["seams"] else []


def autoload_problems(answers: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Return why torch did not activate us in the fresh interpreter, with the remedy."""
    if answers.get("active") or "error" in answers or answers["seams"]:
        return []
    if answers["called"]:
        if answers["warnings"]:
            return list(answers["warnings"])
        return [
            f"{OFF}: found {environ.get(OFF)!r}, which turns lines off, wanted 1 or nothing. Run "
            f"`unset {OFF}`."
        ]
    problems = []
    if environ.get(TORCH_SWITCH, "1") != "1":
        problems.append(
            f"{TORCH_SWITCH}: found {environ[TORCH_SWITCH]!r}, with which torch loads no "
            f"extension, wanted 1 or nothing. Run `unset {TORCH_SWITCH}`."
        )
    if not importlib.metadata.entry_points(group="torch.backends", name="mergekit_lines"):
        problems.append(
            f"the installed mergekit-lines has no entry point in the group torch.backends (is it "
            f"on sys.path without being installed?). Run `{sys.executable} -m pip install "
            f"--force-reinstall --no-deps mergekit-lines`."
        )
    if Version(_version("torch")) < TORCH:
        problems.append(
            f"torch: found {_version('torch')}, wanted {TORCH} or newer: older ones load no "
            f"extension. Run `{sys.executable} -m pip install 'torch>={TORCH}'`."
        )
    return problems or [
        "torch did not call the entry point of mergekit-lines, for no reason that is known here. "
        "Call `mergekit_lines.register()` from Python, or use `mergekit-lines edit`."
    ]


def command_problems(path: str | None, own: Path) -> list[str]:
    """Return why typing the command does not start that of this environment.

    Args:
        path: where the shell finds it, or None.
        own: where this environment has it.
    """
    activate = f"Activate this environment (`. {own.parent / 'activate'}`), or write {own}."
    if path is None and not own.exists():
        return [
            f"{COMMAND}: found neither on PATH nor in {own.parent}. Run `{sys.executable} -m pip "
            f"install --force-reinstall --no-deps mergekit`."
        ]
    if path is None:
        return [f"{COMMAND}: not on PATH. {activate}"]
    python = interpreter(Path(path))
    if not _same(python.parent, Path(sys.executable).parent):
        return [
            f"{COMMAND}: the one on PATH is {path}, which runs {python}, and mergekit-lines is "
            f"installed for {sys.executable}. {activate}"
        ]
    return []


def interpreter(script: Path) -> Path:
    """Return the interpreter that a script names in its first lines, else the one beside it."""
    head = script.read_bytes()[:4096].decode("utf-8", "replace")
    # The second form is pip's and uv's, for paths too long or with spaces.
    match = re.match(r"#!\s*(\S+python\S*)\s", head) or re.search(
        r"^'''exec' [\"']?(.+?)[\"']? \"\$0\"", head, re.MULTILINE
    )
    return Path(match[1]) if match else script.parent / "python"


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _show(title: str, rows: Mapping[str, str]) -> None:
    click.echo(title)
    width = max(map(len, rows))
    for name, text in rows.items():
        lines = textwrap.wrap(text, 78 - width, break_long_words=False, break_on_hyphens=False)
        click.echo(f"  {name:{width}}  {lines[0]}")
        for line in lines[1:]:
            click.echo(f"  {'':{width}}  {line}")
    click.echo()
