"""Merges by singular vectors as methods of mergekit: CART, TSV-M, Iso-C, Iso-CTS."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    TensorGroup,
    TensorMetadata,
)

from mergekit_lines.host.process import one_thread
from mergekit_lines.kernels import low_rank
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.methods.words import number, word, wrong

Rule = Callable[..., torch.Tensor]
# Tables of vectors that are looked up or added (stacked experts' biases), and what projects to
# logits or to a space shared with another tower: no maps from one activation to the next.
_NO_MAP = re.compile(
    r"embed|bias$|^(wte|wpe|shared|lm_head|score|classifier|head)$|^\w+_projection$"
)
_STACKED = re.compile(r"^experts$|moe$")


class SpectralMethod(GroupMergeMethod):
    """One of the merges that take the singular vectors of whole matrices.

    As in the papers' code, matrices alone are decomposed, and of all else the models' task
    vectors are averaged: vectors, kernels of convolutions, matrices of one row or column; so are
    embeddings, tables of biases, heads and projections into a shared space (the papers' text
    projection). Experts that are stored stacked, (experts, m, n), are decomposed one by one.

    What ``lines`` scales around each is M − θ_0, θ_0 the base of the recipe: CART's own centre
    is the models' average, and LiNeS keeps shallow blocks close to what was pre-trained, not
    to that.

    Args:
        name: of the method in a recipe.
        title: for people.
        source: address of the paper.
        rule: gives M − θ_0 of one matrix from the task vectors and the method's words.
        rank: default of the word ``rank``; no such word where it is 0.
        centred: whether ``lambda`` scales beside the average only, not the average itself.
    """

    def __init__(
        self, name: str, title: str, source: str, rule: Rule, rank: float | None, *, centred: bool
    ) -> None:
        self._rule, self._centred = rule, centred
        words = [word("lambda", lambda v: number("lambda", v), 1.0, "of the merged task vector")]
        if rank != 0:
            meaning = "singular directions that count, as a share of a matrix's rank"
            words.append(word("rank", _rank, rank, meaning))
        self.spec = MergeMethodSpec(
            name=name,
            parameters=tuple(words),
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=title,
            reference_url=source,
        )

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Return M of one tensor, computed in fp32 or wider and rounded once.

        NaN or infinity in a matrix makes all of its M NaN: singular vectors have no other.

        Args:
            group: base and models, of one shape and dtype.
            **parameters: the words of the recipe.
        """
        stored = group.entries[0].tensor.dtype
        dtype = work_dtype(stored)
        base = next(entry.tensor for entry in group.entries if entry.is_base).to(dtype)
        with torch.no_grad(), one_thread():
            deltas = [entry.tensor.to(dtype).sub(base) for entry in group.non_base]
            return self._merged(base, deltas, group.metadata, parameters).to(stored)

    def _merged(
        self,
        base: torch.Tensor,
        deltas: Sequence[torch.Tensor],
        metadata: TensorMetadata,
        parameters: dict[str, Any],
    ) -> torch.Tensor:
        if not deltas:
            return base
        scale = parameters["lambda"]
        words = {"rank": parameters["rank"]} if "rank" in parameters else {}
        if not base.numel() or not is_matrix(metadata, base.shape):
            return base + low_rank.mean(deltas) * (1.0 if self._centred else scale)
        merged = base.clone()
        for place in range(len(base)) if base.ndim > 2 else (...,):
            own = [delta[place] for delta in deltas]
            finite = all(bool(torch.isfinite(delta).all()) for delta in own)
            merged[place] += self._rule(own, scale=scale, **words) if finite else math.nan
        return merged


def temporaries(shape: Sequence[int], models: int, width: int) -> int:
    """Return the most bytes that the merge of one matrix, or stack, allocates, with its result.

    Args:
        shape: of the tensor.
        models: T.
        width: bytes of an entry, in the arithmetic.
    """
    entries = width * math.prod(shape) * (models + 3)  # differences, their mean, sums
    matrix, smaller = math.prod(shape[-2:]), min(shape[-2:])
    # In float64: copies and singular vectors, squares and what their decomposition takes.
    return entries + 8 * (5 * matrix + 10 * smaller**2)


def is_matrix(metadata: TensorMetadata, shape: Sequence[int]) -> bool:
    """Tell whether a tensor is a linear map, or a stack of them, whose singular vectors count.

    Args:
        metadata: its name, and mergekit's mark of a vocabulary.
        shape: of the tensor.
    """
    parts = (metadata.name or "").split(".")
    if metadata.vocabulary_axis is not None or any(map(_NO_MAP.search, parts)):
        return False
    stacked = len(shape) == 3 and any(map(_STACKED.search, parts))
    return (len(shape) == 2 or stacked) and min(shape[-2:]) > 1


def _rank(value: Any) -> float:
    meaning = "a share of the rank, above 0 and up to 1"
    result = number("rank", value, meaning)
    if not 0 < result <= 1:
        raise wrong("rank", value, meaning)
    return result


SPECTRAL = (
    SpectralMethod(
        "cart", "CART", "https://arxiv.org/abs/2412.12153", low_rank.cart, 0.08, centred=True
    ),
    SpectralMethod(
        "tsv_m", "TSV-M", "https://arxiv.org/abs/2412.00081", low_rank.tsv_m, None, centred=False
    ),
    SpectralMethod(
        "iso_c", "Iso-C", "https://arxiv.org/abs/2502.04959", low_rank.iso_c, 0, centred=False
    ),
    SpectralMethod(
        "iso_cts",
        "Iso-CTS",
        "https://arxiv.org/abs/2502.04959",
        low_rank.iso_cts,
        0.8,
        centred=False,
    ),
)
