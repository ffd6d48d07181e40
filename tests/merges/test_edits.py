"""Edits of tensors at hand, against the formula in float64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import mergekit_lines
from mergekit_lines import LinesError, edit_state_dict, scale_task_vector

Tensors = dict[str, torch.Tensor]
MODULES = ("q_proj", "k_proj", "up_proj", "norm")


def state(seed: int, *, blocks: int = 3, dtype: torch.dtype = torch.float32) -> Tensors:
    """A small decoder: an embedding, ``blocks`` blocks of four weights, a head."""
    generator = torch.Generator().manual_seed(seed)
    names = ["model.embed.weight"]
    names += [f"model.layers.{i}.{module}.weight" for i in range(blocks) for module in MODULES]
    names += ["head.weight"]
    return {name: torch.randn(5, 4, generator=generator).to(dtype) for name in names}


def coefficient(name: str, alpha: float, beta: float, blocks: int = 3, power: float = 1) -> float:
    """Eq. 1 of the paper, by hand."""
    parts = name.split(".")
    if parts[1] != "layers":
        return alpha
    return alpha + beta * (int(parts[2]) / (blocks - 1)) ** power


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got.double() - want).abs().max() <= 1e-6 * want.abs().max()


def refused(call: Any) -> str:
    with pytest.raises(LinesError) as caught:
        call()
    return str(caught.value)


# --- scale_task_vector -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "power", "outside"),
    [
        ({}, 1.0, 0.2),
        ({"schedule": "sqrt"}, 0.5, 0.2),
        ({"schedule": "quadratic", "outside": 0.0}, 2.0, 0.0),
        ({"schedule": 1.5, "outside": "0.75"}, 1.5, 0.75),
    ],
)
def test_task_vector_is_scaled_by_equation_1(
    words: dict[str, Any], power: float, outside: float
) -> None:
    """λ(ℓ)·τ for blocks and the coefficient of ``outside`` elsewhere."""
    vector = state(1)
    scaled = scale_task_vector(vector, alpha=0.2, beta=0.6, **words)
    assert list(scaled) == list(vector)
    for name, tensor in vector.items():
        inside = coefficient(name, 0.2, 0.6, power=power)
        want = inside if "layers" in name else outside
        assert_close(scaled[name], want * tensor.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_task_vector_is_rounded_once(dtype: torch.dtype) -> None:
    """The result is the product in fp32 (float64 for float64) rounded to the input's dtype."""
    vector = state(1, dtype=dtype)
    scaled = scale_task_vector(vector, alpha=0.1, beta=0.7)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor in vector.items():
        factor = torch.tensor(coefficient(name, 0.1, 0.7), dtype=wide)
        assert scaled[name].dtype == dtype
        assert torch.equal(scaled[name], (tensor.to(wide) * factor).to(dtype))


def test_task_vector_of_a_part_of_a_model() -> None:
    """``num_blocks`` tells the count, and ``blocks`` which containers count."""
    part = {"decoder.layers.3.q.weight": torch.ones(2), "encoder.layers.3.q.weight": torch.ones(2)}
    scaled = scale_task_vector(part, alpha=0.0, beta=1.0, num_blocks=7, blocks="decoder.layers")
    assert scaled["decoder.layers.3.q.weight"].tolist() == [0.5, 0.5]
    assert scaled["encoder.layers.3.q.weight"].tolist() == [0.0, 0.0]


def test_task_vector_keeps_ties_and_inputs() -> None:
    """A tensor under two names stays one tensor; the inputs are left as they were."""
    vector = state(1)
    vector["head.weight"] = vector["model.embed.weight"]
    before = {name: tensor.clone() for name, tensor in vector.items()}
    scaled = scale_task_vector(vector, alpha=0.5, beta=0.5)
    assert scaled["head.weight"] is scaled["model.embed.weight"]
    assert all(torch.equal(vector[name], before[name]) for name in vector)
    vector["model.layers.2.norm.weight"] = vector["model.layers.0.norm.weight"]
    assert "wanted one" in refused(lambda: scale_task_vector(vector, alpha=0.5, beta=0.5))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"alpha": "auto"}, "parameters.alpha: found 'auto', wanted a finite number."),
        ({"alpha": True}, "parameters.alpha: found True (a boolean), wanted a finite number."),
        ({"beta": float("nan")}, "parameters.beta: found nan, wanted a finite number."),
        ({"schedule": "lineer"}, "Did you mean 'linear'?"),
        ({"outside": "beta"}, "parameters.outside: found 'beta', wanted `alpha` or a finite num"),
        ({"blocks": ["model.layers"]}, "parameters.blocks: found ['model.layers'], wanted ONE te"),
        ({"blocks": "model.layer"}, "Did you mean 'model.layers'?"),
        ({"num_blocks": 0}, "parameters.num_blocks: found 0, wanted a whole number of at least 1"),
        ({"num_blocks": 2}, "num_blocks is 2, but 'model.layers' has a block of index 2"),
    ],
)
def test_task_vector_refuses_wrong_words(words: dict[str, Any], text: str) -> None:
    """The words are a recipe's, and so are the errors."""
    assert text in refused(
        lambda: scale_task_vector(state(1), **{"alpha": 0.1, "beta": 0.2, **words})
    )


