"""Magnitudes by their rank over several tensors, against numpy's sort of all of them."""

import numpy as np
import pytest
import torch

from mergekit_lines.kernels import floors
from mergekit_lines.kernels.floors import Ranking

from .in_memory import InMemory

SHAPES = [(300, 70), (5,), (), (1000,), (64, 9, 3)]


def gauss(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (number + 1) * torch.randn(shape, generator=generator).to(dtype)
        for number, shape in enumerate(SHAPES)
    ]


def original(deltas: list[torch.Tensor], density: float) -> float:
    """The smallest magnitude that TIES' code keeps of the flattened tensors."""
    flat = np.sort(np.concatenate([t.double().abs().reshape(-1).numpy() for t in deltas]))
    return float(flat[len(flat) - int(len(flat) * density) - 1])


def search(
    deltas: list[torch.Tensor],
    density: float,
    *,
    wide: bool = False,
    guess: bool = True,
    piece: int = 1000,
) -> tuple[float, int]:
    """The magnitude that is found, and in how many passes over all entries."""
    ranking = Ranking(density, wide=wide)
    every = [InMemory(torch.zeros_like(t), [t], piece, threads=2) for t in deltas]
    if guess:
        for pieces in every:
            floors.look(pieces, {0: ranking})
        ranking.guess()
    passes = 0
    while not ranking.done:
        passes += 1
        for pieces in every:
            floors.take(pieces, {0: ranking})
        ranking.settle()
    return ranking.magnitude, passes


@pytest.mark.parametrize("density", [0.0, 1e-5, 0.01, 0.2, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_share(density: float, seed: int) -> None:
    """Over tensors of all shapes and unlike sizes the rank is exact."""
    deltas = gauss(seed)
    assert search(deltas, density)[0] == original(deltas, density)


def test_one_pass_as_a_rule() -> None:
    """A look brackets the rank, so that all entries of a larger model are read once."""
    generator = torch.Generator().manual_seed(3)
    deltas = [torch.randn(1 << 20, generator=generator) * scale for scale in (1.0, 0.5, 0.7)]
    assert search(deltas, 0.2, piece=1 << 16) == (original(deltas, 0.2), 1)


@pytest.mark.parametrize("wide", [False, True])
def test_any_number_of_passes(wide: bool) -> None:
    """Without a look, and for patterns of 64 bits, more passes find the same."""
    deltas = gauss(4)
    magnitude, passes = search(deltas, 0.3, wide=wide, guess=False)
    assert magnitude == original(deltas, 0.3)
    assert passes == (4 if wide else 2)


def test_float64_beside_fp32() -> None:
    """Tensors of both kinds are ranked together, by all their bits."""
    one = gauss(5)
    two = [t.double() + 1e-12 for t in gauss(6)]
    for density in (0.1, 0.37):
        assert search([*one, *two], density, wide=True, guess=False)[0] == original(
            [*one, *two], density
        )


def test_a_look_that_misleads() -> None:
    """Where the pieces that are looked at are unlike the rest, the rank is found all the same."""
    delta = torch.randn(16_000, generator=torch.Generator().manual_seed(7))
    delta.view(16, 1000)[::8] *= 1000
    magnitude, passes = search([delta], 0.5)
    assert magnitude == original([delta], 0.5)
    assert passes > 1


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_magnitudes(value: float) -> None:
    """Of a task vector of one magnitude, or of none, that one is the cut."""
    delta = torch.full((5000,), value)
    delta[::2] *= -1
    assert search([delta], 0.3)[0] == value


def test_few_values() -> None:
    """Task vectors of 16-bit models have few magnitudes, each of them thousands of times."""
    generator = torch.Generator().manual_seed(8)
    base = 0.05 * torch.randn(100, 500, generator=generator)
    delta = (base + 0.001 * torch.randn(100, 500, generator=generator)).bfloat16().float()
    delta -= base.bfloat16().float()
    for density in (0.05, 0.2, 0.6):
        assert search([delta], density)[0] == original([delta], density)
