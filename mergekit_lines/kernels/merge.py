"""Task arithmetic and its relatives, piece by piece: TIES, DARE, Breadcrumbs, DELLA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mergekit_lines.kernels.compiled.summing import drawn_norms
from mergekit_lines.kernels.consensus import elected_sum, weighted_sum
from mergekit_lines.kernels.cuts import Cut, deltas, find_cuts
from mergekit_lines.kernels.draws import Draws, bound, mask
from mergekit_lines.kernels.floors import keep_above
from mergekit_lines.kernels.pieces import Pieces
from mergekit_lines.kernels.rows import row_bounds
from mergekit_lines.kernels.scale import total
from mergekit_lines.kernels.sparsity import Sparsity, rescale_factor

__all__ = ["Merge", "Sparsity", "State"]


REMEMBERED = 128 << 20  # bytes of masks that are kept from one pass over a tensor to the next
# Of a tensor's magnitudes, those that a selection gathers near its threshold. At the end of one
# they are put together, and `kthvalue` takes a copy and 8-byte indexes: four times as much.
CANDIDATES = 0.05
SETTLING = 4


def remembered(entries: int, models: int) -> int:
    """Return the bytes of the masks of that many models' draws, or 0 where there is no room."""
    return entries * models if entries * models <= REMEMBERED else 0


