import itertools

import pytest
import torch

from mergekit_lines.kernels.draws import Draws, bound, bounds, mask

CPU = torch.device("cpu")
COUNT = 1 << 20


def draw(key: bytes, start: int = 0, count: int = COUNT) -> torch.Tensor:
    return Draws(start, count, CPU).draw(key)


def uniform(drawn: torch.Tensor) -> torch.Tensor:
    """Draws as numbers of mean 0 and variance 1."""
    return (drawn.double() + 0.5) / 2**32 * 12**0.5


KEYS = [bytes(16), bytes([1]) + bytes(15), bytes(15) + bytes([128]), bytes(range(32))]


@pytest.mark.parametrize("key", KEYS)
def test_draws_are_uniform_in_mean_variance_and_every_byte(key):
    drawn = draw(key)
    numbers = uniform(drawn)
    assert abs(numbers.mean()) < 4 / COUNT**0.5
    assert abs(numbers.square().mean() - 1) < 4 * 0.9 / COUNT**0.5
    for shift in (0, 8, 16, 24):
        found = torch.bincount((drawn >> shift) & 255, minlength=256).double()
        chi_square = ((found - COUNT / 256).square() / (COUNT / 256)).sum()
        assert 165 < chi_square < 360  # 255 degrees of freedom: mean 255, sigma 22.6


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("lag", [1, 2, 3, 64, 255, 1024, 3584, 4096, 65536])
def test_neighbours_and_rows_are_independent(key, lag):
    drawn = draw(key)
    numbers = uniform(drawn)
    assert abs((numbers[lag:] * numbers[:-lag]).mean()) < 4.5 / (COUNT - lag) ** 0.5
    both = (drawn[lag:] ^ drawn[:-lag]) & 0xFF
    found = torch.bincount(both, minlength=256).double()
    expected = (COUNT - lag) / 256
    assert ((found - expected).square() / expected).sum() < 370


def test_keys_that_differ_in_one_bit_are_independent_at_any_offset():
    first, second = draw(KEYS[0]), draw(KEYS[1])
    for shift in (0, 1, 7, 4096):
        one, other = first[: COUNT - shift], second[shift:]
        assert abs((uniform(one) * uniform(other)).mean()) < 4.5 / one.numel() ** 0.5
        flipped = [((one ^ other) >> bit & 1).double().mean() for bit in range(32)]
        assert all(abs(share - 0.5) < 5 * 0.5 / one.numel() ** 0.5 for share in flipped)


def test_pairs_of_neighbours_fill_the_square():
    drawn = draw(KEYS[3])
    cells = ((drawn[0::2] >> 26) & 63) * 64 + ((drawn[1::2] >> 26) & 63)
    found = torch.bincount(cells, minlength=4096).double()
    expected = COUNT / 2 / 4096
    assert abs(((found - expected).square() / expected).sum() - 4095) < 5 * (2 * 4095) ** 0.5


@pytest.mark.parametrize("start", [0, 5, 2**31 - 100, 2**32 - 100, 3 * 2**32 - 150])
def test_a_draw_depends_on_its_index_alone(start):
    whole = draw(KEYS[3], start, 300)
    for cut in (1, 99, 100, 101, 150, 299):
        parts = [draw(KEYS[3], start, cut), draw(KEYS[3], start + cut, 300 - cut)]
        assert torch.equal(torch.cat(parts), whole)


def test_indices_beyond_32_bits_draw_anew():
    for one, other in itertools.combinations([0, 2**32, 2**33], 2):
        assert (draw(KEYS[0], one, 4096) == draw(KEYS[0], other, 4096)).sum() <= 1


@pytest.mark.parametrize("density", [0.0, 2**-32, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 1 - 2**-32, 1.0])
def test_a_bound_is_a_probability(density):
    below = (bound(density) + 2**31) / 2**32
    assert abs(below - density) <= 2**-32
    assert bounds(torch.tensor([density], dtype=torch.float64)).item() == bound(density)
    share = (draw(KEYS[0]) < bound(density)).double().mean()
    assert abs(share - density) <= 4 * (density * (1 - density) / COUNT) ** 0.5 + 2**-32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_zeroes_and_keeps(dtype):
    tensor = torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kept = (draw(KEYS[0], 0, 1000) < 0).int()
    masked = tensor.clone()
    mask(masked, kept)
    assert torch.equal(masked, tensor * kept)


def test_the_draws_stay_the_same_between_releases():
    assert draw(KEYS[3], 0, 4).tolist() == [-794365314, 318708830, 800956800, 1140125587]
