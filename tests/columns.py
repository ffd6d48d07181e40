"""What is held for every architecture: merges by float64 formulas, files that load, live models.

Every expected value is formed here, in the papers' words, from the tensors that stand in the
input files; only the depths come from the rows, where they are written by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from mergekit_lines import LiveModel
from tests import models
from tests.architectures import ALPHA, BETA, FAILS, LOST, RENAMED, ROWS, SAME, Row
from tests.e2e.runner import in_process
from tests.models import Tensors

# The release of transformers that the table in recipes/README.md is made with: what mergekit alone
# writes of a model hangs on it.
_PINNED = Path(__file__).with_name("constraints.txt").read_text(encoding="utf-8")
(OF_TABLE,) = re.findall(r"^transformers==(.+)$", _PINNED, re.MULTILINE)
DENSITY, GAMMA = 0.4, 0.3
RANK, LORA_ALPHA = 4, 8


class ReleaseError(Exception):
    """The installed transformers is not the one of the table, and differs from it by itself."""


def check(trial: Trial, column: str) -> None:
    """Hold one architecture's mark.

    Raises:
        ReleaseError: the installed transformers lacks the class, or mergekit does otherwise by it.
    """
    if not hasattr(transformers, trial.row.name):
        raise ReleaseError(f"no {trial.row.name} in transformers {transformers.__version__}")
    COLUMNS[column](trial)


def tuned(base: Path, path: Path, seed: int) -> Path:
    """Copy a checkpoint with noise in which no two entries of a tensor move by one magnitude.

    So what TIES trims is never left to the order of equal ones in a sort.
    """
    shutil.copytree(base, path)
    generator = torch.Generator().manual_seed(seed)

    def move(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            size = 0.02 * (tensor.std(correction=0).item() or 1.0)
            moved, again = tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)
            while again.any():
                noise = size * torch.randn(tensor.shape, generator=generator)
                moved = torch.where(again, tensor + noise, moved)
                vector = (moved.double() - tensor.double()).abs()
                _, kinds, counts = vector.unique(return_inverse=True, return_counts=True)
                again = counts[kinds] > 1
            tensors[name] = moved

    return models.rewrite(path, move)


@dataclass(frozen=True)
class Trial:
    """One architecture's base and two models fine-tuned from it, in a folder.

    Attributes:
        row: the architecture.
        folder: where they are, and where merges go.
    """

    row: Row
    folder: Path

    @cached_property
    def base(self) -> Path:
        """The base."""
        return self.row.save(self.folder / "base")

    @cached_property
    def tuned(self) -> tuple[Path, Path]:
        """Two models."""
        a, b = (tuned(self.base, self.folder / name, seed) for seed, name in enumerate("ab", 1))
        return a, b

    @cached_property
    def origin(self) -> Tensors:
        """The base's tensors, as they are in its file."""
        return models.read(self.base)

    @cached_property
    def vectors(self) -> list[Tensors]:
        """The models' task vectors in float64, of all that is learned."""
        return [self.vector(models.read(path)) for path in self.tuned]

    def vector(self, tensors: Tensors) -> Tensors:
        """Return θ - θ_0 in float64 of all that is learned."""
        return {
            name: tensors[name].double() - origin.double()
            for name, origin in self.origin.items()
            if origin.is_floating_point()
        }

    def recipe(self, *paths: Path | str, **parameters: Any) -> dict[str, Any]:
        """Return a recipe of ``lines``."""
        return {
            "merge_method": "lines",
            "base_model": str(self.base),
            "models": [{"model": str(path)} for path in paths],
            "parameters": parameters,
            "dtype": "float32",
        }

    @cached_property
    def task_arithmetic(self) -> tuple[dict[str, Any], Path]:
        """The recipe of task arithmetic with both models, and its merge."""
        recipe = self.recipe(*self.tuned, alpha=ALPHA, beta=BETA, weight=0.5)
        return recipe, in_process(recipe, self.folder / "out")

    @cached_property
    def opened(self) -> tuple[Tensors, dict[str, Any]]:
        """What transformers makes of that merge, and what it says of it."""
        loader = getattr(transformers, self.row.name)
        model, loading = loader.from_pretrained(self.task_arithmetic[1], output_loading_info=True)
        return model.state_dict(), loading

    def check(
        self, out: Path, vector: Mapping[str, torch.Tensor], alpha: float, beta: float
    ) -> None:
        """Assert that a merge has the base's names, and θ_0 + (α + β·x)·τ (Eq. 1) of each."""
        merged = models.read(out)
        assert set(merged) == set(self.origin)
        inside = 0
        for name, tensor in merged.items():
            origin = self.origin[name]
            if name not in vector:
                assert torch.equal(tensor, origin)
                continue
            depth = self.row.depth(name)
            inside += depth is not None
            expected = origin.double() + (alpha + beta * (depth or 0.0)) * vector[name]
            assert models.max_error_ratio(tensor, expected) <= 1e-6, name
        assert inside > len(merged) / 2


def mergekit_alone(trial: Trial) -> None:
    """mergekit's own task arithmetic writes what the row says; with λ = 1 ours has its values."""
    stock = trial.recipe(*trial.tuned, weight=0.5) | {"merge_method": "task_arithmetic"}
    theirs: Tensors = {}
    try:
        theirs = models.read(in_process(stock, trial.folder / "stock"))
    except Exception:  # of many kinds, as mergekit or transformers raise it
        outcome = FAILS
    else:
        fewer, others = trial.origin.keys() - theirs.keys(), theirs.keys() - trial.origin.keys()
        outcome = SAME if not fewer else RENAMED if others else LOST
    shared = theirs.keys() & trial.origin.keys()
    if shared:
        plain = trial.recipe(*trial.tuned, alpha=1.0, beta=0.0, weight=0.5)
        ours = models.read(in_process(plain, trial.folder / "plain"))
        for name in shared:
            assert models.max_error_ratio(ours[name], theirs[name]) <= 1e-6, name
    if outcome != trial.row.mergekit and transformers.__version__ != OF_TABLE:
        raise ReleaseError(f"{outcome} with transformers {transformers.__version__}")
    assert outcome == trial.row.mergekit


