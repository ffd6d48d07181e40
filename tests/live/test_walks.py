"""Random walks of settings: the weights are what ``mergekit-yaml`` writes, to the bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines import LiveModel
from tests import models
from tests.e2e.runner import ForkServer, recipe_text
from tests.live.compare import assert_as_files, assert_as_merged

STEPS = 20
Settings = dict[str, Any]
Draw = Callable[[random.Random], Settings]


def _number(low: float, high: float) -> Callable[[random.Random], float]:
    return lambda dice: round(dice.uniform(low, high), 3)


def _per_block(dice: random.Random) -> Any:
    """Return a value with a filter, or a gradient."""
    low, high = _number(0.1, 0.9)(dice), _number(0.1, 0.9)(dice)
    return dice.choice([[low, high], [{"filter": ".1.", "value": low}, {"value": high}]])


ANY: dict[str, Draw] = {
    "beta": lambda dice: {"beta": _number(-0.5, 1.5)(dice)},
    "alpha and beta": lambda dice: {"alpha": _number(0, 1)(dice), "beta": _number(0, 1)(dice)},
    "schedule": lambda dice: {"schedule": dice.choice(["linear", "sqrt", "quadratic", 1.7, None])},
    "outside": lambda dice: {"outside": dice.choice(["alpha", 0.0, 0.4, None])},
    "zero": lambda _: {"alpha": 0.0, "beta": 0.0},
}
TWO: dict[str, Draw] = {
    **ANY,
    "auto": lambda dice: {"alpha": dice.choice(["auto", None])},
    "norm": lambda dice: {"alpha": "auto", "norm": dice.choice(["l1", "l2"])},
    "lists": lambda dice: {"alpha": 0.3, "beta": _per_block(dice)},
}
WEIGHTS: dict[str, Draw] = {
    "weights": lambda dice: {"weights": [_number(0.2, 1.5)(dice), _number(0.2, 1.5)(dice)]},
    "one weight": lambda dice: {"models[1].parameters.weight": _number(0.2, 1.5)(dice)},
}
DENSITY: dict[str, Draw] = {
    "density": lambda dice: {"density": _number(0.2, 0.9)(dice)},
    "densities": lambda dice: {"density": _per_block(dice)},
}
SEED: dict[str, Draw] = {"seed": lambda dice: {"seed": dice.randrange(100)}}
GAMMA: dict[str, Draw] = {
    "gamma": lambda dice: {"gamma": _number(0, 1)(dice), "alpha": None, "beta": None},
    "pair": lambda dice: {"gamma": None, "alpha": 0.3, "beta": _number(0, 1)(dice)},
    "lists": lambda dice: {"gamma": None, "alpha": 0.3, "beta": _per_block(dice)},
}


@dataclass(frozen=True)
class Walk:
    """A recipe, and the settings that may follow one another on it."""

    architecture: str
    dtype: torch.dtype
    parameters: Settings
    draws: dict[str, Draw]
    kind: str = "two"  # "two" models, "adapters" or "one adapter" over the base, or "one" model
    options: dict[str, Any] = field(default_factory=dict)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ARITHMETIC = {"wrap": "task_arithmetic", "beta": 0.3}
WALKS = {
    "llama, ties": Walk(
        "llama", BF16, {"wrap": "ties", "density": 0.5, "beta": 0.3}, TWO | WEIGHTS | DENSITY
    ),
    "qwen2, dare_ties": Walk(
        "qwen2", F32, {"wrap": "dare_ties", "density": 0.5, "beta": 0.3}, TWO | WEIGHTS | SEED
    ),
    "qwen2, task_arithmetic": Walk("qwen2", BF16, ARITHMETIC, TWO | WEIGHTS),
    "gpt2, della": Walk(
        "gpt2",
        BF16,
        {"wrap": "della", "density": 0.5, "epsilon": 0.1, "beta": 0.3},
        TWO | WEIGHTS | SEED,
    ),
    "gpt2, task_arithmetic": Walk("gpt2", F32, ARITHMETIC, TWO | WEIGHTS),
    "t5, karcher": Walk(
        "t5", F32, {"wrap": "karcher", "beta": 0.3, "blocks": "decoder.block"}, TWO
    ),
    "t5, task_arithmetic": Walk("t5", BF16, ARITHMETIC | {"blocks": "decoder.block"}, TWO),
    "llama, multislerp, fp16": Walk(
        "llama", F16, {"wrap": "multislerp", "beta": 0.3, "alpha": 0.5}, ANY | WEIGHTS
    ),
    "adapters, ties": Walk(
        "llama", BF16, {"wrap": "ties", "density": 0.5, "beta": 0.3}, TWO | DENSITY, "adapters"
    ),
    "adapters, task_arithmetic": Walk("llama", F32, ARITHMETIC, TWO | WEIGHTS, "adapters"),
    "postprocess": Walk("gpt2", BF16, {"gamma": 0.3}, GAMMA, "one"),
    "postprocess, adapter": Walk("llama", F32, {"gamma": 0.3}, GAMMA, "one adapter"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this file's checkpoints."""
    return tmp_path_factory.mktemp("walks")


