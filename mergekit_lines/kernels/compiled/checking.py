"""The compiled kernels held against torch's before they are used: bit for bit, on a few entries."""

from __future__ import annotations

import torch

from mergekit_lines.errors import TextError
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.bracket import Bracket, ascending
from mergekit_lines.kernels.compiled.counting import counted
from mergekit_lines.kernels.compiled.library import Library
from mergekit_lines.kernels.compiled.merging import merged
from mergekit_lines.kernels.compiled.summing import drawn_norms, summed_power
from mergekit_lines.kernels.compiled.voting import votes
from mergekit_lines.kernels.cuts import Search
from mergekit_lines.kernels.merge import Merge, State
from mergekit_lines.kernels.pieces import Held
from mergekit_lines.kernels.scale import add_scaled, power_sum, sum_norm, total
from mergekit_lines.kernels.sparsity import Sparsity

_ENTRIES = 3 * 1024 + 5  # some blocks, and a few entries behind them
_KEYS = (b"0" * 16, b"1" * 16)
_COEFFICIENT = 0.37
_OTHER = "they give other results than PyTorch's on this machine"
_MERGES: tuple[Merge | Agreement, ...] = (
    Merge((Sparsity("none"),) * 2, (0.3, 0.9)),
    Merge((Sparsity("magnitude", 0.4),) * 2, (1.0, 0.7), "sum", normalize=True),
    Merge((Sparsity("random", 0.5),) * 2, (0.3, -0.9), "count", scale=0.7),
    Agreement(Merge((Sparsity("magnitude", 0.6),) * 2, (1.0, 0.7), "sum"), (0.4, 0.3), 2, 0.8),
)
_FLOORS = Merge((Sparsity("floor", floor=0.005),) * 2, (1.0, 0.7), "sum")


def check(library: Library) -> None:
    """See that the kernels give what torch's do on this machine.

    Where torch only sums in another order, its sums are taken.

    Raises:
        TextError: they do not.
    """
    generator = torch.Generator("cpu").manual_seed(1)
    shape = (3, _ENTRIES)
    base, *deltas = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    plain = [(0.1 * base + delta) for delta in deltas]
    # Equal magnitudes, zeros of both signs and subnormals, of the base and of what is added to it.
    deltas[1][::3] = -deltas[0][::3]
    for tensor in (base, *deltas):
        tensor[::7], tensor[1::7], tensor[2::7], tensor[3::14] = 0.0, -0.0, 1e-41, 0.25
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        origin = (0.1 * base).to(dtype)
        models = [(origin + 0.01 * delta).to(dtype) for delta in deltas]
        for merge in _MERGES:
            held = Held(origin.float(), [model.float() for model in models])
            state = merge.prepare(held, _KEYS)
            vector = merge.task_vector(held, state, 0, *held.load(0))
            tau, result = vector.clone(), add_scaled(held.base, vector, _COEFFICIENT).to(dtype)
            out, own, bounds = torch.empty_like(result), torch.empty_like(tau), (0, _ENTRIES)
            done = merged(library, merge, state, bounds, 0, origin, models, _COEFFICIENT, out, own)
            if not (done and _same(out, result) and _same(own, tau)):
                raise TextError(_OTHER)
        _check_counts(library, origin, models)
        pieces = origin.float(), [model.float() for model in models]
        if votes(library, _FLOORS, origin, models) != _FLOORS.votes(*pieces):
            raise TextError(_OTHER)
        for power in (1, 2):
            if summed_power(library, origin, models, power) != sum_norm(origin, models, power):
                raise TextError(_OTHER)
            if summed_power(library, None, deltas[:1], power) != power_sum(deltas[0], power):
                raise TextError(_OTHER)
    library.sums_as_torch = _sums(library, 0.1 * base, plain)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors have the same bits; +0 and −0 have not."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _check_counts(library: Library, base: torch.Tensor, models: list[torch.Tensor]) -> None:
    sizes = [(model.float() - base.float()).abs() for model in models]
    # torch's quantile shares its sort among threads, which wait for each other on a busy machine.
    ordered = ascending(sizes[0])
    low, high, pivot = (float(ordered[int(place * _ENTRIES)]) for place in (0.3, 0.6, 0.5))
    searches = [Search(model, 1, _ENTRIES) for model in range(len(models))]
    for search in searches:
        search.bracket = Bracket(low, high, (pivot,))
    counts, samples = counted(library, base, dict(enumerate(models)), searches, 3)
    for size, (above, equal, inside), sample in zip(sizes, counts, samples.values(), strict=True):
        held = size[(size >= low) & (size <= high)]
        right = above == int((size > high).sum()) and equal == [int((held == pivot).sum())]
        if not (right and _same(inside, held[held != pivot]) and _same(sample, size[::3].clone())):
            raise TextError(_OTHER)


def _sums(library: Library, base: torch.Tensor, models: list[torch.Tensor]) -> bool:
    """Return whether sums of magnitudes are those of torch, to the bit."""
    merge = Merge((Sparsity("random", 0.5),) * 2, (1.0, 1.0))
    drawn = {model: (key, merge.sparsities[model]) for model, key in enumerate(_KEYS)}
    norms = drawn_norms(library, (0, _ENTRIES), base, models, drawn)
    held = Held(base, models)
    singles = [Merge((one,), (1.0,)) for one in merge.sparsities]
    after = [
        total(one.task_vector(held, State((key,), (None,), (1.0,)), 0, base, [model.clone()]).abs())
        for one, key, model in zip(singles, _KEYS, models, strict=True)
    ]
    before = [total((model - base).abs()) for model in models]
    return norms == list(zip(before, after, strict=True))