@pytest.mark.parametrize(
    ("vector", "text"),
    [
        ({"ids": torch.arange(3)}, "tensors ids: found dtype torch.int64, wanted fp16"),
        ({"w": 1.0}, "task_vector: found no tensor under w."),
        ([torch.ones(1)], "task_vector: found list, wanted tensors by name"),
        ({"w": torch.tensor([float("nan")])}, "tensor w: found NaN or infinity"),
        ({"w": torch.tensor([6e4]).half()}, "tensor w: found a result too large"),
    ],
)
def test_task_vector_refuses_what_it_cannot_scale(vector: Any, text: str) -> None:
    """Integers, things that are no tensors, and values that are not finite."""
    assert text in refused(lambda: scale_task_vector(vector, alpha=2.0, beta=0.0))


# --- edit_state_dict ---------------------------------------------------------------------


def test_edit_is_the_formula_in_float64() -> None:
    """θ_0 + λ(ℓ)·(θ - θ_0), with gamma for alpha and beta; the inputs are left as they were."""
    base, tuned = state(1), state(2)
    before = {name: tensor.clone() for name, tensor in (base | tuned).items()}
    edited = edit_state_dict(base, tuned, gamma=0.3)
    assert list(edited) == list(tuned)
    for name in tuned:
        change = tuned[name].double() - base[name].double()
        assert_close(edited[name], base[name].double() + coefficient(name, 0.3, 0.7) * change)
        assert torch.equal(tuned[name], before[name])
    same = edit_state_dict(base, tuned, alpha=0.3, beta=0.7)
    assert all(torch.equal(edited[name], same[name]) for name in edited)


def test_edit_keeps_ties_buffers_and_layout() -> None:
    """Tied tensors stay one object, integers are copied, results are contiguous and own theirs."""
    base, tuned = state(1), state(2)
    for model in (base, tuned):
        model["head.weight"] = model["model.embed.weight"]
        model["ids"] = torch.arange(4)
        model["model.layers.0.q_proj.weight"] = model["model.layers.0.q_proj.weight"].t()
        model["empty"] = torch.empty(0, 3)
    edited = edit_state_dict(base, tuned, gamma=0.5)
    assert edited["head.weight"] is edited["model.embed.weight"]
    assert torch.equal(edited["ids"], tuned["ids"])
    assert all(tensor.is_contiguous() for tensor in edited.values())
    held = {tensor.data_ptr() for model in (base, tuned) for tensor in model.values()} - {0}
    assert not held & {tensor.data_ptr() for tensor in edited.values()}
    base["head.weight"] = base["head.weight"].clone()  # an equal copy is as good as a tie
    again = edit_state_dict(base, tuned, gamma=0.5)
    assert again["head.weight"] is again["model.embed.weight"]


def test_edit_takes_parameters_of_modules() -> None:
    """A module's state with gradients on gives plain tensors."""
    base = {name: torch.nn.Parameter(tensor) for name, tensor in state(1).items()}
    tuned = {name: torch.nn.Parameter(tensor) for name, tensor in state(2).items()}
    edited = edit_state_dict(base, tuned, gamma=0.5)
    assert not any(tensor.requires_grad for tensor in edited.values())


def _broken(edit: Any) -> tuple[Tensors, Tensors]:
    base, tuned = state(1), state(2)
    edit(base, tuned)
    return base, tuned


def _rename(base: Tensors, tuned: Tensors) -> None:
    tuned["haed.weight"] = tuned.pop("head.weight")


def _reshape(base: Tensors, tuned: Tensors) -> None:
    tuned["head.weight"] = torch.ones(6, 4)


def _buffer(base: Tensors, tuned: Tensors) -> None:
    base["ids"], tuned["ids"] = torch.arange(3), torch.arange(3) + 1


def _kind(base: Tensors, tuned: Tensors) -> None:
    tuned["head.weight"] = tuned["head.weight"].int()


def _fp8(base: Tensors, tuned: Tensors) -> None:
    tuned["head.weight"] = tuned["head.weight"].to(torch.float8_e4m3fn)


def _nan(base: Tensors, tuned: Tensors) -> None:
    tuned["head.weight"][0, 0] = float("nan")


def _untied(base: Tensors, tuned: Tensors) -> None:
    tuned["head.weight"] = tuned["model.embed.weight"]


def _tied_blocks(base: Tensors, tuned: Tensors) -> None:
    for model in (base, tuned):
        model["model.layers.2.norm.weight"] = model["model.layers.0.norm.weight"]