@dataclass(frozen=True)
class State:
    """What has to be known of the whole tensor before one piece of it can be merged.

    Attributes:
        keys: per model, the key of its draws.
        cuts: per model, what to keep by magnitude: None for all; no cut for nothing; one cut;
            or one and, second, the cut of the outliers to drop again.
        rescales: per model, the factor that makes up for what is dropped; 1 where none is asked
            for.
        stays: per piece and model, what its draws keep (bool, 1-D), where the norms needed the
            draws already and there is room to remember them.
    """

    keys: tuple[bytes, ...]
    cuts: tuple[tuple[Cut, ...] | None, ...]
    rescales: tuple[float, ...]
    stays: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    """M − θ_0 of mergekit's generalized task arithmetic, for one tensor's parameters.

    The results are mergekit's but for the order of fp32 roundings, and the choices it leaves
    to chance: among equal magnitudes the lowest flat index counts as the largest (DELLA: the
    highest), and draws come from :class:`Draws`. mergekit's ``int8_mask`` changes the dtype
    of an intermediate only, no result, and is not a parameter here.

    Attributes:
        sparsities: one per model.
        weights: w, one per model.
        consensus: None, "sum" or "count": how TIES elects the sign of an entry.
        zero_sign: with a consensus, the sign elected where the sum is 0; 0 stands for −.
        normalize: divide by the sum of the weights (with a consensus, of those that agree).
        scale: mergekit's ``lambda``.

    Source: TIES-Merging, arXiv 2306.01708; DARE, arXiv 2311.03099; Model Breadcrumbs, arXiv
    2312.06795; DELLA, arXiv 2406.11617.
    """

    sparsities: tuple[Sparsity, ...]
    weights: tuple[float, ...]
    consensus: str | None = None
    normalize: bool = False
    scale: float = 1.0
    zero_sign: int = 1

    def __post_init__(self) -> None:
        if self.consensus not in (None, "sum", "count"):
            raise ValueError(f"consensus: found {self.consensus!r}, wanted None, sum or count")
        if len(self.sparsities) != len(self.weights) or not self.weights:
            raise ValueError(
                f"found {len(self.sparsities)} sparsities and {len(self.weights)} weights, wanted "
                f"one of each per model"
            )

    @property
    def linear(self) -> bool:
        """Whether the result is a weighted sum of whole task vectors."""
        return self.consensus is None and all(
            sparsity.kind == "none" or sparsity.density >= 1 for sparsity in self.sparsities
        )

    @property
    def weighted(self) -> bool:
        """Whether the result is Σ w·v, each v of one model alone and of no weight."""
        return self.consensus is None and not self.normalize

    @property
    def row_aligned(self) -> bool:
        """Whether the pieces have to be whole slices along the first dimension."""
        return any(sparsity.by_rows for sparsity in self.sparsities)

    def supports(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape can be merged in pieces.

        DELLA ranks a 1-D tensor as a whole: it has to come as a single piece.
        """
        return not self.row_aligned or len(shape) > 1

    def beside(self, shape: tuple[int, ...], width: int) -> int:
        """Return the bytes of the magnitudes near a threshold, and of the draws' masks."""
        entries = math.prod(shape)
        selected = sum(sparsity.ranks(entries) is not None for sparsity in self.sparsities)
        candidates = int(CANDIDATES * entries) * (selected + SETTLING if selected else 0)
        drawn = sum(sparsity.matched for sparsity in self.sparsities)
        return width * candidates + remembered(entries, drawn)

    def prepare(self, pieces: Pieces, keys: Sequence[bytes]) -> State:
        """Read the pieces as often as the method needs, and return what it has to know.

        That is never for task arithmetic and for DARE that matches no norm; for magnitudes once,
        and an eighth of the pieces once before; once for draws that match a norm.

        Args:
            pieces: the tensor.
            keys: per model, 16 or more bytes that the model's draws for this tensor depend on.

        Raises:
            ValueError: the numbers of models, keys and weights differ, or a floor is not known.
        """
        if not len(keys) == pieces.models == len(self.weights):
            raise ValueError(
                f"found {pieces.models} models and {len(keys)} keys, wanted {len(self.weights)}"
            )
        if any(one.kind == "floor" and math.isnan(one.floor) for one in self.sparsities):
            raise ValueError(
                "the least magnitude that stays is not known: it is one of all tensors"
            )
        cuts, rescales = self._cut(pieces)
        state = State(tuple(keys), cuts, rescales)
        drawn = [model for model, one in enumerate(self.sparsities) if one.matched]
        if not drawn:
            return state
        room = remembered(pieces.bounds[-1][1] if pieces.bounds else 0, len(drawn)) > 0
        by_piece = pieces.map(lambda index: self._norms(pieces, state, index, drawn, remember=room))
        matched = list(rescales)
        for place, model in enumerate(drawn):
            before = math.fsum(norms[place][0] for norms in by_piece)
            after = math.fsum(norms[place][1] for norms in by_piece)
            matched[model] = rescale_factor(before, after)
        return State(state.keys, cuts, tuple(matched), state.stays)

    def task_vector(
        self,
        pieces: Pieces,
        state: State,
        index: int,
        base: torch.Tensor,
        models: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return M − θ_0 of one piece, 1-D, in the dtype of the arithmetic.

        Args:
            pieces: the tensor; only its shape and bounds are read.
            state: what :meth:`prepare` returned for it.
            index: number of the piece.
            base: θ_0's piece, 1-D.
            models: the models' pieces, 1-D; overwritten, and one may become the result.
        """
        vectors = [model.sub_(base) for model in models]
        for model, vector in enumerate(vectors):
            self._sparsify(pieces, state, index, model, vector)
        factors = self.factors(state, base.dtype)
        if self.consensus is None:
            return weighted_sum(vectors, factors)
        _scale(vectors, factors)
        by_count = self.consensus == "count"
        mixed = elected_sum(
            vectors,
            self.weights,
            by_count=by_count,
            normalize=self.normalize,
            zero_positive=self.zero_sign > 0,
        )
        return mixed if self.scale == 1 else mixed.mul_(self.scale)

    def vectors(
        self,
        pieces: Pieces,
        state: State,
        index: int,
        base: torch.Tensor,
        models: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Return v of each model of one piece, of which :attr:`weighted` tells.

        Args:
            pieces: as of :meth:`task_vector`.
            state: likewise.
            index: likewise.
            base: likewise.
            models: likewise; they become the results.
        """
        vectors = [model.sub_(base) for model in models]
        for model, vector in enumerate(vectors):
            self._sparsify(pieces, state, index, model, vector)
        _scale(vectors, [rescale * self.scale for rescale in state.rescales])
        return vectors

    def factors(self, state: State, dtype: torch.dtype) -> list[float]:
        """Return what each model's sparsified task vector is multiplied with.

        Args:
            state: what :meth:`prepare` returned.
            dtype: of the arithmetic.
        """
        factors = [w * rescale for w, rescale in zip(self.weights, state.rescales, strict=True)]
        if self.consensus is not None:
            return factors
        common = self.scale / self._divisor(dtype)
        return [factor * common for factor in factors]

    def votes(self, base: torch.Tensor, models: Sequence[torch.Tensor]) -> int:
        """Return the sum over one piece's entries of the sign of the sum of what stays.

        Args:
            base: θ_0's piece, 1-D.
            models: the models' pieces, 1-D; overwritten. What stays of them is told by floors.

        Source: TIES' code elects for sums of 0 the sign of this number over the whole model.
        """
        vectors = [model.sub_(base) for model in models]
        for vector, sparsity in zip(vectors, self.sparsities, strict=True):
            if sparsity.kind == "floor":
                keep_above(vector, sparsity.floor)
        _scale(vectors, self.weights)
        return int(weighted_sum(vectors, [1.0] * len(vectors)).sign_().sum(dtype=torch.float64))

    def _cut(self, pieces: Pieces) -> tuple[tuple[tuple[Cut, ...] | None, ...], tuple[float, ...]]:
        """Find the magnitudes at which the models are cut, and match the norms."""
        size = pieces.bounds[-1][1] if pieces.bounds else 0
        ranks = [sparsity.ranks(size) for sparsity in self.sparsities]
        targets: list[tuple[int, int]] = []
        for model, rank in enumerate(ranks):
            if rank is not None and rank[1]:
                targets.append((model, sum(rank)))
                if rank[0]:
                    targets.append((model, rank[0]))
        sums = any(self.sparsities[model].rescale for model, _ in targets)
        settled, totals = find_cuts(pieces, targets, sums=sums) if targets else ([], [])
        cuts: list[tuple[Cut, ...] | None] = []
        rescales = []
        for model, rank in enumerate(ranks):
            own = [cut for (owner, _), cut in zip(targets, settled, strict=True) if owner == model]
            cuts.append(None if rank is None else tuple(own))
            if own and self.sparsities[model].rescale:
                after = own[0].total - sum(cut.total for cut in own[1:])
                rescales.append(rescale_factor(totals[model], after))
            else:
                rescales.append(self.sparsities[model].factor)
        return tuple(cuts), tuple(rescales)

    def _norms(
        self, pieces: Pieces, state: State, index: int, models: Sequence[int], *, remember: bool
    ) -> list[tuple[float, float]]:
        """Return Σ|δ| of one piece before and after the draws, for the models asked for."""
        if pieces.library is not None and not any(self.sparsities[m].by_rows for m in models):
            own = {m: (state.keys[m], self.sparsities[m]) for m in models}
            norms = drawn_norms(pieces.library, pieces.bounds[index], *pieces.stored(index), own)
            if norms is not None:
                return norms
        base, vectors = deltas(pieces, index, models)
        draws = self._draws(pieces, index, base.device)
        norms = []
        for model, vector in vectors.items():
            vector.abs_()
            before = total(vector)
            stays = self._drawn(pieces, state, model, vector, draws)
            if remember:
                state.stays[index, model] = stays.to(torch.bool)
            mask(vector, stays)
            norms.append((before, total(vector)))
        return norms

    def _drawn(
        self, pieces: Pieces, state: State, model: int, vector: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """Return 1 where the draws keep an entry of one model's piece, else 0; int32."""
        sparsity = self.sparsities[model]
        drawn = draws.draw(state.keys[model], lasting=False)
        limit: int | torch.Tensor = bound(sparsity.density)
        if sparsity.by_rows:
            limit = row_bounds(vector.abs(), pieces.shape, sparsity.density, sparsity.epsilon)
        return drawn.lt_(limit)

    def _sparsify(
        self,
        pieces: Pieces,
        state: State,
        index: int,
        model: int,
        vector: torch.Tensor,
    ) -> None:
        """Set what does not stay of one model's piece to 0, in place."""
        sparsity, cuts = self.sparsities[model], state.cuts[model]
        if sparsity.kind == "floor":
            keep_above(vector, sparsity.floor)
        elif cuts is not None:
            if not cuts:
                vector.zero_()
                return
            cuts[0].apply(vector, index)
            for outliers in cuts[1:]:
                # They are among those kept, and first among equals there too.
                vector.sub_(outliers.apply(vector.clone(), index))
        elif sparsity.drawn and (stays := state.stays.get((index, model))) is not None:
            mask(vector, stays.to(torch.int32))
        elif sparsity.drawn:
            draws = self._draws(pieces, index, vector.device)
            mask(vector, self._drawn(pieces, state, model, vector, draws))

    @staticmethod
    def _draws(pieces: Pieces, index: int, device: torch.device) -> Draws:
        start, end = pieces.bounds[index]
        return Draws(start, end - start, device)

    def _divisor(self, dtype: torch.dtype) -> float:
        """Return mergekit's divisor without a consensus, by its own arithmetic."""
        if not self.normalize:
            return 1.0
        total = float(torch.tensor(self.weights, dtype=dtype).sum(dim=0))
        return 1.0 if abs(total) < 1e-8 else total


def _scale(vectors: Sequence[torch.Tensor], factors: Sequence[float]) -> None:
    for vector, factor in zip(vectors, factors, strict=True):
        if factor != 1:
            vector.mul_(factor)