def task_arithmetic(trial: Trial) -> None:
    """Task arithmetic: θ_0 + λ·Σ w·τ; transformers finds every tensor of the merge in its place."""
    _, out = trial.task_arithmetic
    first, second = trial.vectors
    trial.check(out, {n: 0.5 * (first[n] + second[n]) for n in first}, ALPHA, BETA)
    _, loading = trial.opened
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]


def ties_of(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Return TIES (arXiv 2306.01708) of one tensor's task vectors: trim, elect sign, merge."""
    if not vectors[0].numel():
        return vectors[0]
    trimmed = []
    for vector in vectors:
        kept = max(1, int(DENSITY * vector.numel()))
        smallest = vector.abs().flatten().sort(descending=True).values[kept - 1]
        trimmed.append(torch.where(vector.abs() >= smallest, vector, 0.0))
    elected = torch.where(sum(trimmed) >= 0, 1.0, -1.0)  # of opposite equals +, as in mergekit
    agreeing = [(vector.sign() == elected) & (vector != 0) for vector in trimmed]
    total = sum(
        torch.where(agrees, vector, 0.0) for agrees, vector in zip(agreeing, trimmed, strict=True)
    )
    return total / sum(agrees.double() for agrees in agreeing).clamp(min=1)


def ties(trial: Trial) -> None:
    """TIES, trimmed per tensor of the file, with α of Eq. 2: (1/N)·‖Σ τ_t‖ / ‖τ_MTL‖."""
    recipe = trial.recipe(*trial.tuned, wrap="ties", density=DENSITY, alpha="auto", beta=BETA)
    out = in_process(recipe, trial.folder / "ties")
    both = [trial.vectors[0], trial.vectors[1]]
    merged = {name: ties_of([each[name] for each in both]) for name in both[0]}
    above = sum(float((both[0][name] + both[1][name]).abs().sum()) for name in merged)
    alpha = above / sum(float(vector.abs().sum()) for vector in merged.values()) / len(both)
    trial.check(out, merged, alpha, BETA)


def postprocess(trial: Trial) -> None:
    """One model edited: θ_0 + λ·τ with α = γ and β = 1 - γ."""
    recipe = trial.recipe(trial.tuned[0], gamma=GAMMA) | {"merge_method": "lines_postprocess"}
    out = in_process(recipe, trial.folder / "postprocess")
    trial.check(out, trial.vectors[0], GAMMA, 1 - GAMMA)


def live(trial: Trial) -> None:
    """A live model set to coefficients holds what transformers makes of the file, bit by bit."""
    recipe, _ = trial.task_arithmetic
    held, _ = trial.opened
    with LiveModel(recipe) as model:
        model.set(alpha=0.9, beta=-0.2)
        model.set(alpha=ALPHA, beta=BETA)
        state = model.model.state_dict()
        assert set(state) == set(held)
        for name, tensor in held.items():
            assert torch.equal(state[name], tensor), name


def lora(trial: Trial) -> None:
    """A PEFT adapter merges as W + (α/r)·B·A would."""
    adapter = models.lora(
        trial.base,
        trial.folder / "lora",
        seed=3,
        r=RANK,
        alpha=LORA_ALPHA,
        targets=trial.row.lora,
    )
    factors = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    transposed = json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"]
    vector = {n: torch.zeros(()) for n, t in trial.origin.items() if t.is_floating_point()}
    changed = 0
    for name, a in factors.items():
        if ".lora_A." in name:
            b = factors[name.replace(".lora_A.", ".lora_B.")]
            product = LORA_ALPHA / RANK * (b.double() @ a.double())
            own = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            own = trial.row.stored(own)
            assert own in vector
            vector[own] = product.T if transposed else product
            changed += 1
    assert changed > 1
    recipe = trial.recipe(f"{trial.base}+{adapter}", alpha=ALPHA, beta=BETA)
    out = in_process(recipe, trial.folder / "adapted")
    trial.check(out, vector, ALPHA, BETA)


COLUMNS: Mapping[str, Callable[[Trial], None]] = {
    "mergekit alone": mergekit_alone,
    "task arithmetic": task_arithmetic,
    "TIES, α auto": ties,
    "postprocess": postprocess,
    "live": live,
    "LoRA": lora,
}


def declared(row: Row, column: str) -> str:
    """Return what the table says of a row whose checks hold."""
    if column == "mergekit alone":
        return row.mergekit
    return "" if column == "LoRA" and not row.lora else "✓"


def table(mark: Callable[[Row, str], str] = declared) -> str:
    """Return the table of architectures as Markdown."""
    lines = [["class", "blocks", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    for row in ROWS:
        blocks = ", ".join(f"`{container}`" for container in row.containers)
        lines.append([f"`{row.name}`", blocks, *(mark(row, column) for column in COLUMNS)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def measured_table() -> str:
    """Make, merge and check every row, and return the table; ✗ where a check does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        trials = {row.name: Trial(row, Path(folder, row.name)) for row in ROWS}

        def mark(row: Row, column: str) -> str:
            expected = declared(row, column)
            if expected:
                try:
                    check(trials[row.name], column)
                except ReleaseError as error:
                    return str(error)
                except Exception:
                    traceback.print_exc()
                    return "✗"
            return expected

        return table(mark)
