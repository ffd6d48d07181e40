"""The recipe's words and mergekit's own rules, by the coefficient each tensor gets.

The base holds zeros and the fine-tuned model ones, so that an output tensor is its
coefficient.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ImmutableMap, ModelReference
from mergekit.merge_methods.task_adapter import TensorDictWrapper

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.errors import LinesError
from mergekit_lines.methods.registry import method_for
from mergekit_lines.methods.words import LINES_WORDS
from tests import models
from tests.e2e.runner import in_process


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return constant(models.llama(tmp_path_factory.mktemp("words") / "zeros"), 0.0)


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return constant(models.llama(tmp_path_factory.mktemp("words") / "ones"), 1.0)


def constant(path: Path, value: float) -> Path:
    def fill(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.fill_(value)

    return models.rewrite(path, fill)


def coefficients(out: Path) -> dict[str, float]:
    """Each tensor's one value."""
    result = {}
    for name, tensor in models.read(out).items():
        assert tensor.unique().numel() == 1, name
        result[name] = float(tensor.flatten()[0])
    return result


def merge(recipe: dict[str, Any], out: Path) -> dict[str, float]:
    return coefficients(in_process({"merge_method": "lines", **recipe}, out))


def layer(number: int, tensor: str = "mlp.up_proj.weight") -> str:
    return f"model.layers.{number}.{tensor}"


