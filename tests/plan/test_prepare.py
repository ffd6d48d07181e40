"""A plan by headers alone: every tensor once, in its place, and nothing read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mergekit_lines.errors import LinesError
from tests import models
from tests.plan.preparing import configuration, prepared

BLOCK = re.compile(r"model\.layers\.(\d+)\.")


def test_every_tensor_has_its_place(llama_base: Path, llama_a: Path) -> None:
    """The plan holds the base's names once each, with the block that the name says."""
    with prepared(configuration(llama_base, llama_a)) as plan:
        places = {item.weight.name: item.placed for item in plan.planned}
        assert len(plan.planned) == len(places)
    assert set(places) == set(models.read(llama_base))
    for name, placed in places.items():
        match = BLOCK.match(name)
        number = placed.depth.index if placed.depth else None
        assert number == (int(match[1]) if match else None), name
        # λ = α + β·ℓ/(L − 1) of four blocks; outside of them α (arXiv 2410.17146, Eq. 1).
        expected = 0.3 + 0.5 * int(match[1]) / 3 if match else 0.3
        assert placed.coefficient() == pytest.approx(expected, rel=1e-15)
    assert not plan.dropped and not plan.notes


def test_no_weight_is_read(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A model whose data is cut off behind its header is planned as well."""
    folder = tmp_path / "headless"
    folder.mkdir()
    for file in llama_a.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (llama_a / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    sparse = (folder / "model.safetensors").open("wb")
    with sparse:
        sparse.write(whole[:length])
        sparse.truncate(len(whole))
    with prepared(configuration(llama_base, folder)) as plan:
        assert len(plan.planned) == len(models.read(llama_base))


def test_what_the_base_lacks_is_dropped_and_told(llama_base: Path, tmp_path: Path) -> None:
    """A tensor that only a model has is listed under it, and said."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=5)
    models.rewrite(tuned, lambda tensors: tensors | {"score.weight": torch.ones(2, 2)})
    with prepared(configuration(llama_base, tuned)) as plan:
        (names,) = plan.dropped.values()
    assert list(names) == ["score.weight"]
    assert any("1 tensors that the base lacks are dropped: score.weight" in n for n in plan.notes)


def test_more_layers_than_tensors(llama_base: Path, tmp_path: Path) -> None:
    """A config that counts beyond its checkpoint is refused before a plan is made of it."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=5)
    models.edit_config(tuned, num_hidden_layers=10**9)
    wanted = r"its config\.json counts 1,000,000,000 layers"
    with pytest.raises(LinesError, match=wanted), prepared(configuration(llama_base, tuned)):
        pass


def test_problems_of_several_models_come_together(llama_base: Path, tmp_path: Path) -> None:
    """Two broken checkpoints are two problems of one refusal."""
    broken = []
    for name in ("one", "two"):
        folder = models.finetuned(llama_base, tmp_path / name, seed=5)
        (folder / "model.safetensors").write_bytes(json.dumps(name).encode())
        broken.append(folder)
    with (
        pytest.raises(LinesError) as caught,
        prepared(configuration(llama_base, *broken)),
    ):
        pass
    assert len(caught.value.problems) == 2
    assert all(str(path) in str(caught.value) for path in broken)
