"""What ``inspect --workers N`` tells of a merge that is shared."""

from __future__ import annotations

from pathlib import Path

from tests.inspection.command import inspect, told, write


def test_memory_is_each_workers(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Each of four workers holds what one thread holds; without shards for all that is told."""
    path = write(
        tmp_path,
        {
            "merge_method": "lines",
            "base_model": str(llama_base),
            "models": [{"model": str(llama_a)}],
            "parameters": {"alpha": 0.2, "beta": 0.5, "weight": 1.0},
        },
    )
    (one,) = told(path, "--num-threads", "1")
    (shared,) = told(path, "--num-threads", "1", "--workers", "4")
    assert one["totals"]["memory"]["workers"] == 1
    assert shared["totals"]["memory"]["workers"] == 4
    assert shared["totals"]["memory"]["tensor"] == one["totals"]["memory"]["tensor"]
    assert any("3 of 4 workers have nothing to do" in note for note in shared["notes"])
    text = " ".join(inspect(path, "--workers", "4", "--out-shard-size", "20K").stdout.split())
    assert "memory in each of 4 workers about" in text and "nothing to do" not in text
