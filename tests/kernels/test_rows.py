import pytest
import torch

from mergekit_lines.kernels.draws import bound
from mergekit_lines.kernels.rows import row_bounds


def plain(magnitudes: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """mergekit's probabilities, from two sorts."""
    rows = magnitudes.double()
    rows = rows.unsqueeze(0) if rows.dim() < 2 else rows
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1).double()
    return density - epsilon + ranks / (rows.shape[1] - 1) * 2 * epsilon


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (50_000,), (7, 33), (300, 200), (3, 5, 4), (2, 6, 3, 2)])
@pytest.mark.parametrize("tied", [False, True])
def test_probabilities_rise_with_the_rank(shape, dtype, tied):
    magnitudes = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).abs()
    magnitudes = magnitudes.round(decimals=1) if tied else magnitudes
    limits = row_bounds(magnitudes.reshape(-1), shape, 0.4, 0.3)
    found = (limits.double() + 2**31) / 2**32
    wanted = plain(magnitudes, 0.4, 0.3).reshape(-1)
    assert torch.allclose(found, wanted, rtol=0, atol=2**-31)


def test_rows_are_ranked_alone():
    magnitudes = torch.rand(64, 100, generator=torch.Generator().manual_seed(1))
    whole = row_bounds(magnitudes.view(-1), (64, 100), 0.5, 0.1)
    parts = [row_bounds(part.reshape(-1), (64, 100), 0.5, 0.1) for part in magnitudes.split(7)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shape", [(1,), (9, 1), (3, 1, 4)])
def test_a_row_of_one_is_kept_with_the_density(shape):
    magnitudes = torch.rand(shape).reshape(-1)
    assert row_bounds(magnitudes, shape, 0.4, 0.3).unique().tolist() == [bound(0.4)]
