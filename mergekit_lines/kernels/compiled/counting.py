"""The passes that a search for ranks makes over one piece, by compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from mergekit_lines.kernels.bracket import Bracket
from mergekit_lines.kernels.compiled import layout as at
from mergekit_lines.kernels.compiled.library import CODES, Library, pattern, scratch
from mergekit_lines.kernels.pieces import Pieces


class Search(Protocol):
    """What is counted of one model's magnitudes."""

    @property
    def model(self) -> int:
        """Number of the model."""

    @property
    def bracket(self) -> Bracket:
        """The range, and the values in it to count instead of gather."""


def counted(
    library: Library,
    base: torch.Tensor,
    models: dict[int, torch.Tensor],
    searches: Sequence[Search],
    stride: int,
) -> tuple[list[tuple[int, list[int], torch.Tensor]], dict[int, torch.Tensor]]:
    """Return what one piece has for every search, and by model every ``stride``th magnitude.

    Of every search: how many are larger than the range; how many equal each value to count; the
    others in the range, in their order, valid until the same thread's next call.

    Args:
        library: the compiled kernels.
        base: θ_0's piece, 1-D, contiguous, as it is stored: bf16, fp16 or fp32.
        models: the models' pieces by number, likewise.
        searches: of these models.
        stride: from one magnitude of the sample to the next, of which the piece's first is one.
    """
    count = base.numel()
    # The kernel writes fp32, whatever default a program has set.
    samples = {
        model: torch.empty(-(-count // stride), dtype=torch.float32, device="cpu")
        for model in models
    }
    places = {model: place for place, model in enumerate(models)}
    integers = [
        count,
        len(models),
        scratch("count", 5 * at.BLOCK).data_ptr(),
        base.data_ptr(),
        CODES[base.dtype],
        0,
        stride,
        0,
        len(searches),
    ]
    for model, tensor in models.items():
        integers += [tensor.data_ptr(), CODES[tensor.dtype], samples[model].data_ptr()]
    # The last run of eight is stored whole, whatever is in it.
    room_of_each = count + 8
    held = scratch("gathered", len(searches) * room_of_each)
    rooms = [held[place : place + room_of_each] for place in range(0, held.numel(), room_of_each)]
    first = len(integers)
    for search, room in zip(searches, rooms, strict=True):
        bracket = search.bracket
        pivots = [pattern(pivot) for pivot in bracket.pivots]
        integers += [
            places[search.model],
            pattern(bracket.low),
            pattern(bracket.high),
            room.data_ptr(),
            0,
            0,
            len(pivots),
            *pivots,
            *[0] * (2 * at.PIVOTS - len(pivots)),
        ]
    _, after = library.call("count", integers)
    results = []
    for number, room in enumerate(rooms):
        own = after[first + number * at.SEARCH : first + (number + 1) * at.SEARCH]
        pivots = own[at.PIVOT + 1 + at.PIVOTS :][: own[at.PIVOT]]
        results.append((own[at.ABOVE], list(pivots), room[: own[at.INSIDE]]))
    return results, samples


def stored(
    pieces: Pieces, index: int, models: Sequence[int]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Return piece ``index`` of the base and, by number, of some models, as they are stored."""
    if len(models) == 1:
        base, loaded = pieces.stored(index, models[0])
        return base, {models[0]: loaded[0]}
    base, loaded = pieces.stored(index)
    return base, {model: loaded[model] for model in models}


def sampled(
    library: Library, base: torch.Tensor, models: dict[int, torch.Tensor], stride: int
) -> dict[int, torch.Tensor]:
    """Return by model every ``stride``th magnitude of one piece; see :func:`counted`."""
    chosen = {model: tensor[::stride].contiguous() for model, tensor in models.items()}
    return counted(library, base[::stride].contiguous(), chosen, (), 1)[1]
