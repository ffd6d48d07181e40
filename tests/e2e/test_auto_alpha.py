"""``alpha: auto`` against Eq. 2 written out again over mergekit's own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process


def recipe(method: str, base: Path, *others: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": other} for other in others],
        "parameters": parameters,
        "dtype": "float32",
    }


def alpha_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "lines_report.json").read_text(encoding="utf-8"))["alpha"]


def equation_2(
    base: Path, others: list[Path], merged: Path, norm: str, skip: tuple[str, ...] = ()
) -> float:
    """α = (1/N)·‖Σ τ_t‖/‖τ_MTL‖ over all tensors, in float64."""
    zero, made = models.read(base), models.read(merged)
    tuned = [models.read(path) for path in others]
    total, task = [], []
    for name in made:
        if name in skip:
            continue
        start = zero[name].double()
        total.append(sum(one[name].double() - start for one in tuned).flatten())
        task.append((made[name].double() - start).flatten())
    order = 1 if norm == "l1" else 2
    up, down = (torch.linalg.vector_norm(torch.cat(x), order) for x in (total, task))
    return float(up / down) / len(others)


WRAPS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3, "weight": 1.0},
    "task_arithmetic": {"weight": 0.7, "normalize": True},
    "breadcrumbs": {"density": 0.8, "weight": 0.5},
    "model_stock": {},
}


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_equals_equation_2(
    wrap: str, norm: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """The α found is the ratio of the norms over mergekit's own merge of the same recipe."""
    others = [llama_a, llama_b]
    stock = in_process(recipe(wrap, llama_base, *others, **WRAPS[wrap]), tmp_path / "stock")
    lines = recipe("lines", llama_base, *others, wrap=wrap, beta=0.3, norm=norm, **WRAPS[wrap])
    found = alpha_of(in_process(lines, tmp_path / "lines"))
    assert found["value"] == pytest.approx(equation_2(llama_base, others, stock, norm), rel=1e-5)
    assert (found["models"], found["norm"], found["source"]) == (2, norm, "Eq. 2")


@pytest.mark.parametrize(
    ("parameters", "alpha"),
    [({}, 1 / 2), ({"weight": 0.25}, 2.0), ({"weight": -0.5, "lambda": 4.0}, 1 / 4)],
)
def test_closed_form_reads_no_weight(
    parameters: dict[str, Any],
    alpha: float,
    llama_base: Path,
    llama_a: Path,
    llama_b: Path,
    tmp_path: Path,
) -> None:
    """Plain task arithmetic takes 1/(N·|w|·|λ|), which the norms themselves agree with."""
    others = [llama_a, llama_b]
    lines = recipe("lines", llama_base, *others, beta=0.3, **parameters)
    found = alpha_of(in_process(lines, tmp_path / "lines"))
    assert found["value"] == alpha
    assert found["source"].startswith("Eq. 2, closed form")
    assert found["tau_sum"] is None
    stock = recipe("task_arithmetic", llama_base, *others, **{"weight": 1.0, **parameters})
    merged = in_process(stock, tmp_path / "stock")
    assert alpha == pytest.approx(equation_2(llama_base, others, merged, "l1"), rel=1e-5)


def test_unequal_weights_have_no_closed_form(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """With one weight per model the norms are read."""
    lines = recipe("lines", llama_base, beta=0.3)
    stock = recipe("task_arithmetic", llama_base)
    for each in (lines, stock):
        each["models"] = [
            {"model": llama_a, "parameters": {"weight": 1.0}},
            {"model": llama_b, "parameters": {"weight": 0.3}},
        ]
    found = alpha_of(in_process(lines, tmp_path / "lines"))
    merged = in_process(stock, tmp_path / "stock")
    want = equation_2(llama_base, [llama_a, llama_b], merged, "l1")
    assert found["value"] == pytest.approx(want, rel=1e-5)
    assert found["tau_sum"] is not None


def test_a_tied_tensor_counts_once(tmp_path: Path) -> None:
    """A head that is stored beside the embedding it is tied to is left out of the norms."""
    base = models.llama(tmp_path / "base", tied=True)
    paths = [base]
    for seed in (1, 2):
        paths.append(models.finetuned(base, tmp_path / f"m{seed}", seed=seed))
    for path in paths:

        def store_head(tensors: dict[str, torch.Tensor]) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

        models.rewrite(path, store_head)
    stock = in_process(recipe("ties", *paths, density=0.5, weight=1.0), tmp_path / "stock")
    lines = recipe("lines", *paths, wrap="ties", density=0.5, beta=0.3)
    found = alpha_of(in_process(lines, tmp_path / "lines"))
    once = equation_2(base, paths[1:], stock, "l1", skip=("lm_head.weight",))
    twice = equation_2(base, paths[1:], stock, "l1")
    assert abs(once - twice) > 1e-4
    assert found["value"] == pytest.approx(once, rel=1e-5)


def test_a_random_wrap_draws_the_same_in_calibration_and_merge(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """α of DARE is the ratio of norms of the very task vector that is then scaled."""
    others = [llama_a, llama_b]
    shared = {"wrap": "dare_linear", "density": 0.5, "weight": [0.4, 0.9], "seed": 11}
    plain = recipe("lines", llama_base, *others, alpha=1.0, beta=0.0, **shared)
    merged = in_process(plain, tmp_path / "plain")
    auto = recipe("lines", llama_base, *others, beta=0.3, **shared)
    found = alpha_of(in_process(auto, tmp_path / "auto"))
    want = equation_2(llama_base, others, merged, "l1")
    assert found["value"] == pytest.approx(want, rel=1e-5)


def test_slices_of_different_models_have_no_alpha(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Eq. 2 needs the same models for every tensor."""

    def piece(model: Path, first: int, last: int) -> dict[str, Any]:
        layers = {"layer_range": [first, last]}
        return {"sources": [{"model": llama_base, **layers}, {"model": model, **layers}]}

    lines = recipe("lines", llama_base, beta=0.3)
    del lines["models"]
    lines["slices"] = [piece(llama_a, 0, 2), piece(llama_b, 2, 4)]
    with pytest.raises(LinesError, match="from the same models"):
        in_process(lines, tmp_path / "out")
    assert not (tmp_path / "out").exists()
