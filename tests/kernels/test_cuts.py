import math

import pytest
import torch

from mergekit_lines.kernels.cuts import find_cuts
from mergekit_lines.kernels.sparsity import Sparsity

from .in_memory import InMemory, by_sorting, kept

SIZE = 40_000  # beyond the size that is gathered whole


def random(seed: int, size: int = SIZE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def half_zeros() -> torch.Tensor:
    delta = random(1)
    delta[random(2) < 0] = 0
    return delta


def unseen() -> torch.Tensor:
    """A few pieces unlike all the others: what a look at some of the pieces cannot know."""
    delta = random(3) * 1e-3
    delta[:9_000] *= 1e6
    return delta


def step() -> torch.Tensor:
    return torch.arange(SIZE).float() * torch.tensor([1.0, -1.0]).repeat(SIZE // 2)


HARD = {
    "normal": random(0),
    "all equal": torch.full((SIZE,), -0.25),
    "all zero": torch.zeros(SIZE),
    "two values": torch.where(random(4) > 0.3, 1.0, -2.0),
    "one differs": torch.ones(SIZE).index_fill_(0, torch.tensor([12_345]), 3.0),
    "one below": torch.ones(SIZE).index_fill_(0, torch.tensor([39_999]), 0.5),
    "a few values": (random(5) * 3).round(),
    "quantised": (random(6) * 0.02).bfloat16().float() - (random(7) * 0.0201).bfloat16().float(),
    "half zeros": half_zeros(),
    "heavy tail": random(8) / random(9).square(),
    "denormal": random(10) * 1e-40,
    "huge": random(11) * 1e35,
    "unlike pieces": unseen(),
    "ascending": step(),
    "descending": step().flip(0),
    "float64": random(12, dtype=torch.float64),
    "float64 equal in fp32": 1 + random(13, dtype=torch.float64).abs() * 1e-12,
    "small": random(14, 100),
    "small and tied": random(15, 101).round(),
}
RANKS = [1, 2, 0.001, 0.2, 0.5, 0.8, 0.999, -2, -1]


@pytest.mark.parametrize("name", HARD)
def test_a_cut_is_what_sorting_finds(name):
    delta = HARD[name]
    size = delta.numel()
    ranks = [int(r * size) or 1 if isinstance(r, float) else r % (size + 1) for r in RANKS]
    for piece in (size, 4096, 1777):
        pieces = InMemory(torch.zeros_like(delta), [delta], piece, threads=2)
        cuts, totals = find_cuts(pieces, [(0, rank) for rank in ranks], sums=True)
        assert math.isclose(totals[0], float(delta.abs().double().sum()), rel_tol=1e-6)
        for rank, cut in zip(ranks, cuts, strict=True):
            stays = by_sorting(delta, 0, rank)
            assert cut.threshold == delta[stays].abs().min()
            wanted = float(delta[stays].abs().double().sum())
            assert math.isclose(cut.total, wanted, rel_tol=1e-6)
            found = torch.cat(
                [cut.apply(part.clone(), index) for index, part in enumerate(delta.split(piece))]
            )
            assert torch.equal(found, delta * stays), (piece, rank)


def test_looks_at_an_eighth_and_reads_once_as_a_rule():
    base = torch.zeros(400_000)
    models = [random(1, 400_000), random(2, 400_000).round(), random(3, 400_000) * 1e-4]
    pieces = InMemory(base, models, 4_000)
    find_cuts(pieces, [(model, rank) for model in range(3) for rank in (80_000, 200_000, 320_000)])
    assert sum(pieces.loads) == 100 + 13


def test_what_the_look_missed_is_found_in_the_next_pass():
    delta = random(1, 400_000)
    for place in range(13):
        middle = (2 * place + 1) * 100 // 26
        delta[middle * 4_000 : (middle + 1) * 4_000] *= 1e-3
    pieces = InMemory(torch.zeros_like(delta), [delta], 4_000)
    (cut,), _ = find_cuts(pieces, [(0, 200_000)])
    assert cut.threshold == delta.abs().sort(descending=True).values[199_999]
    assert sum(pieces.loads) == 200 + 13


def test_candidates_stay_bounded_and_many_are_narrowed_down():
    # The look sees one value only, so the bracket is all of a tensor of distinct ones.
    delta = torch.arange(1, 400_001).float()
    for place in range(13):
        middle = (2 * place + 1) * 100 // 26
        delta[middle * 4_000 : (middle + 1) * 4_000] = 1e6
    pieces = InMemory(torch.zeros_like(delta), [delta], 4_000)
    (cut,), _ = find_cuts(pieces, [(0, 200_000)])
    assert cut.threshold == delta.sort(descending=True).values[199_999]
    assert sum(pieces.loads) <= 300 + 13


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("share", [0.001, 0.6, 1.0])
def test_numbers_that_are_none_neither_hang_nor_crash(bad, share):
    delta = random(1)
    delta[: int(share * SIZE)] = bad
    for piece in (SIZE, 1000):
        pieces = InMemory(torch.zeros_like(delta), [delta], piece)
        cuts, _ = find_cuts(pieces, [(0, rank) for rank in (1, 20_000, SIZE - 1)], sums=True)
        for cut in cuts:
            for index, part in enumerate(delta.split(piece)):
                cut.apply(part.clone(), index)


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_tiny_pieces(piece):
    delta = random(1, 100).round(decimals=1)
    found = kept(Sparsity("magnitude", density=0.37), delta, piece)
    assert torch.equal(found, delta * by_sorting(delta, 0, 37))


def test_outliers_are_dropped_by_the_same_order_of_equals():
    for name in ("quantised", "a few values", "all equal", "normal", "half zeros", "float64"):
        delta = HARD[name]
        for density, gamma in ((0.5, 0.01), (0.9, 0.2), (0.05, 0.5), (0.3, 0.0), (0.99, 0.01)):
            target, top = int(density * SIZE), int(gamma * SIZE)
            end = SIZE - max(0, SIZE - target - top)
            sparsity = Sparsity("magnitude_outliers", density=density, gamma=gamma)
            for piece in (SIZE, 3000):
                found = kept(sparsity, delta, piece)
                assert torch.equal(found, delta * by_sorting(delta, end - target, target))