def test_outside_and_blocks(zeros: Path, ones: Path, tmp_path: Path) -> None:
    """Four blocks get α to α + β; outside tensors get α, or the number given."""
    plain = {"base_model": zeros, "models": [{"model": ones}]}
    got = merge({**plain, "parameters": {"alpha": 0.25, "beta": 0.75}}, tmp_path / "a")
    assert [got[layer(n)] for n in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert {got[n] for n in got if ".layers." not in n} == {0.25}
    got = merge(
        {**plain, "parameters": {"alpha": 0.25, "beta": 0.75, "outside": 0}}, tmp_path / "b"
    )
    assert {got[n] for n in got if ".layers." not in n} == {0.0}


def test_filters_and_gradients(zeros: Path, ones: Path, tmp_path: Path) -> None:
    """mergekit's filters choose by tensor name, its gradients by the place in the slice."""
    parameters = {
        "alpha": [{"filter": "self_attn", "value": 0.5}, {"value": 0.0}],
        "beta": [0.0, 0.75],
        "weight": [{"filter": "norm", "value": 2.0}, {"value": 1.0}],
    }
    recipe = {"base_model": zeros, "models": [{"model": ones}], "parameters": parameters}
    got = merge(recipe, tmp_path / "out")
    # β itself grows 0, 0.25, 0.5, 0.75 with the block, and x = 0, 1/3, 2/3, 1 multiplies it.
    expected = [0.0, 0.25 / 3, 1 / 3, 0.75]
    assert [got[layer(n)] for n in range(4)] == pytest.approx(expected)
    attention = [got[layer(n, "self_attn.q_proj.weight")] for n in range(4)]
    assert attention == pytest.approx([0.5 + value for value in expected])
    assert got[layer(3, "input_layernorm.weight")] == pytest.approx(1.5)


def test_wrap_by_filter(zeros: Path, ones: Path, tmp_path: Path) -> None:
    """Different wraps for different tensors, each with its own parameters."""
    parameters = {
        "wrap": [{"filter": "mlp", "value": "slerp"}, {"value": "task_arithmetic"}],
        "t": 0.5,
        "weight": 2.0,
        "alpha": 1.0,
        "beta": 0.0,
    }
    recipe = {"base_model": zeros, "models": [{"model": ones}], "parameters": parameters}
    got = merge(recipe, tmp_path / "out")
    # SLERP takes a zero vector for one at a right angle: sin(π/4) of the way.
    assert got[layer(1)] == pytest.approx(0.5**0.5)
    assert got[layer(1, "self_attn.q_proj.weight")] == pytest.approx(2.0)
    report = json.loads((tmp_path / "out" / "lines_report.json").read_text())
    assert report["wrap"] == ["slerp", "task_arithmetic"]


def test_a_frankenmerge_counts_the_blocks_of_the_output(
    zeros: Path, ones: Path, tmp_path: Path
) -> None:
    """Six output blocks from slices of four: x runs once from 0 to 1; slices may override."""

    def piece(first: int, last: int, **parameters: Any) -> dict[str, Any]:
        layers = {"layer_range": [first, last]}
        sources = [{"model": zeros, **layers}, {"model": ones, **layers}]
        return {"sources": sources, **({"parameters": parameters} if parameters else {})}

    recipe = {
        "base_model": zeros,
        "slices": [piece(0, 3), piece(1, 4, weight=2.0)],
        "parameters": {"alpha": 0.0, "beta": 1.0},
    }
    got = merge(recipe, tmp_path / "more")
    assert [got[layer(n)] for n in range(6)] == pytest.approx([0, 0.2, 0.4, 1.2, 1.6, 2.0])
    recipe["slices"] = [piece(1, 3)]
    got = merge(recipe, tmp_path / "fewer")
    assert [got[layer(n)] for n in range(2)] == pytest.approx([0, 1])
    assert layer(2) not in got


def test_modules_and_per_model_parameters(zeros: Path, ones: Path, tmp_path: Path) -> None:
    """``modules:`` overrides the recipe, and a model its own weight."""
    recipe = {
        "base_model": zeros,
        "modules": {
            "default": {
                "models": [{"model": ones, "parameters": {"weight": 3.0}}],
                "parameters": {"beta": 0.0},
            }
        },
        "parameters": {"alpha": 0.5, "beta": 0.9, "weight": 1.0},
    }
    got = merge(recipe, tmp_path / "out")
    assert set(got.values()) == {1.5}


def test_each_tower_by_itself_and_blocks(tmp_path: Path) -> None:
    """T5: encoder and decoder count alone; ``blocks`` leaves the encoder outside."""
    base = constant(models.t5(tmp_path / "base"), 0.0)
    tuned = constant(models.t5(tmp_path / "tuned"), 1.0)
    recipe: dict[str, Any] = {
        "base_model": base,
        "models": [{"model": tuned}],
        "parameters": {"alpha": 0.0, "beta": 1.0},
    }
    name = "{}.block.{}.layer.0.SelfAttention.q.weight"
    got = merge(recipe, tmp_path / "both")
    encoder = [got[name.format("encoder", n)] for n in range(3)]
    decoder = [got[name.format("decoder", n)] for n in range(4)]
    assert encoder == pytest.approx([0, 1 / 2, 1])
    assert decoder == pytest.approx([0, 1 / 3, 2 / 3, 1])
    recipe["parameters"] |= {"blocks": "decoder.block", "outside": 1.0}
    got = merge(recipe, tmp_path / "decoder")
    assert {got[name.format("encoder", n)] for n in range(3)} == {1.0}
    assert [got[name.format("decoder", n)] for n in range(4)] == pytest.approx(decoder)


def test_a_seed_keeps_all_its_digits() -> None:
    """A seed beyond the 53 bits of a float is taken as it stands."""
    (seed,) = (word for word in LINES_WORDS if word.name == "seed")
    assert seed.validate(2**60 + 1) == 2**60 + 1


def test_one_block_gets_alpha(tmp_path: Path) -> None:
    """A container of one block has x = 0."""
    base = constant(models.llama(tmp_path / "base", layers=1), 0.0)
    tuned = constant(models.llama(tmp_path / "tuned", layers=1), 1.0)
    recipe = {
        "base_model": base,
        "models": [{"model": tuned}],
        "parameters": {"alpha": 0.25, "beta": 0.5},
    }
    assert set(merge(recipe, tmp_path / "out").values()) == {0.25}


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    """A model without a stored head is written without one, and loads tied."""
    from transformers import AutoModelForCausalLM

    base = models.llama(tmp_path / "base", tied=True)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    recipe = {
        "merge_method": "lines",
        "base_model": base,
        "models": [{"model": tuned}],
        "parameters": {"alpha": 0.25, "beta": 0.5},
    }
    out = in_process(recipe, tmp_path / "out")
    assert "lm_head.weight" not in models.read(out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_union_tokenizer_equals_mergekits_rows(tmp_path: Path) -> None:
    """With a union of vocabularies every token's row is mergekit's row of that token."""
    from transformers import AutoTokenizer

    base = models.llama(tmp_path / "base")
    a = models.llama(tmp_path / "a", vocab=131, tokens=("x", "y", "z"), seed=5)
    recipe: dict[str, Any] = {
        "base_model": base,
        "models": [{"model": a}],
        "parameters": {"weight": 0.5},
        "tokenizer": {"source": "union"},
        "dtype": "float32",
    }
    stock = in_process({"merge_method": "task_arithmetic", **recipe}, tmp_path / "stock")
    recipe["parameters"] |= {"alpha": 1.0, "beta": 0.0}
    ours = in_process({"merge_method": "lines", **recipe}, tmp_path / "ours")
    vocabularies = [AutoTokenizer.from_pretrained(path).get_vocab() for path in (stock, ours)]
    assert set(vocabularies[0]) == set(vocabularies[1]) >= {"x", "y", "z"}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        want, got = models.read(stock)[name], models.read(ours)[name]
        for token, number in vocabularies[0].items():
            assert torch.allclose(want[number], got[vocabularies[1][token]], atol=1e-6), token


def lines_task(wrap: str, **values: Any) -> LinesTask:
    """A task as the planner makes it, for tensors that no tiny architecture holds."""
    base, other = (ModelReference.parse(name) for name in ("base", "other"))
    method = method_for(wrap)
    shared = {
        p.name: p.validate(p.default) for p in method.spec.shared_parameters if not p.required
    }
    per_input = {p.name: p.validate(p.default) for p in method.spec.input_parameters}
    return LinesTask(
        method_name=method.spec.name,
        gather_tensors=TensorDictWrapper(tensors=ImmutableMap({})),
        model_order=(base, other),
        base_model=base,
        output_weight=WeightInfo(name="tensor", optional=True),
        parameters={**shared, **values},
        input_parameters={base: per_input, other: per_input},
        coefficient=0.5,
        base_listed=False,
    )


def execute(task: LinesTask, base: torch.Tensor | None, other: torch.Tensor | None) -> Any:
    given = {"base": base, "other": other}
    return task.execute(
        {ModelReference.parse(name): t for name, t in given.items() if t is not None}
    )


@pytest.mark.parametrize("wrap", ["task_arithmetic", "ties", "dare_ties", "linear", "slerp"])
def test_scalars_and_empty_tensors(wrap: str) -> None:
    """0-d tensors are merged like any other, empty ones stay empty."""
    task = lines_task(wrap, **({"t": 1.0} if wrap == "slerp" else {}))
    got = execute(task, torch.tensor(1.0), torch.tensor(3.0))
    assert got.shape == ()
    assert float(got) == pytest.approx(2.0)
    assert execute(task, torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_integer_and_boolean_buffers_are_copied() -> None:
    """A buffer that all models agree on passes unscaled; one that differs is refused by name."""
    task = lines_task("ties")
    counter = torch.tensor(7, dtype=torch.int64)
    assert execute(task, counter, counter.clone()).equal(counter)
    mask = torch.tensor([True, False])
    assert execute(task, mask, mask.clone()).equal(mask)
    with pytest.raises(LinesError, match=r"tensor tensor: found torch\.int64 that differs"):
        execute(task, counter, counter + 1)


def test_optional_tensor_of_the_base_alone_is_kept() -> None:
    """An optional tensor that only the base holds is written as it is."""
    base = torch.randn(3)
    assert execute(lines_task("task_arithmetic"), base, None).equal(base)


def test_not_contiguous_inputs() -> None:
    """Transposed inputs give what contiguous ones give."""
    base, other = torch.randn(4, 6), torch.randn(4, 6)
    task = lines_task("ties")
    want = execute(task, base, other)
    got = execute(task, base.t().contiguous().t(), other.t().contiguous().t())
    assert got.equal(want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_inputs(value: float) -> None:
    """NaN and infinity are refused with tensor and model, or carried when allowed."""
    bad = torch.ones(4)
    bad[2] = value
    with pytest.raises(LinesError, match="tensor tensor of model other: found NaN or infinity"):
        execute(lines_task("task_arithmetic"), torch.zeros(4), bad)
    allowed = lines_task("task_arithmetic", allow_nonfinite=True)
    got = execute(allowed, torch.zeros(4), bad)
    assert got[[0, 1, 3]].tolist() == [0.5] * 3
    assert not torch.isfinite(got[2])