def make(folder: Path, walk: Walk) -> dict[str, Any]:
    """Make the models of a walk, and return its recipe."""
    place = folder / f"{walk.architecture}-{str(walk.dtype)[6:]}"
    base, tuned = place / "base", [place / "a", place / "b"]
    if not base.exists():
        models.ARCHITECTURES[walk.architecture](base, dtype=walk.dtype)
        for seed, path in enumerate(tuned):
            models.finetuned(base, path, seed=seed, scale=0.05)
    if "adapter" in walk.kind:
        adapters = [place / "adapter-a", place / "adapter-b"]
        for seed, path in enumerate(adapters):
            if not path.exists():
                models.lora(base, path, seed=seed)
        listed = [f"{base}+{path}" for path in adapters]
    else:
        listed = [str(path) for path in tuned]
    count = 1 if "one" in walk.kind else 2
    return {
        "merge_method": "lines_postprocess" if count == 1 else "lines",
        "base_model": str(base),
        "models": [{"model": name} for name in listed[:count]],
        "parameters": walk.parameters,
    }


def settings(walk: Walk, seed: int) -> Iterator[Settings]:
    """Draw the settings of a walk; each kind of setting comes before any comes twice."""
    dice = random.Random(seed)
    order: list[str] = []
    for _ in range(STEPS):
        order = order or dice.sample(sorted(walk.draws), len(walk.draws))
        yield walk.draws[order.pop()](dice)


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_ends_at_what_the_merge_writes(name: str, folder: Path, tmp_path: Path) -> None:
    """After 20 settings, and once between them, the bits are those of the files."""
    walk = WALKS[name]
    with LiveModel(make(folder, walk), quiet=True) as live:
        for step, change in enumerate(settings(walk, seed=len(name)), 1):
            live.set(change)
            if step in (9, STEPS):
                assert_as_merged(live, tmp_path / f"out{step}")
                shutil.rmtree(tmp_path / f"out{step}")


def test_every_step_of_a_walk_equals_the_command(
    folder: Path, server: ForkServer, tmp_path: Path
) -> None:
    """All 20 settings of one walk are compared with files of ``mergekit-yaml`` itself."""
    walk = Walk(
        "llama", F32, {"wrap": "ties", "density": 0.5, "beta": 0.3}, TWO | WEIGHTS | DENSITY
    )
    flags = ["--no-write-model-card", "--quiet"]
    with LiveModel(make(folder, walk), quiet=True) as live:
        for change in settings(walk, seed=5):
            live.set(change)
            (tmp_path / "recipe.yml").write_text(recipe_text(live.recipe))
            command = ["mergekit-yaml", "recipe.yml", "out", *flags]
            server.run(command, tmp_path, tmp_path).succeeded()
            assert_as_files(live, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
