"""What a merge writes, against oracles that share no code with it.

The oracles: mergekit's own methods at ``dtype: float32``, and the paper's formula in float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mergekit.merge_methods import get, registered_methods
from mergekit.merge_methods.base import BasePolicy, PerInputValues, TensorGroup
from packaging.version import Version

from mergekit_lines.host.names import OWN
from mergekit_lines.merges.state_dicts import merge_group
from mergekit_lines.methods.registry import method_for
from mergekit_lines.methods.wrapped import LinesMethod, Scaling
from tests import models
from tests.e2e.runner import in_process

BOUND = 1e-6  # of max|tensor|


def recipe(method: str, base: Path, *others: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": other} for other in others],
        "parameters": parameters,
        "dtype": "float32",
    }


def assert_equal(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    assert set(got) == set(want)
    for name in want:
        assert models.max_error_ratio(got[name], want[name]) <= BOUND, name


def test_fixed_coefficients_equal_mergekits_lambda_gradient(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """α and β fixed give what task_arithmetic gives with ``lambda: [α, α+β]``."""
    lines = recipe("lines", llama_base, llama_a, llama_b, alpha=0.2, beta=0.7, weight=0.6)
    stock = recipe("task_arithmetic", llama_base, llama_a, llama_b, weight=0.6)
    stock["parameters"]["lambda"] = [0.2, 0.9]
    got = models.read(in_process(lines, tmp_path / "lines"))
    want = models.read(in_process(stock, tmp_path / "stock"))
    assert_equal(got, want)


# Per architecture, written by hand: the pattern of a block's tensors, and the block counts.
PAPER_BLOCKS: dict[str, list[tuple[str, int]]] = {
    "llama": [(r"model\.layers\.(\d+)\.", 4)],
    "gpt2": [(r"transformer\.h\.(\d+)\.", 4)],
    "mixtral": [(r"model\.layers\.(\d+)\.", 3)],
    "qwen2": [(r"model\.layers\.(\d+)\.", 4)],
    "gemma2": [(r"model\.layers\.(\d+)\.", 4)],
    "bert_seqcls": [(r"bert\.encoder\.layer\.(\d+)\.", 4)],
    "t5": [(r"encoder\.block\.(\d+)\.", 3), (r"decoder\.block\.(\d+)\.", 4)],
}


def line_scaling(
    vector: Mapping[str, torch.Tensor], alpha: float, beta: float, blocks: list[tuple[str, int]]
) -> dict[str, torch.Tensor]:
    """The paper's pseudo-code (appendix A), written out again for float64 task vectors."""
    scaled = {}
    for name, delta in vector.items():
        coefficient = alpha
        for pattern, count in blocks:
            match = re.match(pattern, name)
            if match:
                coefficient = alpha + beta * (int(match.group(1)) / (count - 1))
        scaled[name] = coefficient * delta
    return scaled


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's state as transformers loads it (it fuses the experts of a Mixtral)."""
    name = transformers.AutoConfig.from_pretrained(path).architectures[0]
    model, problems = getattr(transformers, name).from_pretrained(path, output_loading_info=True)
    assert not problems["missing_keys"]
    assert not problems["unexpected_keys"]
    return {key: tensor for key, tensor in model.state_dict().items() if tensor.is_floating_point()}


@pytest.mark.parametrize("architecture", PAPER_BLOCKS)
def test_paper_pseudo_code_in_float64(architecture: str, tmp_path: Path) -> None:
    """The merge of two models equals the paper's pseudo-code in float64."""
    if architecture == "mixtral" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("mergekit 0.1.5 cannot convert the experts of older transformers")
    base = models.ARCHITECTURES[architecture](tmp_path / "base")
    a = models.finetuned(base, tmp_path / "a", seed=1)
    b = models.finetuned(base, tmp_path / "b", seed=2)
    out = in_process(recipe("lines", base, a, b, alpha=0.3, beta=0.5), tmp_path / "out")
    zero, one, two = (loaded(path) for path in (base, a, b))
    vector = {
        name: (one[name].double() - zero[name].double())
        + (two[name].double() - zero[name].double())
        for name in zero
    }
    scaled = line_scaling(vector, 0.3, 0.5, PAPER_BLOCKS[architecture])
    want = {name: zero[name].double() + scaled[name] for name in zero}
    assert_equal(loaded(out), want)


