import math
import random as dice
from dataclasses import replace

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorGroup
from mergekit.sparsify import RescaleNorm, SparsificationMethod, rescaled_masked_tensor, sparsify

from mergekit_lines.kernels.draws import Draws, bound
from mergekit_lines.kernels.merge import Merge
from mergekit_lines.kernels.rows import row_bounds
from mergekit_lines.kernels.scale import add_scaled
from mergekit_lines.kernels.sparsity import Sparsity

from .in_memory import InMemory, by_sorting, combine, kept, keys, run

METHODS = {
    "task_arithmetic": ("none", None),
    "ties": ("magnitude", "sum"),
    "dare_linear": ("random", None),
    "dare_ties": ("random", "sum"),
    "breadcrumbs": ("magnitude_outliers", None),
    "breadcrumbs_ties": ("magnitude_outliers", "sum"),
    "della": ("della_magprune", "sum"),
    "della_linear": ("della_magprune", None),
}


def tensors(
    seed: int, models: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=dtype)
    tuned = [
        base + 0.1 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(models)
    ]
    return base, tuned


def mergekit_task_vector(
    name: str, base: torch.Tensor, models: list[torch.Tensor], merge: Merge
) -> torch.Tensor:
    group = TensorGroup.from_tensors([base, *models], base_index=0)

    def each(values):
        return PerInputValues(list(enumerate(values, start=1)))

    parameters = {
        "int8_mask": bool(len(models) % 2),
        "normalize": merge.normalize,
        "rescale": any(sparsity.rescale for sparsity in merge.sparsities),
        "lambda": merge.scale,
        "weight": each(merge.weights),
        "density": each(sparsity.density for sparsity in merge.sparsities),
    }
    if "breadcrumbs" in name:
        parameters["gamma"] = each(sparsity.gamma for sparsity in merge.sparsities)
    if "della" in name:
        parameters["epsilon"] = each(sparsity.epsilon for sparsity in merge.sparsities)
    return registry.get(name).merge_group(group, **parameters) - base


def drawn(sparsity: Sparsity, key: bytes, delta: torch.Tensor) -> torch.Tensor:
    """The mask that the draws give, for a whole tensor."""
    found = Draws(0, delta.numel(), delta.device).draw(key)
    limit: int | torch.Tensor = bound(sparsity.density)
    if sparsity.by_rows:
        magnitudes = delta.abs().reshape(-1)
        limit = row_bounds(magnitudes, tuple(delta.shape), sparsity.density, sparsity.epsilon)
    return (found < limit).view(delta.shape)


def sparsified(sparsity: Sparsity, key: bytes, delta: torch.Tensor) -> torch.Tensor:
    """One sparsified task vector, by its definition; in float64 where it is rescaled."""
    size = delta.numel()
    if sparsity.kind == "none" or sparsity.density >= 1:
        return delta.double()
    if sparsity.density <= 0:
        return torch.zeros_like(delta, dtype=torch.float64)
    if sparsity.drawn:
        mask = drawn(sparsity, key, delta)
    elif sparsity.kind == "magnitude":
        mask = by_sorting(delta, 0, max(1, int(sparsity.density * size)))
    else:
        target = int(sparsity.density * size)
        first = max(0, size - target - int(sparsity.gamma * size))
        mask = by_sorting(delta, size - min(size, first + target), target)
    norm = RescaleNorm.l1 if sparsity.rescale else None
    return rescaled_masked_tensor(delta.double(), mask, norm)


def random_merge(roll: dice.Random, name: str, models: int) -> Merge:
    kind, consensus = METHODS[name]
    if consensus and roll.random() < 0.4:
        consensus = "count"
    rescale = roll.random() < 0.5
    sparsities = []
    for _ in range(models):
        density = roll.choice([0.0, 1.0, *[roll.uniform(0.02, 0.98) for _ in range(5)]])
        epsilon = roll.uniform(0, min(density, 1 - density) * 0.99)
        gamma = roll.choice([0.0, 0.01, roll.uniform(0, 1)])
        sparsities.append(Sparsity(kind, density, gamma, epsilon, rescale))
    weights = [roll.choice([1.0, 0.5, 0.0, roll.uniform(-1, 1)]) for _ in range(models)]
    scale = roll.choice([1.0, roll.uniform(-2, 2)])
    return Merge(tuple(sparsities), tuple(weights), consensus, roll.random() < 0.5, scale)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, room: float) -> None:
    """Close to fp32 rounding; a sum at the edge of zero may elect either sign."""
    error = (found.double() - wanted.double()).abs()
    assert error.max() <= room * max(1.0, float(wanted.abs().max()))


