"""Gradients of coefficients beside finite differences in float64, and what is learnt by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergekit_lines import LinesError, LiveModel
from mergekit_lines.live.blueprint import Blueprint
from mergekit_lines.live.coefficients import Coefficients, Learnable, PerModel, rounded
from mergekit_lines.live.learn import Adam, best_uniform, descend, slope
from tests import models
from tests.allocated import allocated
from tests.live.compare import assert_as_merged

STEP = 1e-4  # of a central difference: its error is of the order of the square


def recipe(folder: Path, architecture: str = "gpt2", **options: Any) -> dict[str, Any]:
    """Make a base and two fine-tuned models in float64, and return a recipe over them."""
    base = models.ARCHITECTURES[architecture](folder / "base", dtype=torch.float64, **options)
    tuned = [models.finetuned(base, folder / n, seed=s, scale=0.05) for s, n in enumerate("ab")]
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": 0.3, "beta": 0.4},
    }


def batch() -> torch.Tensor:
    return torch.randint(4, 128, (2, 9), generator=torch.Generator().manual_seed(1))


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the next tokens' mean negative log-likelihood, in float64."""
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1).double()
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())


def moved(coefficients: Coefficients, place: int, by: float) -> Coefficients:
    """Return coefficients of which one is moved: that of a block, or the one outside."""
    if place == len(coefficients.blocks):
        return replace(coefficients, outside=coefficients.outside + by)
    blocks = [value + by * (n == place) for n, value in enumerate(coefficients.blocks)]
    return replace(coefficients, blocks=tuple(blocks))


def differences(live: LiveModel, coefficients: Coefficients) -> list[float]:
    """Return the central differences of the loss by each coefficient."""

    def at(place: int, by: float) -> float:
        live.set_recipe(moved(coefficients, place, by).recipe(live.recipe))
        with torch.no_grad():
            return float(loss(live.model, batch()))

    places = range(len(coefficients.blocks) + 1)
    return [(at(place, STEP) - at(place, -STEP)) / (2 * STEP) for place in places]


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ({}, 2),  # a sum, from the shards
        ({"wrap": "ties", "density": 0.5}, 2),  # kept task vectors
        ({"wrap": "slerp", "t": 0.3}, 1),  # a method without a kernel of ours
    ],
    ids=["task_arithmetic", "ties", "slerp"],
)
def test_gradients_are_the_differences_of_the_loss(
    words: dict[str, Any], listed: int, tmp_path: Path
) -> None:
    """Of every block and of what is outside, a tied head among it, to 1e-6 of the largest."""
    document = recipe(tmp_path)
    document["models"] = document["models"][:listed]
    document["parameters"] |= words
    with LiveModel(document, quiet=True) as live:
        start = Coefficients.of(live.summary)
        value, gradient = slope(live, start, batch(), loss)
        with torch.no_grad():
            assert value == float(loss(live.model, batch()))
        got = torch.tensor([*gradient.blocks, gradient.outside], dtype=torch.float64)
        want = torch.tensor(differences(live, start), dtype=torch.float64)
        assert want.abs().min() > 1e-6
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()
        assert not any(parameter.requires_grad for parameter in live.model.parameters())
        assert all(parameter.grad is None for parameter in live.model.parameters())


def test_vocabularies_that_are_aligned_have_gradients(tmp_path: Path) -> None:
    """Embeddings that mergekit puts together from several tokenizers count too."""
    document = recipe(tmp_path)
    more = models.gpt2(tmp_path / "more", dtype=torch.float64, seed=9, tokens=["extra"])
    document["models"][0]["model"] = str(more)
    document["tokenizer"] = {"source": "union"}
    with LiveModel(document, quiet=True) as live:
        start = Coefficients.of(live.summary)
        _, gradient = slope(live, start, batch(), loss)
        assert gradient.outside == pytest.approx(differences(live, start)[-1], rel=1e-5)


def test_what_is_learnt_is_what_mergekit_writes(tmp_path: Path) -> None:
    """The recipe of the last step, merged by mergekit, is the live model to the bit."""
    with LiveModel(recipe(tmp_path, "llama"), quiet=True) as live:
        start = rounded(Coefficients.of(live.summary))
        steps = list(descend(live, start, iter([batch()] * 6), loss, 0.1))
        losses, learnt = [value for value, _ in steps], steps[-1][1]
        assert losses[-1] < losses[0]
        live.set_recipe(learnt.recipe(live.recipe))
        assert_as_merged(live, tmp_path / "out")
        (blocks,) = live.summary.containers.values()
        assert [value for (value,) in blocks] == list(learnt.blocks)
        assert set(live.summary.outside.values()) == {learnt.outside}


