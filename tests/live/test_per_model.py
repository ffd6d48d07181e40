"""Coefficients of every model's own: gradients beside a formula of their own, and the recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergekit_lines import LinesError, LiveModel
from mergekit_lines.live.coefficients import Coefficients, PerModel, rounded, uniform
from mergekit_lines.live.learn import descend, slope
from tests import models
from tests.live.compare import assert_as_merged
from tests.live.test_learn import STEP, batch, loss, recipe

BLOCKS = 4


def block_of(name: str) -> int:
    """Return the block of a GPT-2's parameter, or the number that stands for outside."""
    return int(name.split(".")[2]) if name.startswith("transformer.h.") else BLOCKS


def by_formula(document: Mapping[str, Any], values: torch.Tensor) -> torch.Tensor:
    """Return d loss/dλ_t(ℓ) [models, blocks and outside], by autograd through θ_0 + Σ λ_t·τ_t."""

    def read(path: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()

    model, values = read(document["base_model"]), values.clone().requires_grad_()
    zero = dict(model.named_parameters())
    tuned = [dict(read(entry["model"]).named_parameters()) for entry in document["models"]]
    theta = {
        name: base.detach()
        + sum(
            values[number, block_of(name)] * (one[name] - base).detach()
            for number, one in enumerate(tuned)
        )
        for name, base in zero.items()
    }

    class Merged(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor) -> Any:
            return self.inner(input_ids=input_ids)

    def call(**words: Any) -> Any:
        own = {f"inner.{name}": value for name, value in theta.items()}
        return torch.func.functional_call(Merged(), own, kwargs=words)

    loss(call, batch()).backward()
    assert values.grad is not None
    return values.grad


def test_gradients_are_those_of_the_formula(tmp_path: Path) -> None:
    """Of every model, block and what is outside, a tied head among it, to 1e-9 of the largest."""
    document = recipe(tmp_path)
    rows = torch.randn(2, BLOCKS + 1, generator=torch.Generator().manual_seed(3)).double()
    want = by_formula(document, rows)
    with LiveModel(document, quiet=True) as live:
        start = PerModel.of(live.planned, live.summary).like(rows.flatten().tolist())
        _, gradient = slope(live, start, batch(), loss)
    got = torch.tensor(gradient.numbers, dtype=torch.float64).view_as(want)
    assert (got - want).abs().max() <= 1e-9 * want.abs().max()


@pytest.mark.parametrize(
    "words",
    [
        {"lambda": 0.7, "weight": 2.0},
        {"wrap": "dare_linear", "density": 0.5, "rescale": True},
        {"wrap": "breadcrumbs", "density": 0.6, "gamma": 0.1},
        {"wrap": "della_linear", "density": 0.5, "epsilon": 0.1},
    ],
    ids=["lambda", "dare", "breadcrumbs", "della"],
)
def test_gradients_are_the_differences_of_the_loss(words: dict[str, Any], tmp_path: Path) -> None:
    """Whatever is dropped of a task vector before it is weighed, to 1e-6 of the largest."""
    document = recipe(tmp_path)
    document["parameters"] |= words
    with LiveModel(document, quiet=True) as live:
        start = PerModel.of(live.planned, live.summary)

        def at(place: int, by: float) -> float:
            moved = [value + by * (n == place) for n, value in enumerate(start.numbers)]
            live.set_recipe(start.like(moved).recipe(live.recipe))
            with torch.no_grad():
                return float(loss(live.model, batch()))

        _, gradient = slope(live, start, batch(), loss)
        places = range(len(start.numbers))
        want = [(at(place, STEP) - at(place, -STEP)) / (2 * STEP) for place in places]
    difference = torch.tensor(gradient.numbers) - torch.tensor(want)
    assert difference.abs().max() <= 1e-6 * max(map(abs, want))


def test_it_begins_with_what_the_recipe_says(tmp_path: Path) -> None:
    """λ(ℓ) times weight times `lambda` of each model; its recipe makes the same weights."""
    document = recipe(tmp_path)
    document["parameters"] |= {"alpha": 0.2, "beta": 0.3, "outside": 0.7, "lambda": 0.5}
    names = [entry["model"] for entry in document["models"]]
    for entry, weight in zip(document["models"], (2.0, "1, 2, 4, 8"), strict=True):
        entry["parameters"] = {"weight": weight}
    with LiveModel(document, quiet=True) as live:
        before = {name: one.clone() for name, one in live.model.state_dict().items()}
        own = PerModel.of(live.planned, live.summary)
        assert list(own.models) == names
        first, second = own.models.values()
        assert first.blocks == pytest.approx((0.2, 0.3, 0.4, 0.5))
        assert second.blocks == pytest.approx((0.1, 0.3, 0.8, 2.0))
        assert (first.outside, second.outside) == pytest.approx((0.7, 0.35))
        live.set_recipe(own.recipe(document))
        for name, one in live.model.state_dict().items():
            assert torch.allclose(one, before[name], rtol=1e-12, atol=1e-12), name
        assert set(uniform(own, 0.4).numbers) == {0.4}
        with pytest.raises(LinesError, match="no blocks"):
            PerModel.of(live.planned, replace(live.summary, containers={}))


def test_what_is_learnt_is_what_mergekit_writes(tmp_path: Path) -> None:
    """The recipe of the last step, merged by mergekit, is the live model to the bit."""
    document = recipe(tmp_path, "llama")
    document["parameters"] |= {"wrap": "dare_linear", "density": 0.5}
    with LiveModel(document, quiet=True) as live:
        start = rounded(PerModel.of(live.planned, live.summary))
        steps = list(descend(live, start, iter([batch()] * 5), loss, 0.1))
        losses, learnt = [value for value, _ in steps], steps[-1][1]
        assert losses[-1] < losses[0]
        live.set_recipe(learnt.recipe(live.recipe))
        assert_as_merged(live, tmp_path / "out")
        assert PerModel.of(live.planned, live.summary) == learnt


def test_words_of_slices_give_way(llama_base: Path, llama_a: Path) -> None:
    """Sources of slices get each model's weights; all else that weighed is gone."""
    sources = [
        {"model": str(path), "layer_range": [0, 4], "parameters": {"weight": 0.5}}
        for path in (llama_base, llama_a)
    ]
    document = {
        "merge_method": "lines",
        "base_model": str(llama_base),
        "slices": [{"sources": sources, "parameters": {"alpha": 0.6, "beta": 0.9}}],
        "parameters": {"alpha": 0.2, "beta": 0.3, "lambda": 2.0, "normalize": False},
    }
    token = {"source": {"kind": "model_token", "model": str(llama_a), "token": "w1"}}
    document["tokenizer"] = {"source": "base", "tokens": {"w1": token}}
    own = PerModel({str(llama_a): Coefficients((0.1, 0.2, 0.3, 0.4), 0.5)})
    written = own.recipe(document)
    assert written["parameters"] == {"normalize": False, "alpha": 1.0, "beta": 0.0}
    assert written["tokenizer"] == document["tokenizer"]
    (one,) = written["slices"]
    assert one["parameters"] == {}
    words = {"weight": "0.1, 0.2, 0.3, 0.4", "weight_outside": 0.5}
    assert [source["parameters"] for source in one["sources"]] == [{}, words]
    with LiveModel(document, quiet=True) as live:
        live.set_recipe(written)
        assert PerModel.of(live.planned, live.summary) == own


def test_adapters_and_aligned_vocabularies_have_gradients_of_their_own(tmp_path: Path) -> None:
    """A LoRA that stays one, and a model of another tokenizer: the differences of the loss."""
    document = recipe(tmp_path)
    base = document["base_model"]
    lora = models.lora(base, tmp_path / "lora", seed=5, targets=["c_attn"])
    more = models.gpt2(tmp_path / "more", dtype=torch.float64, seed=9, tokens=["extra"])
    document["models"] = [{"model": f"{base}+{lora}"}, {"model": str(more)}]
    document["tokenizer"] = {"source": "union"}
    with LiveModel(document, quiet=True) as live:
        start = PerModel.of(live.planned, live.summary)
        _, gradient = slope(live, start, batch(), loss)
        for place in (1, BLOCKS, BLOCKS + 1, 2 * BLOCKS + 1):

            def at(by: float, place: int = place) -> float:
                moved = [value + by * (n == place) for n, value in enumerate(start.numbers)]
                live.set_recipe(start.like(moved).recipe(live.recipe))
                with torch.no_grad():
                    return float(loss(live.model, batch()))

            want = (at(STEP) - at(-STEP)) / (2 * STEP)
            assert gradient.numbers[place] == pytest.approx(want, rel=1e-5, abs=1e-9), place