SHAPES = [(1,), (17,), (40, 30), (3, 20_000), (5, 7, 11), (300, 200), (1, 1), (4, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_random_merges_are_their_definition_in_float64(name):
    roll = dice.Random(name)
    for case in range(30):
        models, shape = roll.randint(1, 8), roll.choice(SHAPES)
        merge = random_merge(roll, name, models)
        base, tuned = tensors(case, models, shape)
        length = math.prod(shape[1:])
        piece = max(1, roll.choice([math.prod(shape), 1000, 4096]) // length) * length
        if not merge.supports(shape):
            piece = math.prod(shape)
        if piece < math.prod(shape) / 200:
            continue
        tasks = [
            sparsified(sparsity, key, model - base)
            for sparsity, key, model in zip(merge.sparsities, keys(models), tuned, strict=True)
        ]
        options = merge.consensus, merge.normalize, merge.scale
        wanted = combine(torch.stack(tasks), merge.weights, *options)
        found = run(merge, InMemory(base, tuned, piece, threads=2))
        room = 1e-5 / _smallest_divisor(merge)
        assert_close(found, wanted, room)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_bf16_results_are_float64_rounded(name, rescale):
    """At most one entry in 10,000 is another bf16 number, and then the next one."""
    kind, consensus = METHODS[name]
    base, noise = tensors(5, 3, (512, 1024))
    base = (0.02 * base).bfloat16()
    tuned = [(base.float() + 0.01 * model).bfloat16() for model in noise]
    # Sums of these weights are exact, as elections are then.
    weights, coefficient = (1.0, 0.5, 0.25), 0.37
    sparsity = Sparsity(kind, 0.4, 0.02, 0.2, rescale)
    merge = Merge((sparsity,) * 3, weights, consensus, consensus is not None)
    pieces = InMemory(base, tuned, 64 * 1024, threads=2)
    found = add_scaled(base.float(), run(merge, pieces), coefficient).bfloat16()
    tasks = [
        sparsified(sparsity, key, model.double() - base.double())
        for key, model in zip(keys(3), tuned, strict=True)
    ]
    made = combine(torch.stack(tasks), weights, consensus, consensus is not None, 1.0)
    wanted = (base.double() + coefficient * made).bfloat16()
    apart = (ordered(found) - ordered(wanted)).abs()
    assert apart.max() <= 1
    assert (apart > 0).sum() <= apart.numel() / 10_000


def ordered(numbers: torch.Tensor) -> torch.Tensor:
    """The place of bf16 numbers among all of them."""
    words = numbers.view(torch.int16).int()
    return torch.where(words < 0, -(words & 0x7FFF), words)


def _smallest_divisor(merge: Merge) -> float:
    """How small a sum of some of the weights gets: what rounding is magnified by."""
    if not merge.normalize:
        return 1.0
    sums = {0.0}
    for weight in merge.weights:
        sums |= {known + weight for known in sums}
    return min([1.0, *[abs(value) for value in sums if abs(value) > 1e-7]])


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties"])
def test_mergekit_itself_gives_the_same(name):
    roll = dice.Random(name)
    for case in range(40):
        models = roll.randint(1, 8)
        merge = random_merge(roll, name, models)
        if merge.consensus:
            merge = replace(merge, consensus="sum")
        if merge.normalize:
            merge = replace(merge, weights=tuple(abs(weight) + 0.1 for weight in merge.weights))
        base, tuned = tensors(case, models, roll.choice([(50,), (40, 30), (200, 150)]))
        wanted = mergekit_task_vector(name, base, tuned, merge)
        found = run(merge, InMemory(base, tuned, 5000))
        assert_close(found, wanted, 3e-6)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_mergekit_gives_the_same_by_our_draws(name, monkeypatch):
    roll = dice.Random(name)
    for case in range(25):
        models = roll.randint(1, 5)
        merge = random_merge(roll, name, models)
        if merge.consensus:
            merge = replace(merge, consensus="sum")
        merge = replace(merge, weights=tuple(abs(weight) + 0.1 for weight in merge.weights))
        base, tuned = tensors(case, models, (40, 30))
        masks = iter(
            [
                drawn(sparsity, key, model - base)
                if sparsity.drawn
                else torch.zeros_like(base, dtype=torch.bool)
                for sparsity, key, model in zip(merge.sparsities, keys(models), tuned, strict=True)
                if sparsity.drawn or (sparsity.kind == "random" and sparsity.density < 1)
            ]
        )
        monkeypatch.setattr(torch, "bernoulli", lambda probs: next(masks).to(probs.dtype))  # noqa: B023
        wanted = mergekit_task_vector(name, base, tuned, merge)
        assert_close(run(merge, InMemory(base, tuned, 300)), wanted, 3e-6)


@pytest.mark.parametrize("kind", ["magnitude", "magnitude_outliers"])
@pytest.mark.parametrize("rescale", [False, True])
def test_mergekits_masks_without_ties_and_its_numbers_with(kind, rescale):
    norm = RescaleNorm.l1 if rescale else None
    for density in (0.0, 0.001, 0.2, 0.5, 0.77, 0.999, 1.0):
        for decimals in (7, 1):
            delta = torch.randn(150, 200, generator=torch.Generator().manual_seed(3))
            delta = delta.round(decimals=decimals) if decimals < 7 else delta
            extra = {"gamma": 0.05} if kind == "magnitude_outliers" else {}
            method = SparsificationMethod(kind)
            wanted = sparsify(delta, density, method, rescale_norm=norm, **extra)
            found = kept(Sparsity(kind, density, 0.05, rescale=rescale), delta, 4096)
            assert int((found != 0).sum()) <= int((wanted != 0).sum()) or decimals < 7
            assert torch.allclose(
                found.abs().flatten().sort().values, wanted.abs().flatten().sort().values
            )
            if decimals == 7:
                assert torch.equal(found != 0, wanted != 0)
                assert torch.allclose(found, wanted)


def test_dare_keeps_the_density_and_rescales_the_norm():
    delta = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))
    for density in (0.1, 0.5, 0.9):
        found = kept(Sparsity("random", density, rescale=True), delta, 99_999)
        stays = found != 0
        assert abs(stays.double().mean() - density) < 4 * (density * (1 - density)) ** 0.5 / 1000
        assert math.isclose(found.abs().double().sum(), delta.abs().double().sum(), rel_tol=1e-6)
        factors = found[stays] / delta[stays]
        assert factors.max() - factors.min() < 1e-5


def test_dare_of_its_paper_rescales_by_the_share_that_stays():
    """Entries are kept or 0, and those kept are 1/(1 - p) as large; the tensor is read once."""
    delta = torch.randn(500, 500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for density in (0.1, 0.5, 0.9):
        pieces = InMemory(torch.zeros_like(delta), [delta], 9_999)
        sparsity = Sparsity("random", density, rescale=True, by_share=True)
        found = run(Merge((sparsity,), (1.0,)), pieces)
        stays = found != 0
        assert pieces.loads == [1] * len(pieces.bounds)
        assert torch.equal(stays, kept(Sparsity("random", density, rescale=True), delta) != 0)
        assert torch.allclose(found[stays], delta[stays] / density, rtol=1e-15, atol=0)


@pytest.mark.parametrize("density", [1e-220, 5e-324, 1e-39])
def test_a_share_too_small_for_any_entry_keeps_none(density):
    """Its inverse is no number of fp32, which torch would refuse as a factor."""
    delta = torch.randn(100, 50, generator=torch.Generator().manual_seed(3))
    sparsity = Sparsity("random", density, rescale=True, by_share=True)
    merge = Merge((sparsity,) * 2, (0.5, -2.0))
    found = run(merge, InMemory(torch.zeros_like(delta), [delta, -delta], 999))
    assert torch.equal(found, torch.zeros_like(delta))


def test_della_keeps_large_entries_more_often():
    delta = torch.randn(1000, 400, generator=torch.Generator().manual_seed(1))
    found = kept(Sparsity("della_magprune", 0.5, epsilon=0.3), delta, 40_000)
    ranks = delta.abs().argsort(1).argsort(1)
    for low in range(0, 400, 50):
        band = (ranks >= low) & (ranks < low + 50)
        share = (found[band] != 0).double().mean()
        wanted = 0.2 + (low + 24.5) / 399 * 0.6
        assert abs(share - wanted) < 4 * 0.5 / 50_000**0.5


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cuts_and_draws_do_not_depend_on_pieces_or_threads(name, dtype):
    kind, consensus = METHODS[name]
    base, tuned = tensors(1, 3, (64, 500), torch.float32)
    base, tuned = base.to(dtype), [model.to(dtype) for model in tuned]
    merge = Merge((Sparsity(kind, 0.4, 0.03, 0.2),) * 3, (0.5, -1.0, 0.3), consensus, True, 0.7)
    whole = run(merge, InMemory(base, tuned, 32_000))
    assert whole.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for rows in (1, 3, 40):
        for threads in (1, 3):
            assert torch.equal(run(merge, InMemory(base, tuned, rows * 500, threads)), whole)


@pytest.mark.parametrize("name", METHODS)
def test_equal_models_give_exactly_zero(name):
    kind, consensus = METHODS[name]
    base, tuned = tensors(1, 2, (64, 100))
    tuned[0][:32] = base[:32]
    tuned[1][:32] = base[:32]
    merge = Merge((Sparsity(kind, 0.6, 0.03, 0.2, True),) * 2, (0.3, 0.9), consensus, True, 1.3)
    found = run(merge, InMemory(base, tuned, 1000))
    assert not found[:32].any() and found[32:].any()
    same = run(merge, InMemory(base, [base, base], 1000))
    assert not same.any()


def test_passes():
    base, tuned = tensors(1, 2, (100, 1000))
    for kind, rescale, reads in (
        ("none", True, 0),
        ("random", False, 0),
        ("random", True, 10),
        ("della_magprune", False, 0),
        ("della_magprune", True, 10),
        ("magnitude", False, 14),
        ("magnitude", True, 14),
        ("magnitude_outliers", True, 14),
    ):
        pieces = InMemory(base, tuned, 10_000)
        Merge((Sparsity(kind, 0.5, rescale=rescale),) * 2, (1.0, 1.0)).prepare(pieces, keys(2))
        assert sum(pieces.loads) == reads, kind


def test_kinds_may_differ_by_model():
    base, tuned = tensors(1, 5, (60, 70))
    kinds = ("none", "magnitude", "random", "magnitude_outliers", "della_magprune")
    sparsities = tuple(Sparsity(kind, 0.4, 0.05, 0.1, rescale=True) for kind in kinds)
    merge = Merge(sparsities, (1.0, 0.5, 0.25, 2.0, 1.5))
    tasks = [
        sparsified(sparsity, key, model - base)
        for sparsity, key, model in zip(sparsities, keys(5), tuned, strict=True)
    ]
    wanted = combine(torch.stack(tasks), merge.weights, None, normalize=False, scale=1.0)
    assert_close(run(merge, InMemory(base, tuned, 700)), wanted, 1e-6)


def test_which_shapes_can_be_cut():
    della = Merge((Sparsity("none"), Sparsity("della_magprune", 0.5, epsilon=0.1)), (1.0, 1.0))
    assert della.row_aligned
    assert [della.supports(shape) for shape in [(5,), (5, 6), (5, 6, 7)]] == [False, True, True]
    whole = Merge((Sparsity("della_magprune", 1.0),), (1.0,))
    ties = Merge((Sparsity("magnitude", 0.5),), (1.0,), "sum")
    assert not whole.row_aligned and whole.supports((5,))
    assert not ties.row_aligned and ties.supports((5,)) and ties.supports((5, 6, 7))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("topk",), "one of"),
        (("random", -0.1), "0 or more"),
        (("random", math.nan), "0 or more"),
        (("della_magprune", 0.9, 0.01, 0.1), "within"),
        (("della_magprune", 0.1, 0.01, 0.1), "within"),
    ],
)
def test_numbers_that_mergekit_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        Sparsity(*arguments)


def test_della_leaves_epsilon_alone_where_it_draws_nothing():
    assert not Sparsity("della_magprune", 1.0, epsilon=5).drawn
    assert not Sparsity("della_magprune", 0.0, epsilon=5).drawn


def test_numbers_of_models_that_do_not_agree():
    base, tuned = tensors(1, 2, (10,))
    with pytest.raises(ValueError, match="one of each"):
        Merge((Sparsity("none"),), (1.0, 2.0))
    with pytest.raises(ValueError, match="consensus"):
        Merge((Sparsity("none"),), (1.0,), "vote")
    with pytest.raises(ValueError, match="wanted 1"):
        Merge((Sparsity("none"),), (1.0,)).prepare(InMemory(base, tuned, 10), keys(2))
