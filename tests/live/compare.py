"""Comparing a live model with the files that mergekit writes for the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model

from mergekit_lines import LiveModel
from tests import models
from tests.e2e.runner import in_process


def weights(live: LiveModel) -> models.Tensors:
    """Return the live model's parameters and persistent buffers by all their names, in memory."""
    if any(parameter.is_meta for parameter in live.model.parameters()):
        offloaded: Any = get_state_dict_offloaded_model(live.model)
        # accelerate passes over what stands in no module.
        here = {name: each for name, each in live.model.state_dict().items() if not each.is_meta}
        return {**here, **offloaded}
    return dict(live.model.state_dict())


def same_bits(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Tell whether two tensors, wherever they are, have one dtype, one shape and the same bits."""
    got, want = got.cpu(), want.cpu()
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return False
    return torch.equal(
        got.contiguous().view(-1).view(torch.uint8), want.contiguous().view(-1).view(torch.uint8)
    )


def assert_as_files(live: LiveModel, out: Path) -> None:
    """Assert that a live model holds the files' tensors, to the bit, and no other parameter."""
    held, files = weights(live), models.read(out)
    unlike = [name for name, want in files.items() if not same_bits(held[name], want)]
    assert not unlike, f"{len(unlike)} of {len(files)} tensors differ: {unlike[:4]}"
    own = {name for name, _ in live.model.named_parameters()}
    for name in own - set(files):  # tied to one of the files' tensors
        assert any(same_bits(held[name], want) for want in files.values()), name


def assert_as_merged(live: LiveModel, out: Path, **options: Any) -> Path:
    """Merge the live model's recipe to ``out``, and assert that the weights are the same."""
    in_process(live.recipe, out, write_model_card=False, **options)
    assert_as_files(live, out)
    return out