def test_post_processing_equals_the_paper(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """gamma gives θ_0 + (γ + (1−γ)·x)·τ, and alpha with beta the same where they say the same."""
    zero, one = models.read(llama_base), models.read(llama_a)
    vector = {name: one[name].double() - zero[name].double() for name in zero}
    scaled = line_scaling(vector, 0.3, 0.7, PAPER_BLOCKS["llama"])
    want = {name: zero[name].double() + scaled[name] for name in zero}
    by_gamma = recipe("lines_postprocess", llama_base, llama_a, gamma=0.3)
    by_two = recipe("lines_postprocess", llama_base, llama_a, alpha=0.3, beta=0.7)
    assert_equal(models.read(in_process(by_gamma, tmp_path / "gamma")), want)
    assert_equal(models.read(in_process(by_two, tmp_path / "two")), want)


def test_real_adapter_is_edited_like_the_merged_model(
    llama_base: Path, adapter: Path, tmp_path: Path
) -> None:
    """``base+adapter`` equals the same edit on what peft's merge_and_unload gives."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(llama_base)
    whole = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()
    one = {name: tensor.double() for name, tensor in whole.state_dict().items()}
    zero = {name: tensor.double() for name, tensor in models.read(llama_base).items()}
    scaled = line_scaling(
        {name: one[name] - zero[name] for name in zero}, 0.1, 0.9, PAPER_BLOCKS["llama"]
    )
    edit = recipe("lines_postprocess", llama_base, gamma=0.1)
    edit["models"] = [{"model": f"{llama_base}+{adapter}"}]
    out = in_process(edit, tmp_path / "out")
    assert_equal(models.read(out), {name: zero[name] + scaled[name] for name in zero})
    assert not list(tmp_path.glob("*adapters*"))


@pytest.mark.parametrize(
    ("schedule", "third"),
    [("linear", 2 / 3), ("sqrt", (2 / 3) ** 0.5), ("quadratic", 4 / 9), (3, 8 / 27)],
)
def test_schedules(
    schedule: object, third: float, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """The third of four blocks gets α + β·x^p (C.3)."""
    lines = recipe("lines", llama_base, llama_a, alpha=0.1, beta=0.8, schedule=schedule)
    out = models.read(in_process(lines, tmp_path / "out"))
    name = "model.layers.2.mlp.up_proj.weight"
    zero, one = models.read(llama_base)[name].double(), models.read(llama_a)[name].double()
    want = zero + (0.1 + 0.8 * third) * (one - zero)
    assert models.max_error_ratio(out[name], want) <= BOUND


# Deterministic methods, with what their recipe needs beside the models. arcee_fusion draws only
# for tensors of more than a million entries.
WRAPS: dict[str, tuple[int, dict[str, Any]]] = {
    "task_arithmetic": (2, {"weight": 0.7, "normalize": True}),
    "ties": (2, {"weight": 1.0, "density": 0.4}),
    "breadcrumbs": (2, {"weight": 0.5, "density": 0.8, "gamma": 0.05}),
    "breadcrumbs_ties": (2, {"weight": 0.5, "density": 0.8}),
    "sce": (2, {"select_topk": 0.5}),
    "model_stock": (2, {}),
    "slerp": (1, {"t": 0.3}),
    "nuslerp": (2, {"weight": 0.5}),
    "multislerp": (2, {"weight": 0.5}),
    "karcher": (2, {}),
    "linear": (2, {"weight": 0.5}),
    "arcee_fusion": (1, {}),
    "nearswap": (1, {"t": 0.001}),
    "ram": (2, {}),
    "ramplus_tl": (2, {"alpha": 0.3}),
}
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}


def test_every_registered_method_is_in_the_tables() -> None:
    """A method that a new mergekit brings has to be put in one of the tables."""
    known = {m.spec.name for m in registered_methods() if not isinstance(m, LinesMethod)}
    assert known - {"lines", "lines_postprocess", "passthrough", *OWN} == set(WRAPS) | RANDOM


@pytest.mark.parametrize("wrap", WRAPS)
def test_alpha_one_beta_zero_is_the_wrapped_method(
    wrap: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """With alpha 1 and beta 0 a recipe gives what mergekit's method gives at float32."""
    count, parameters = WRAPS[wrap]
    others = [llama_a, llama_b][:count]
    stock = recipe(wrap, llama_base, *others, **parameters)
    if get(wrap).spec.contract.base == BasePolicy.IGNORED:
        del stock["base_model"]  # else mergekit makes it one of the models
    ours = {f"wrap_{k}" if k == "alpha" else k: v for k, v in parameters.items()}
    lines = recipe("lines", llama_base, *others, wrap=wrap, alpha=1.0, beta=0.0, **ours)
    want = models.read(in_process(stock, tmp_path / "stock"))
    assert_equal(models.read(in_process(lines, tmp_path / "lines")), want)


def test_a_listed_base_is_one_of_the_models_of_a_base_ignoring_wrap(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """``linear`` around a base that the recipe lists averages it in, as mergekit does."""
    lines = recipe(
        "lines", llama_base, llama_base, llama_a, wrap="linear", alpha=1.0, beta=0.0, weight=1.0
    )
    out = models.read(in_process(lines, tmp_path / "out"))
    zero, one = models.read(llama_base), models.read(llama_a)
    assert_equal(out, {name: (zero[name].double() + one[name].double()) / 2 for name in zero})


def _source(model: Path, first: int = 0, last: int = 4, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, last], "parameters": parameters}


def _entry(model: Path, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "parameters": parameters}


# Where mergekit lets a recipe say a parameter: a method, and what differs from a plain recipe.
BY_MLP = [{"filter": "mlp", "value": [0.2, 0.9]}, {"value": 0.3}]
PLACES: dict[str, Callable[[Path, Path, Path], tuple[str, dict[str, Any]]]] = {
    "filters and gradients of sources": lambda base, a, b: (
        "ties",
        {
            "slices": [
                {
                    "sources": [
                        _source(base),
                        _source(a, density=[1, 0.5, 0.2], weight=[0, 1]),
                        _source(b, density=0.5, weight=BY_MLP),
                    ]
                }
            ],
            "parameters": {"normalize": True},
        },
    ),
    "slices of a frankenmerge": lambda base, a, b: (
        "task_arithmetic",
        {
            "slices": [
                {
                    "sources": [
                        _source(base, 0, 3),
                        _source(a, 0, 3, weight=0.3),
                        _source(b, 0, 3),
                    ],
                    "parameters": {"weight": 0.8, "lambda": [0.1, 0.9]},
                },
                {
                    "sources": [_source(base, 1), _source(a, 1, weight=[1, 0]), _source(b, 1)],
                    "parameters": {"weight": 0.4},
                },
            ]
        },
    ),
    "modules over the recipe": lambda base, a, b: (
        "breadcrumbs",
        {
            "modules": {
                "default": {
                    "models": [_entry(a, weight=[0.1, 0.7], density=0.9), _entry(b)],
                    "parameters": {"weight": 0.5, "gamma": 0.02},
                }
            },
            "parameters": {"density": 0.7},
        },
    ),
    "a gradient by filter over models": lambda base, a, b: (
        "nuslerp",
        {"models": [_entry(a, weight=BY_MLP), _entry(b)], "parameters": {"weight": 0.5}},
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_parameters_are_found_where_mergekit_finds_them(
    place: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """The wrapped method's parameters of models, slices and modules count as in mergekit."""
    method, changes = PLACES[place](llama_base, llama_a, llama_b)
    stock = recipe(method, llama_base) | changes
    if "models" not in changes:
        del stock["models"]
    parameters = {**stock["parameters"], "wrap": method, "alpha": 1.0, "beta": 0.0}
    lines = {**stock, "merge_method": "lines", "parameters": parameters}
    want = models.read(in_process(stock, tmp_path / "stock"))
    assert_equal(models.read(in_process(lines, tmp_path / "lines")), want)


def _draws(merge: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    return torch.stack([merge(seed) for seed in range(count)]).double()


@pytest.mark.parametrize("wrap", sorted(RANDOM))
def test_random_wraps_equal_mergekits_in_law(wrap: str) -> None:
    """Over 400 draws, mean and spread of every entry agree with mergekit's own draws."""
    generator = torch.Generator().manual_seed(0)
    base, one, two = (torch.randn(6, 40, generator=generator) for _ in range(3))
    group = TensorGroup.from_tensors([base, one, two], ids=["0", "1", "2"], base_index=0, name="w")
    method, stock = method_for(wrap), get(wrap)
    settings: dict[str, Any] = {"density": 0.5, "weight": 0.6}

    def ours(seed: int) -> torch.Tensor:
        values: dict[str, Any] = {p.name: p.default for p in stock.spec.shared_parameters}
        for p in stock.spec.input_parameters:
            value = settings.get(p.name, p.default)
            values[p.name] = PerInputValues([("1", value), ("2", value)])
        values["allow_nonfinite"] = False
        return merge_group(method, group, values, Scaling(1.0, seed), None, None)

    def mergekits(seed: int) -> torch.Tensor:
        torch.manual_seed(10_000 + seed)
        return stock((group,), parameters=settings)[0]

    count = 400
    got, want = _draws(ours, count), _draws(mergekits, count)
    error = (got.var(0) / count + want.var(0) / count).sqrt().clamp(min=1e-9)
    score = (got.mean(0) - want.mean(0)).abs() / error
    # 240 entries: a standard score above 5 has a chance of about 1e-4 in all.
    assert score.max() < 5
    assert torch.allclose(got.std(0).mean(), want.std(0).mean(), rtol=0.05)
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize(
    "parameters",
    [
        {"wrap": "ties", "density": 0.5},
        {"wrap": "task_arithmetic", "weight": 0.7},
        {"wrap": "dare_ties", "density": 0.5, "seed": 3},
        {"wrap": "della_linear", "density": 0.5, "epsilon": 0.1},
        {"wrap": "karcher"},  # without a kernel of ours, like the next one
        {"wrap": "nuslerp"},
    ],
    ids=lambda parameters: parameters["wrap"],
)
def test_bf16_bytes_are_the_float32_result_rounded_once(
    parameters: dict[str, Any],
    llama_bf16_base: Path,
    llama_bf16_a: Path,
    llama_bf16_b: Path,
    tmp_path: Path,
) -> None:
    """A bf16 output equals our own ``out_dtype: float32`` output rounded by torch."""
    lines = recipe("lines", llama_bf16_base, llama_bf16_a, llama_bf16_b, beta=0.5, **parameters)
    lines["dtype"] = "bfloat16"
    plain = models.read(in_process(lines, tmp_path / "bf16"))
    exact = models.read(in_process({**lines, "out_dtype": "float32"}, tmp_path / "fp32"))
    for name, tensor in exact.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(plain[name], tensor.to(torch.bfloat16)), name
    assert any(not torch.equal(exact[n], exact[n].bfloat16().float()) for n in exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_storage(dtype: torch.dtype, tmp_path: Path) -> None:
    """The output keeps the inputs' dtype and is the float64 formula rounded to it once."""
    base = models.llama(tmp_path / "base", dtype=dtype)
    one = models.finetuned(base, tmp_path / "one", seed=1, scale=0.1)
    lines = recipe("lines", base, one, alpha=0.5, beta=0.25)
    del lines["dtype"]
    out = models.read(in_process(lines, tmp_path / "out"))
    zero, tuned = models.read(base), models.read(one)
    name = "model.layers.3.self_attn.q_proj.weight"
    want = zero[name].double() + 0.75 * (tuned[name].double() - zero[name].double())
    assert out[name].dtype == dtype
    # Inputs of 16 bits make the fp32 arithmetic exact up to its last bits: at most a tie differs.
    differs = (out[name] != want.to(dtype)).double().mean()
    assert differs <= (0.05 if dtype == torch.float64 else 0.001)
    assert (
        models.max_error_ratio(out[name], want)
        <= {
            torch.float16: 2**-11,
            torch.bfloat16: 2**-8,
            torch.float64: 1e-15,
        }[dtype]
    )
