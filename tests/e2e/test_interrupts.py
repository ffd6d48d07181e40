"""A second Ctrl-C while a command's process ends: by the signal itself, and without a traceback."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.e2e import runner

# The first Ctrl-C comes with the first write to a shard, the second with what Python does last.
# A signal that a process sends itself has arrived when the next line runs.
ENDING = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
from {module} import main
write = os.pwrite

def interrupted(*arguments):
    os.pwrite = write
    os.kill(os.getpid(), signal.SIGINT)
    return write(*arguments)

os.pwrite = interrupted
main({words!r}, prog_name="command")
"""
COMMANDS = {
    "mergekit-yaml": ("mergekit.scripts.run_yaml", ["recipe.yml", "out"]),
    "mergekit-multi": ("mergekit.scripts.multimerge", ["recipe.yml", "--out-path", "out"]),
    "mergekit-lines edit": (
        "mergekit_lines.cli",
        ["edit", "tuned", "--base", "base", "--gamma", "0.3", "--out", "out"],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_ctrl_c_at_the_end(
    name: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """It ends the process by the signal; nothing is left, and no traceback is printed."""
    (tmp_path / "base").symlink_to(llama_base)
    (tmp_path / "tuned").symlink_to(llama_a)
    recipe = {
        "merge_method": "lines_postprocess",
        "base_model": "base",
        "models": [{"model": "tuned"}],
        "parameters": {"gamma": 0.3},
    }
    (tmp_path / "recipe.yml").write_text(runner.recipe_text(recipe))
    module, words = COMMANDS[name]
    if name == "mergekit-multi":
        words = [*words, "--intermediate-dir", "steps"]
    script = ENDING.format(module=module, words=words)
    ended = runner.run([sys.executable, "-c", script], tmp_path)
    assert ended.returncode == -signal.SIGINT, ended.stderr
    assert "stopped before a shard was whole" in ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]