def test_words_of_slices_give_way(llama_base: Path, llama_a: Path) -> None:
    """Schedules of slices, which would win over what is learnt, are taken out; the rest stays."""
    sources = [{"model": str(path), "layer_range": [0, 4]} for path in (llama_base, llama_a)]
    inner = {"alpha": 0.6, "beta": 0.9, "weight": 0.5}
    document = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "slices": [{"sources": sources, "parameters": inner}],
        "parameters": {"alpha": 0.2, "beta": 0.3, "outside": 0.1},
    }
    with LiveModel(document, quiet=True) as live:
        start = Coefficients.of(live.summary)
        assert start.blocks == pytest.approx((0.6, 0.9, 1.2, 1.5))
        assert start.outside == 0.1  # of all tensors alike, to the bit
        written = start.recipe(document)
        assert written["slices"][0]["parameters"] == {"weight": 0.5}
        live.set_recipe(written)
        assert Coefficients.of(live.summary) == start


def test_adam_is_torchs(tmp_path: Path) -> None:
    """Steps over a few numbers are torch.optim.Adam's in float64."""
    slopes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.nn.Parameter(torch.tensor([0.3, 0.5, 0.1], dtype=torch.float64))
    torchs, ours = torch.optim.Adam([weight], lr=0.05), Adam(0.05)
    values = Coefficients((0.3, 0.5), 0.1)
    for each in slopes:
        weight.grad = each.clone()
        torchs.step()
        *blocks, outside = each.tolist()
        values = ours.moved(values, Coefficients(tuple(blocks), outside))
        got = torch.tensor([*values.blocks, values.outside], dtype=torch.float64)
        assert torch.allclose(got, weight.detach(), rtol=1e-12, atol=0)


def test_an_objective_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """NaN is never learnt from."""

    def undefined(model: Any, ids: torch.Tensor) -> torch.Tensor:
        return loss(model, ids) * float("nan")

    with LiveModel(recipe(tmp_path), quiet=True) as live:
        start = Coefficients.of(live.summary)
        with pytest.raises(LinesError, match=r"objective is nan.*not finite\. Give a smaller --lr"):
            slope(live, start, batch(), undefined)


def test_offloaded_weights_are_refused(tmp_path: Path) -> None:
    """A gradient needs its weight on the device."""
    document = recipe(tmp_path, "llama")
    memory = Blueprint(document).accounting()
    most = memory.working + memory.weights["cpu"] * 3 // 4
    with LiveModel(document, max_memory={"cpu": most}, quiet=True) as live:
        start = Coefficients.of(live.summary)
        with pytest.raises(LinesError, match=r"max_memory: found weights that are offloaded"):
            slope(live, start, batch(), loss)


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize(
    ("words", "per_model"),
    [({}, False), ({"wrap": "ties", "density": 0.5}, False), ({}, True)],
    ids=["sum", "ties", "per-model"],
)
def test_a_step_takes_the_memory_that_is_stated(
    words: dict[str, Any], per_model: bool, tied: bool, tmp_path: Path
) -> None:
    """Setting weights and one backward pass: what is stated, and the activations of the batch."""
    base = models.llama(tmp_path / "base", hidden=256, vocab=1000, layers=12, tied=tied)
    tuned = [models.finetuned(base, tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    document = {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": {"alpha": 0.3, "beta": 0.4, **words},
    }
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    graph = allocated(lambda: loss(plain, batch()))
    with LiveModel(document, num_threads=1, quiet=True) as live:
        start: Learnable = Coefficients.of(live.summary)
        if per_model:
            start = PerModel.of(live.planned, live.summary)
        slope(live, start, batch(), loss)  # what is made once, and kept
        most = allocated(lambda: slope(live, rounded(start), batch(), loss))
        memory = live.accounting
        largest = max(parameter.nbytes for parameter in live.model.parameters())
        assert largest <= most, "the log is of other memory"
        # The gradient of an activation is as large as itself.
        bound = memory.working + memory.gradients + 2 * graph
        assert most <= bound, (most, memory, graph)
        # Else the gradients of all weights could hide below the bound.
        assert memory.weights["cpu"] > bound


@pytest.mark.parametrize(
    ("lowest", "start"), [(0.7, 0.5), (0.0, 0.5), (1.6, 0.5), (0.3, 0.0), (3.9, 0.5), (0.4, -0.5)]
)
def test_the_best_uniform_coefficient_is_near_the_lowest(lowest: float, start: float) -> None:
    """Of a parabola, wherever up to eight times the start: within a sixteenth of the start."""
    best = best_uniform(lambda value: (value - lowest) ** 2, start)
    assert abs(best.value - lowest) <= (abs(start) or 0.5) / 16 + 1e-12
    assert not best.at_edge


def test_no_uniform_coefficient_is_below_zero() -> None:
    """Where less is better, 0 is the least that is tried: the base itself."""
    tried = list[float]()
    best = best_uniform(lambda value: tried.append(value) or value, 0.8)
    assert (best.value, min(tried)) == (0.0, 0.0)
    assert len(set(tried)) == len(tried)


def test_a_best_uniform_coefficient_at_the_edge_is_marked() -> None:
    """Where more is always better the search ends, and says that it did."""
    best = best_uniform(lambda value: -value, 0.5)
    assert best.at_edge
    assert best.value >= 4.0  # eight times the start


def test_uniform_coefficients_that_overflow_are_not_chosen() -> None:
    """NaN and infinity are worse than every number."""
    best = best_uniform(lambda value: -value if value < 1.3 else float("nan"), 0.5)
    assert 1.2 < best.value < 1.3
