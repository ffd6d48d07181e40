"""Made-up architectures that nobody has described merge by the names in their files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lines.lines.depth import block_depths
from tests import models
from tests.e2e.runner import in_process

ALPHA, BETA, WEIGHT = 0.3, 0.5, 0.5
SYLLABLES = ("ba", "ko", "ri", "tem", "vu", "nax", "sol", "pi")


@dataclass
class Newcomer:
    """The tensors of a made-up model, with the depth at which each was put.

    Attributes:
        draw: what everything is drawn from.
        shapes: of the tensors, by name.
        depths: (l-1)/(L-1) by name; None outside the blocks.
    """

    draw: random.Random
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    depths: dict[str, float | None] = field(default_factory=dict)

    def word(self, taken: set[str]) -> str:
        """Return a name for a module that none beside it has."""
        while True:
            word = "_".join("".join(self.draw.choices(SYLLABLES, k=2)) for _ in range(2))
            if word not in taken:
                taken.add(word)
                return word

    def module(self, name: str, depth: float | None) -> None:
        """Add a module that owns a matrix, a kernel or a vector, and perhaps a bias."""
        width = self.draw.randint(2, 5)
        shape = self.draw.choice([(width, 3), (3, width), (width,), (width, 2, 2, 2)])
        self.shapes[f"{name}.weight"] = shape
        self.depths[f"{name}.weight"] = depth
        if self.draw.random() < 0.5:
            self.shapes[f"{name}.bias"] = shape[:1]
            self.depths[f"{name}.bias"] = depth

    def block(self, plan: list[str], name: str, depth: float) -> None:
        """Add a block after a plan that all blocks of its stack share."""
        for module in plan:
            self.module(f"{name}.{module}", depth)

    def plan(self) -> list[str]:
        """Return the modules of a block: at least four, some nested, some in lists."""
        taken: set[str] = set()
        plan = []
        for _ in range(self.draw.randint(4, 7)):
            word = self.word(taken)
            plan.append(f"{word}.{self.word(set())}" if self.draw.random() < 0.4 else word)
        if self.draw.random() < 0.4:  # experts of three matrices each, and what routes to them
            parent, matrices = self.word(taken), [self.word(taken) for _ in range(3)]
            plan.append(f"{parent}.{self.word(set())}")
            number = self.draw.randint(2, 5)
            plan += [f"{parent}.experts.{i}.{matrix}" for i in range(number) for matrix in matrices]
        if self.draw.random() < 0.3:  # a list of bare layers, with activations between them
            plan += [f"{self.word(taken)}.{i}" for i in (0, 2)]
        return plan

    def stack(self, name: str) -> None:
        """Add a list of like blocks."""
        plan, blocks = self.plan(), self.draw.randint(2, 6)
        for i in range(blocks):
            self.block(plan, f"{name}.{i}", i / (blocks - 1))

    def stages(self, name: str) -> None:
        """Add a list of stages of blocks; between two stages stands what shrinks the image."""
        taken: set[str] = set()
        inner, between = self.word(taken), self.word(taken)
        plan = self.plan()
        sizes = [self.draw.randint(1, 3) for _ in range(self.draw.randint(2, 4))]
        opens = self.draw.random() < 0.5
        last, start = sum(sizes) - 1, 0
        for stage, size in enumerate(sizes):
            for i in range(size):
                self.block(plan, f"{name}.{stage}.{inner}.{i}", (start + i) / last)
            if opens and stage:
                self.module(f"{name}.{stage}.{between}", start / last)
            start += size
            if not opens and stage < len(sizes) - 1:
                self.module(f"{name}.{stage}.{between}", start / last)

    @classmethod
    def of(cls, seed: int) -> Newcomer:
        """Return a newcomer with one tower or two."""
        newcomer = cls(random.Random(seed))
        newcomer.grow()
        return newcomer

    def grow(self) -> None:
        """Add one tower or two, and what stands outside their blocks."""
        taken: set[str] = set()
        head = self.word(taken)
        towers = [self.word(taken) for _ in range(self.draw.randint(1, 2))]
        for tower in towers:
            nested = f".{self.word(set())}" if self.draw.random() < 0.5 else ""
            kind: Callable[[str], None] = self.draw.choice([self.stack, self.stages])
            kind(f"{tower}{nested}.{self.word(set())}")
            for _ in range(self.draw.randint(0, 2)):
                self.module(f"{tower}{nested}.{self.word(set())}", None)
        self.module(head, None)


def fill(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Return random tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """Write a checkpoint."""
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_names_tell_the_depth_of_any_nesting() -> None:
    """Every tensor of 400 newcomers is found in the block to which it was put, or outside."""
    for seed in range(400):
        newcomer = Newcomer.of(seed)
        for name, depth in block_depths(newcomer.shapes).items():
            place = depth and depth.index / (depth.count - 1)
            assert place == newcomer.depths[name], (seed, name)


@pytest.mark.parametrize("seed", range(16))
def test_a_newcomer_is_merged_by_the_formula(seed: int, tmp_path: Path) -> None:
    """Whatever the nesting, every tensor is θ_0 + (α + β·x)·Σ w·τ at the depth it was put."""
    newcomer = Newcomer.of(seed)
    config = {"architectures": ["NewcomerModel"], "model_type": "bert", "num_hidden_layers": 1}
    origin, *steps = (fill(newcomer.shapes, 10 * seed + i) for i in range(3))
    changed = [{name: origin[name] + 0.1 * step[name] for name in origin} for step in steps]
    tensors = [origin, *changed]
    base, *tuned = (saved(tmp_path / f"{i}", each, config) for i, each in enumerate(tensors))
    recipe = {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": ALPHA, "beta": BETA, "weight": WEIGHT},
    }
    merged = models.read(in_process(recipe, tmp_path / "out"))
    assert set(merged) == set(newcomer.shapes)
    for name, tensor in merged.items():
        start = origin[name].double()
        vector = sum(WEIGHT * (each[name].double() - start) for each in changed)
        expected = start + (ALPHA + BETA * (newcomer.depths[name] or 0.0)) * vector
        assert models.max_error_ratio(tensor, expected) <= 1e-6, name
