"""Consensus merging's kernel against the paper's formula in numpy float64."""

import numpy as np
import pytest
import torch

from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.sparsity import Sparsity
from tests.flattened import consensus, ties

from .in_memory import InMemory, run

WHOLE = Sparsity("none")


def quarters(seed: int, shape: tuple[int, ...], models: int) -> list[torch.Tensor]:
    """Multiples of 1/4 near zero: sums are exact, and zeros and equal magnitudes are many."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-4, 5, shape, generator=generator) / 4 for _ in range(models)]


def agreement(models: int, tall: list[float], least: int, scale: float = 1.0) -> Agreement:
    return Agreement(Merge((WHOLE,) * models, (1.0,) * models), tuple(tall), least, scale)


@pytest.mark.parametrize("shape", [(1,), (), (7, 13), (3, 5, 2)])
@pytest.mark.parametrize(("models", "least"), [(1, 1), (2, 1), (2, 2), (3, 2), (5, 3)])
def test_exact_where_masks_are_tied(shape: tuple[int, ...], models: int, least: int) -> None:
    """|τ_t| = λ·|τ_MTL − τ_t| is no wish, and a zero is none; bit for bit where all is exact."""
    deltas = quarters(models, shape, models)
    base = torch.zeros(shape)
    tall = [0.25, 0.5, 1.0, 2.0, 0.5][:models]
    flat = np.stack([delta.double().reshape(-1).numpy() for delta in deltas])
    want = consensus(flat, tall, least)
    merged = run(agreement(models, tall, least), InMemory(base, deltas, 16))
    assert merged.double().reshape(-1).tolist() == want.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_random_models(dtype: torch.dtype) -> None:
    """Unlike weights and λ_t, an odd shape and pieces of any size: as the formula has it."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(29, 31, generator=generator).to(dtype)
    tuned = [(base + torch.randn(29, 31, generator=generator)).to(dtype) for _ in range(3)]
    weights, tall = (0.5, 1.5, -0.75), (0.3, 0.4, 0.6)
    kernel = Agreement(Merge((WHOLE,) * 3, weights), tall, 2, 0.8)
    merged = [run(kernel, InMemory(base, tuned, piece, threads=2)) for piece in (1000, 128)]
    assert torch.equal(*merged)
    shares = [(one.double() - base.double()) * w for one, w in zip(tuned, weights, strict=True)]
    want = 0.8 * consensus(np.stack([share.reshape(-1).numpy() for share in shares]), tall, 2)
    got = merged[0].double().reshape(-1).numpy()
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    assert 0 < (got == 0).mean() < 1


def test_the_size_of_equal_weights_changes_no_mask() -> None:
    """A half in the place of every weight gives half the result: the masks compare shares."""
    deltas = quarters(3, (9, 9), 4)
    base = torch.zeros(9, 9)
    whole = run(agreement(4, [0.4] * 4, 2), InMemory(base, deltas, 32))
    half = Agreement(Merge((WHOLE,) * 4, (0.5,) * 4), (0.4,) * 4, 2)
    assert torch.equal(run(half, InMemory(base, deltas, 32)), whole / 2)


def test_of_ties() -> None:
    """Masks compare whole task vectors with TIES' sum of agreeing entries, trimmed before."""
    generator = torch.Generator().manual_seed(7)
    deltas = [torch.randn(41, 23, generator=generator) for _ in range(3)]
    base = torch.zeros(41, 23)
    # mergekit keeps int(density·d) per tensor, the authors one more of the whole model.
    count, kept = base.numel(), 200
    sparsities = (Sparsity("magnitude", density=(kept + 0.5) / count),) * 3
    kernel = Agreement(Merge(sparsities, (1.0,) * 3, consensus="sum"), (0.4,) * 3, 2)
    merged = run(kernel, InMemory(base, deltas, 256))
    flat = np.stack([delta.double().reshape(-1).numpy() for delta in deltas])

    def summed(vectors: np.ndarray) -> np.ndarray:
        return ties(vectors, (kept - 0.5) / count, mean=False)

    want = consensus(flat, [0.4] * 3, 2, summed)
    assert np.abs(merged.double().reshape(-1).numpy() - want).max() <= 1e-6 * np.abs(want).max()
    assert (want != 0).sum() > 50
