"""The benchmark of the deep look runs, at the smallest size."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.e2e import runner

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_look_is_timed_beside_reading(tmp_path: Path) -> None:
    """Both ways have a row, and reading is once of itself."""
    script = str(EXAMPLES / "spectra_benchmark.py")
    flags = ["--only", "look", "--billions", "0.0005", "--folder", str(tmp_path)]
    command = [sys.executable, script, *flags]
    text = runner.run(command, tmp_path, runner.ONE_THREAD).succeeded().stdout
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert ["reading" in rows[0], "1.00" in rows[0], "inspect --deep" in rows[1]] == [True] * 3
