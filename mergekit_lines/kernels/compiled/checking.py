"""The compiled kernels held against torch's before they are used: bit for bit, on a few entries."""

from __future__ import annotations

import torch

from mergekit_lines.errors import TextError
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.compiled.library import Library
from mergekit_lines.kernels.compiled.merging import merged
from mergekit_lines.kernels.compiled.summing import drawn_norms
from mergekit_lines.kernels.merge import Merge, State
from mergekit_lines.kernels.pieces import Held
from mergekit_lines.kernels.scale import add_scaled, total
from mergekit_lines.kernels.sparsity import Sparsity

_ENTRIES = 3 * 1024 + 5  # some blocks, and a few entries behind them
_KEYS = (b"0" * 16, b"1" * 16)
_COEFFICIENT = 0.37
_MERGES: tuple[Merge | Agreement, ...] = (
    Merge((Sparsity("none"),) * 2, (0.3, 0.9)),
    Merge((Sparsity("magnitude", 0.4),) * 2, (1.0, 0.7), "sum", normalize=True),
    Merge((Sparsity("random", 0.5),) * 2, (0.3, -0.9), "count", scale=0.7),
    Agreement(Merge((Sparsity("magnitude", 0.6),) * 2, (1.0, 0.7), "sum"), (0.4, 0.3), 2, 0.8),
)


def check(library: Library) -> None:
    """See that the kernels give what torch's do on this machine.

    Where torch only sums in another order, its sums are taken.

    Raises:
        TextError: they do not.
    """
    generator = torch.Generator().manual_seed(1)
    base, *deltas = torch.randn(3, _ENTRIES, generator=generator)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        origin = (0.1 * base).to(dtype)
        models = [(origin + 0.01 * delta).to(dtype) for delta in deltas]
        for merge in _MERGES:
            held = Held(origin.float(), [model.float() for model in models])
            state = merge.prepare(held, _KEYS)
            vector = merge.task_vector(held, state, 0, *held.load(0))
            result = add_scaled(held.base, vector, _COEFFICIENT).to(dtype)
            out, bounds = torch.empty_like(result), (0, _ENTRIES)
            done = merged(library, merge, state, bounds, 0, origin, models, _COEFFICIENT, out)
            if not done or not torch.equal(out, result):
                raise TextError("they give other results than PyTorch's on this machine")
    library.sums_as_torch = _sums(library, 0.1 * base, [0.1 * base + delta for delta in deltas])


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