@pytest.mark.parametrize(
    ("edit", "texts"),
    [
        (_rename, ("finetuned: holds tensors that base lacks (haed.weight)", "'head.weight'?")),
        (_rename, ("base: holds tensors that finetuned lacks (head.weight)", "'haed.weight'?")),
        (_reshape, ("tensors head.weight: found float32 (5, 4)", "float32 (6, 4)", "one shape")),
        (_buffer, ("tensors ids: found int64 (3,)", "wanted the same integers in both")),
        (_kind, ("tensors head.weight: found float32", "and int32", "floating-point weights")),
        (_fp8, ("tensor head.weight: found dtype torch.float8_e4m3fn, wanted fp16",)),
        (_nan, ("tensor head.weight", "found NaN or infinity", "allow_nonfinite: true")),
        (_untied, ("model.embed.weight and head.weight", "two that differ in the base")),
        (_tied_blocks, ("model.layers.0.norm.weight and model.layers.2", "0.3 and 1, wanted one")),
    ],
)
def test_edit_refuses_models_that_do_not_fit(edit: Any, texts: tuple[str, ...]) -> None:
    """What differs between the models is named, with what was found and what is wanted."""
    base, tuned = _broken(edit)
    error = refused(lambda: edit_state_dict(base, tuned, gamma=0.3))
    for text in texts:
        assert text in error


def test_edit_carries_nonfinite_values_on_request() -> None:
    """``allow_nonfinite`` lets NaN through where it is."""
    base, tuned = _broken(_nan)
    edited = edit_state_dict(base, tuned, gamma=0.3, allow_nonfinite=True)
    assert edited["head.weight"].isnan().nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({}, "parameters.gamma: found nothing, wanted gamma"),
        ({"alpha": 0.5}, "parameters.gamma: found nothing, wanted gamma"),
        ({"gamma": 0.5, "beta": 0.5}, "parameters.gamma: found together with alpha or beta"),
        ({"alpha": "auto", "beta": 0.5}, "lines_postprocess sees one model"),
        ({"gamma": 0.5, "allow_nonfinite": 1}, "parameters.allow_nonfinite: found 1, wanted true"),
        ({"gamma": 0.5, "schedule": 0}, "parameters.schedule: found 0, wanted linear"),
    ],
)
def test_edit_refuses_wrong_words(words: dict[str, Any], text: str) -> None:
    """The words are those of ``lines_postprocess``, and so are the errors."""
    assert text in refused(lambda: edit_state_dict(state(1), state(2), **words))


def test_buffers_count_for_the_depth() -> None:
    """A block that holds integers only is a block: the others keep their places."""
    names = [f"layers.{n}.mlp.weight" for n in range(2)]
    base: dict[str, torch.Tensor] = {name: torch.zeros(2) for name in names}
    base["layers.2.mlp.index"] = torch.arange(2)
    tuned = {name: t + 1 if t.is_floating_point() else t.clone() for name, t in base.items()}
    edited = mergekit_lines.edit_state_dict(base, tuned, alpha=0.0, beta=1.0)
    assert [float(edited[name][0]) for name in names] == [0.0, 0.5]


@pytest.mark.parametrize("bad", [{1: torch.ones(2)}, {"a.0.b.w": torch.ones(2).to_sparse()}])
def test_odd_state_dicts_are_refused(bad: dict[str, torch.Tensor]) -> None:
    """Names that are no texts and tensors that are not dense end with a sentence."""
    with pytest.raises(LinesError, match="wanted"):
        mergekit_lines.scale_task_vector(bad, alpha=0.1, beta=0.1)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_other_libraries(number: Any) -> None:
    """A real number is a number, whoever made it; a boolean of numpy is none."""
    want = edit_state_dict(state(1), state(2), alpha=0.5, beta=0.5, num_blocks=3)
    got = edit_state_dict(state(1), state(2), alpha=number, beta=number, num_blocks=np.int64(3))
    assert all(torch.equal(got[name], want[name]) for name in want)
    got = scale_task_vector(state(1), alpha=number, beta=number, outside=number, schedule=number)
    want = scale_task_vector(state(1), alpha=0.5, beta=0.5, outside=0.5, schedule=0.5)
    assert all(torch.equal(got[name], want[name]) for name in want)
    schedule = mergekit_lines.Schedule(number, number)
    assert repr(schedule) == "Schedule(alpha=0.5, beta=0.5, exponent=1.0)"
    assert schedule.coefficient(np.int64(1), 3) == 0.75
    assert "found np.True_" in refused(
        lambda: edit_state_dict(state(1), state(2), gamma=np.True_)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"gamma": "much"}, "parameters.gamma: found 'much'"),
        ({}, "parameters.gamma: found nothing"),
        ({"gamma": 0.5, "num_blocks": 0}, "parameters.num_blocks: found 0"),
    ],
)
def test_words_are_checked_without_a_weight(words: dict[str, Any], text: str) -> None:
    """A state without floating-point tensors has its words checked like any other."""
    ids: Tensors = {"ids": torch.arange(3)}
    assert text in refused(lambda: edit_state_dict(ids, ids, **words))
    assert torch.equal(edit_state_dict(ids, ids, gamma=0.5)["ids"], ids["ids"])


def test_a_task_vector_of_parameters_keeps_no_graph() -> None:
    """Scaling the parameters of a module gives plain tensors."""
    vector = {f"layers.{n}.mlp.weight": torch.nn.Parameter(torch.ones(2)) for n in range(2)}
    scaled = mergekit_lines.scale_task_vector(vector, alpha=0.1, beta=0.1)
    assert not any(tensor.requires_grad for tensor in scaled.values())
