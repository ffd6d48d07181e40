"""The command ``inspect`` in this process, and what the tests of this room give it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mergekit_lines.cli import main
from tests.e2e import runner


def inspect(path: Path, *flags: str) -> Result:
    """Run the command in this process; its stdout is no terminal."""
    return CliRunner().invoke(main, ["inspect", str(path), *flags])


def write(folder: Path, *recipes: runner.Recipe) -> Path:
    path = folder / "recipe.yml"
    path.write_text("---\n".join(map(runner.recipe_text, recipes)), encoding="utf-8")
    return path


def told(path: Path, *flags: str) -> list[dict[str, Any]]:
    """Return the documents of ``--json``; nothing else is on stdout, and the status is 0."""
    result = inspect(path, "--json", *flags)
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["documents"]
    return found
