"""What an inspection says of α is what the merge takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import BasePolicy, InputContract, TensorGroup
from mergekit.merge_methods.easy_define import merge_method

import mergekit_lines
from mergekit_lines.cli import main
from tests import models
from tests.e2e.runner import in_process

ALPHA, BETA, GAMMA = 0.4, 0.5, 0.25


@pytest.fixture
def shrunk() -> Iterator[str]:
    """A merge method of someone else's that has a `gamma` of its own, one for all models."""
    name = "shrunk_by_gamma"

    @merge_method(
        name=name,
        contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, max_inputs=2),
    )
    def merge(group: TensorGroup, gamma: float) -> torch.Tensor:
        assert group.base is not None
        base = group.base.tensor
        return base + gamma * (group.non_base[0].tensor - base)

    registry.register(merge)
    yield name
    for registered in (name, f"lines[{name}]"):
        registry._METHODS.pop(registered, None)


def test_a_wrapped_methods_own_gamma_is_no_alpha(
    shrunk: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """`inspect` tells the α of the recipe beside a wrap with a `gamma`; the merge takes both."""
    mergekit_lines.register()
    document: dict[str, Any] = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "models": [{"model": str(llama_a)}],
        "parameters": {"wrap": shrunk, "alpha": ALPHA, "beta": BETA, "gamma": GAMMA},
    }
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    (inspection,) = json.loads(result.stdout)["documents"]
    assert inspection["alpha"] == ALPHA
    (container,) = inspection["containers"]
    values = [block["coefficients"][0]["value"] for block in container["blocks"]]
    count = len(values)
    assert values == pytest.approx([ALPHA + BETA * index / (count - 1) for index in range(count)])
    assert {entry["coefficient"]["value"] for entry in inspection["outside"]} == {ALPHA}

    in_process(document, tmp_path / "out")
    merged, base, tuned = (
        models.read(folder) for folder in (tmp_path / "out", llama_base, llama_a)
    )
    for name in ("model.norm.weight", f"model.layers.{count - 1}.mlp.up_proj.weight"):
        coefficient = ALPHA + BETA * ("layers" in name)
        start = base[name].double()
        want = start + coefficient * GAMMA * (tuned[name].double() - start)
        assert models.max_error_ratio(merged[name], want) <= 1e-6, name
