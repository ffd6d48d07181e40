"""Compiled kernels give what torch's do, to the bit: torch's are held to formulas elsewhere."""

from __future__ import annotations

import math
import random as dice
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekit_lines.checkpoint.sources import HeldTensor
from mergekit_lines.engine.jobs import Job
from mergekit_lines.engine.norms import tensor_norms
from mergekit_lines.engine.pieces import TensorPieces
from mergekit_lines.engine.workers import Workers
from mergekit_lines.kernels import floors
from mergekit_lines.kernels.agreement import Agreement
from mergekit_lines.kernels.bracket import Bracket
from mergekit_lines.kernels.compiled.counting import counted
from mergekit_lines.kernels.compiled.library import Library
from mergekit_lines.kernels.compiled.merging import merged
from mergekit_lines.kernels.compiled.summing import summed_power
from mergekit_lines.kernels.compiled.voting import votes
from mergekit_lines.kernels.cuts import Search
from mergekit_lines.kernels.floors import Ranking
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.scale import add_scaled, power_sum, sum_norm
from mergekit_lines.kernels.sparsity import Sparsity
from tests.kernels.in_memory import InMemory, keys

WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
DTYPES = tuple(WORDS)
SIZES = (1, 7, 255, 256, 257, 1023, 1024, 1025, 2049, 5000, 20_011)
KINDS = ("none", "magnitude", "random", "magnitude_outliers", "floor")
# What an entry may be beside ordinary numbers: zeros, fp32's, fp16's and bf16's subnormals, the
# largest of fp16, numbers whose squares or sums overflow.
ODD = (0.0, -0.0, 1e-45, -1e-40, 6e-8, -3e-5, 65504.0, -65504.0, 3e38, -2e38)
same = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def numbers(roll: dice.Random, count: int, like: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor with many ties, zeros and odd numbers, or a change of another one."""
    generator = torch.Generator().manual_seed(roll.randrange(1 << 30))
    tensor = torch.randn(count, generator=generator) * roll.choice([1, 0.02, 1e-3, 1e-38])
    if roll.random() < 0.4:
        tensor = (tensor * 8).round() / 8
    if like is not None:
        tensor = like.float() + tensor * 0.3
        kept = torch.rand(count, generator=generator) < roll.choice([0.0, 0.3, 0.9])
        tensor[kept] = like.float()[kept]
    for _ in range(roll.choice([0, 0, 1, 20])):
        tensor[roll.randrange(count)] = roll.choice(ODD)
    return tensor.to(roll.choice(DTYPES))


def a_merge(roll: dice.Random, models: int) -> Merge:
    kind = roll.choice(KINDS)
    sparsities = tuple(
        Sparsity(
            kind,
            roll.choice([0.0, 1.0, 0.5, 0.9, roll.random()]),
            gamma=roll.choice([0.0, 0.01, 0.3]),
            rescale=roll.random() < 0.5,
            by_share=roll.random() < 0.3,
            floor=roll.choice([0.0, 0.01, 0.125, float("inf")]),
        )
        for _ in range(models)
    )
    weights = tuple(roll.choice([1.0, 0.5, -1.0, 0.0, roll.uniform(-1, 1)]) for _ in range(models))
    return Merge(
        sparsities,
        weights,
        roll.choice([None, "sum", "count"]),
        roll.random() < 0.5,
        roll.choice([1.0, 0.7, -0.3]),
        roll.choice([1, 0, -1]),
    )


def assert_same(
    library: Library,
    merge: Merge | Agreement,
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    piece: int,
    coefficient: float,
    dtype: torch.dtype,
) -> int:
    """Hold all pieces to torch's; return how many the compiled kernels left to it."""
    plain = InMemory(base, models, piece)
    fast = InMemory(base, models, piece, library=library)
    state = merge.prepare(plain, keys(len(models)))
    own = merge.prepare(fast, keys(len(models)))
    assert repr((own.cuts, own.rescales)) == repr((state.cuts, state.rescales))  # NaN is not NaN
    left = 0
    for index, bounds in enumerate(plain.bounds):
        vector = merge.task_vector(plain, state, index, *plain.load(index))
        scaled = add_scaled(plain.load(index)[0], vector.clone(), coefficient).to(dtype)
        out, tau = torch.empty_like(scaled), torch.empty_like(vector)
        inputs = fast.stored(index)
        finite = [scaled, inputs[0], *inputs[1]]
        if not merged(library, merge, own, bounds, index, *inputs, coefficient, out, tau):
            assert not all(torch.isfinite(tensor).all() for tensor in finite)
            left += 1
            continue
        assert all(torch.isfinite(tensor).all() for tensor in finite)
        assert torch.equal(out.view(WORDS[dtype]), scaled.view(WORDS[dtype]))
        assert torch.equal(tau.view(torch.int32), vector.view(torch.int32))
    return left


@same
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.sampled_from(SIZES))
def test_merges_of_one_to_five_models(library, roll, models, count):
    """Any dtypes side by side, pieces of any size, ties, ±0, subnormals: the bits are torch's."""
    base = numbers(roll, count)
    tuned = [numbers(roll, count, base) for _ in range(models)]
    piece = max(1, roll.choice([count, count // 3, count // 7]))
    coefficient = roll.choice([1.0, 0.0, 0.37, -2.0])
    assert_same(
        library, a_merge(roll, models), base, tuned, piece, coefficient, roll.choice(DTYPES)
    )


@same
@given(st.randoms(use_true_random=False), st.sampled_from(SIZES), st.integers(0, 8))
def test_what_is_counted_and_what_is_gathered(library, roll, count, pivots):
    """Of ranges empty to whole, with equal values counted: NumPy's counts, values in order."""
    sizes = [numbers(roll, count).float().abs() for _ in range(2)]
    searches = []
    for number in (0, 1, 1):
        low, high = sorted(roll.choice(sizes[number].tolist()) for _ in range(2))
        low, high = roll.choice([(low, high), (0.0, math.inf), (low, low)])
        inside = sizes[number][(sizes[number] >= low) & (sizes[number] <= high)].tolist()
        apart = sorted({roll.choice(inside) for _ in range(pivots)}, reverse=True)
        search = Search(number, 1, count)
        search.bracket = Bracket(low, high, tuple(apart))
        searches.append(search)
    results, _ = counted(library, torch.zeros(count), dict(enumerate(sizes)), searches, 7)
    for search, (above, equal, gathered) in zip(searches, results, strict=True):
        own, bracket = sizes[search.model].numpy(), search.bracket
        inside = own[(own >= bracket.low) & (own <= bracket.high)]
        assert above == np.count_nonzero(own > bracket.high)
        assert equal == [np.count_nonzero(inside == pivot) for pivot in bracket.pivots]
        kept = inside[~np.isin(inside, np.array(bracket.pivots, np.float32))]
        assert gathered.numpy().tobytes() == kept.tobytes()


@same
@given(st.randoms(use_true_random=False), st.sampled_from(("base", "model")))
def test_what_is_not_finite_is_left_to_torch(library, roll, place):
    """One NaN or infinity at any place of an input: the piece is torch's to refuse or to carry."""
    base = numbers(roll, 3000).clamp(-100, 100)
    tuned = [numbers(roll, 3000, base).clamp(-100, 100) for _ in range(2)]
    odd = roll.choice([float("nan"), float("inf"), float("-inf")])
    (base if place == "base" else tuned[roll.randrange(2)])[roll.randrange(3000)] = odd
    merge = Merge((Sparsity("none"),) * 2, (0.5, 0.5))
    assert assert_same(library, merge, base, tuned, 1000, 1.0, torch.float32) == 1


@same
@given(st.randoms(use_true_random=False), st.sampled_from((torch.bfloat16, torch.float16)))
def test_results_beyond_the_output_are_left_to_torch(library, roll, dtype):
    """A finite result that the output's dtype cannot hold is not called finite."""
    base = torch.zeros(2000)
    tuned = torch.zeros(2000)
    tuned[roll.randrange(2000)] = roll.choice([-1, 1]) * float(torch.finfo(dtype).max)
    merge = Merge((Sparsity("none"),), (1.0,))
    assert assert_same(library, merge, base, [tuned], 2000, 1.0, dtype) == 0
    assert assert_same(library, merge, base, [tuned], 2000, 1.003, dtype) == 1


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_what_is_nan_has_no_magnitude(library, share, density):
    """NaN that is let through is cut from no one: both kernels cut where sorting the rest says."""
    generator = torch.Generator().manual_seed(3)
    tuned = torch.randn(60_000, generator=generator)
    odd = torch.rand(60_000, generator=generator) < share
    tuned[odd] = float("nan")
    ordered = tuned[~odd].abs().sort(descending=True).values
    want = float(ordered[min(int(density * 60_000), len(ordered)) - 1])
    merge = Merge((Sparsity("magnitude", density),), (1.0,))
    for kernels in (None, library):
        pieces = InMemory(torch.zeros(60_000), [tuned], 7001, library=kernels)
        (cut,) = merge.prepare(pieces, keys(1)).cuts[0]
        assert cut.threshold == want


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_sixteen_bits(library, dtype):
    """All patterns of bf16 and fp16 go in and out as themselves, where they are finite."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    stored = patterns.view(torch.float16 if dtype == torch.float16 else torch.bfloat16)
    base = stored[torch.isfinite(stored)]
    merge = Merge((Sparsity("none"),), (1.0,))
    assert assert_same(library, merge, base, [base.flip(0)], 65536, 0.5, dtype) == 0


def test_draws_at_the_end_of_what_32_bits_count(library):
    """A piece in which the high word of the index changes is left to torch, its neighbours not."""
    merge, state = Merge((Sparsity("random", 0.5),), (1.0,)), None
    base, tuned, out = torch.zeros(100), torch.ones(100), torch.empty(100)
    state = merge.prepare(InMemory(base, [tuned], 100), keys(1))
    for start, able in (((1 << 32) - 100, True), ((1 << 32) - 99, False), (1 << 32, True)):
        bounds = (start, start + 100)
        assert merged(library, merge, state, bounds, 0, base, [tuned], 1.0, out) == able
        if able:
            pieces = InMemory(base, [tuned], 100)
            pieces.bounds = [bounds]
            assert torch.equal(out, merge.task_vector(pieces, state, 0, base, [tuned.clone()]))


@same
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.sampled_from(SIZES))
def test_consensus_merges(library, roll, models, count):
    """Any sum, λ_t and number of votes, shares that are just as large as the rest: torch's bits."""
    base = numbers(roll, count)
    tuned = [numbers(roll, count, base) for _ in range(models)]
    if roll.random() < 0.5:  # |s_t| = λ_t·|Σ − s_t| of many entries
        generator = torch.Generator().manual_seed(roll.randrange(1 << 30))
        tuned = [torch.randint(-4, 5, (count,), generator=generator) / 4 for _ in range(models)]
        base = torch.zeros(count, dtype=roll.choice(DTYPES))
    tall = tuple(roll.choice([0.25, 0.5, 1.0, 2.0, roll.uniform(0.01, 3)]) for _ in range(models))
    least, scale = roll.randint(1, models + 1), roll.choice([1.0, 0.7])
    kernel = Agreement(a_merge(roll, models), tall, least, scale)
    piece = max(1, roll.choice([count, count // 3, count // 7]))
    assert_same(library, kernel, base, tuned, piece, 0.37, roll.choice(DTYPES))


def strange(roll: dice.Random, count: int, models: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Inputs that now and then hold what is not finite."""
    base = numbers(roll, count)
    tuned = [numbers(roll, count, base) for _ in range(models)]
    for _ in range(roll.choice([0, 0, 1, 9])):
        odd = roll.choice([float("nan"), float("inf"), float("-inf")])
        roll.choice([base, *tuned])[roll.randrange(count)] = odd
    return base, tuned


def state_of(ranking: Ranking) -> tuple[object, ...]:
    return ranking._first, ranking._last, ranking._beyond, ranking._looked, ranking._entries


@same
@given(st.randoms(use_true_random=False), st.integers(1, 3), st.sampled_from(SIZES))
def test_ranks_over_tensors(library, roll, models, count):
    """Every pass of every search has torch's counters, NaN left out, and ends at its magnitude."""
    tensors = [strange(roll, size, models) for size in (count, roll.choice(SIZES))]
    piece = max(1, roll.choice([count, count // 9]))
    plain = [InMemory(*tensor, piece) for tensor in tensors]
    fast = [InMemory(*tensor, piece, library=library) for tensor in tensors]
    densities = {model: roll.choice([0.0, 0.2, 0.999, roll.random()]) for model in range(models)}
    densities.pop(roll.choice([0, models]), None)
    searches = [{m: Ranking(density) for m, density in densities.items()} for _ in range(2)]
    looks = roll.random() < 0.7
    for each, rankings in zip((plain, fast), searches, strict=True):
        for pieces in each if looks else []:
            floors.look(pieces, rankings)
    while any(not ranking.done for ranking in searches[0].values()):
        for one, other in zip(*(rankings.values() for rankings in searches), strict=True):
            assert state_of(one) == state_of(other)
            assert torch.equal(one._bins, other._bins)
        for each, rankings in zip((plain, fast), searches, strict=True):
            if looks:
                for ranking in rankings.values():
                    ranking.guess()
            still = {model: ranking for model, ranking in rankings.items() if not ranking.done}
            for pieces in each:
                floors.take(pieces, still)
            for ranking in still.values():
                ranking.settle()
        looks = False
    results = [[ranking.magnitude for ranking in rankings.values()] for rankings in searches]
    assert results[0] == results[1]


@same
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.sampled_from(SIZES))
def test_votes_on_the_sign_of_sums_of_zero(library, roll, models, count):
    """Signs of weighted sums of what floors leave are counted as torch counts them."""
    base, tuned = strange(roll, count, models)
    merge = a_merge(roll, models)
    copies = [tensor.float().clone() for tensor in tuned]
    assert votes(library, merge, base, tuned) == merge.votes(base.float(), copies)


@same
@given(
    st.randoms(use_true_random=False),
    st.integers(1, 5),
    st.sampled_from(SIZES),
    st.sampled_from([1, 2]),
)
def test_norms_of_sums(library, roll, models, count, power):
    """What Eq. 2 sums up in float64 is torch's to the bit, whatever is not finite too."""
    base = numbers(roll, count)
    tuned = [numbers(roll, count, base) for _ in range(models)]
    if roll.random() < 0.2:
        tuned[0][roll.randrange(count)] = roll.choice([float("inf"), float("nan")])
    own = summed_power(library, base, tuned, power)
    assert repr(own) == repr(sum_norm(base, tuned, power))
    for tensor in (base, *tuned):
        assert repr(summed_power(library, None, [tensor], power)) == repr(power_sum(tensor, power))


@same
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.sampled_from([1, 2]))
def test_terms_of_a_tensor(library, roll, models, power):
    """Both terms of Eq. 2, of any merge, are the same by compiled kernels and by torch."""
    base = numbers(roll, 5000)
    tuned = [numbers(roll, 5000, base) for _ in range(models)]
    merge = a_merge(roll, models)
    job = Job("w", ["base", *range(models)], "ties", merge, 1.0, 0, allow_nonfinite=True)
    terms = []
    for kernels in (None, library):
        workers = Workers(1)
        workers.library = kernels
        held = [HeldTensor(tensor) for tensor in (base, *tuned)]
        pieces = TensorPieces(held[0], held[1:], None, torch.device("cpu"), workers, merge)
        terms.append(repr(tensor_norms(job, pieces, power)))
    assert terms[0] == terms[1]
