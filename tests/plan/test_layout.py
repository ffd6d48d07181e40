"""Architectures that mergekit cannot lay out merge by the names in their own headers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import models
from tests.architectures import ROWS, Row
from tests.e2e.runner import in_process

ALPHA, BETA = 0.3, 0.5
IDS = [row.name for row in ROWS]


def made(row: Row, path: Path) -> tuple[Path, Path, Path]:
    """Return a base and two models fine-tuned from it."""
    base = row.save(path / "base")
    tuned = [models.finetuned(base, path / name, seed=n) for n, name in enumerate("ab", 1)]
    return base, *tuned


def recipe(base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    """Return a recipe of ``lines`` around task arithmetic with equal weights."""
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": ALPHA, "beta": BETA, "weight": 0.5, **parameters},
    }


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_an_architecture_is_merged_by_the_formula(row: Row, tmp_path: Path) -> None:
    """Every tensor of the base is there under its name, and is the float64 formula's; it loads."""
    base, *tuned = made(row, tmp_path)
    in_process(recipe(base, *tuned), tmp_path / "out")
    first, inputs = models.read(base), [models.read(path) for path in tuned]
    merged = models.read(tmp_path / "out")
    assert set(merged) == set(first)
    inside = 0
    for name, tensor in merged.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, first[name])
            continue
        depth = row.depth(name)
        inside += depth is not None
        coefficient = ALPHA + BETA * (depth or 0.0)
        origin = first[name].double()
        task_vector = sum(0.5 * (each[name].double() - origin) for each in inputs)
        expected = origin + coefficient * task_vector
        assert models.max_error_ratio(tensor, expected) <= 1e-6, name
    assert inside > len(merged) / 2
    loader = getattr(transformers, row.name)
    _, loading = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
