"""``tests/gpu.sh``, which wants a GPU, runs its steps without one, and tells what failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests import gpu
from tests.e2e import runner

SCRIPT = Path(__file__).with_name("gpu.sh")


def test_the_steps_run_without_a_gpu(tmp_path: Path) -> None:
    """The script's steps hold on the CPU with small models, and leave nothing behind."""
    words = ("--device", "cpu", "--small", "--folder", tmp_path, "adapters", "offloaded", "soup")
    python = {"PYTHON": str(runner.BIN / "python")}
    ended = runner.run(("bash", SCRIPT, *words), tmp_path, python).succeeded()
    for step in ("adapters", "offloaded", "soup"):
        assert f"{step}: passed: " in ended.stdout
    for c in gpu.POINTS:
        assert f"soup: c = {c:g}: setting + generating, s: " in ended.stdout
    assert not any(tmp_path.iterdir())


def test_a_step_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A step that fails does not keep the next one from running, and the status is 1."""

    def fails(_: gpu.Machine) -> None:
        raise AssertionError("other entries changed")

    monkeypatch.setitem(gpu.STEPS, "live", fails)
    monkeypatch.setitem(gpu.STEPS, "soup", lambda _: None)
    words = ["--device", "cpu", "--folder", str(tmp_path), "live", "soup"]
    ended = CliRunner().invoke(gpu.main, words)
    assert ended.exit_code == 1
    assert "live: FAILED: " in ended.output and "soup: passed: " in ended.output
    assert ended.output.endswith("failed: live\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu_is_told() -> None:
    """Without a GPU the script says how to run it all the same."""
    ended = CliRunner().invoke(gpu.main, [])
    assert ended.exit_code == 1
    assert "torch sees no CUDA device; --device cpu --small runs without" in ended.output
