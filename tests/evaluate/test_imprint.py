"""What an evaluator leaves behind in the model or the process is named, and put back or refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Settings, measure_all, parse_evaluators
from mergekit_lines.evaluate.imprint import content

LOGITS = """
def logits(model, tokenizer):
    import torch
    ids = torch.arange(8)[None] + 4
    return model(input_ids=ids).logits.double().abs().mean().item()

def quiet(model, tokenizer):
    return 0.0
"""


@pytest.fixture
def own(model: Any) -> Any:
    """A model that the test may change."""
    return copy.deepcopy(model)


def write(here: Any, statement: str) -> Path:
    """Write mine.py, whose function ``bad`` does this."""
    bad = f"def bad(model, tokenizer):\n    {statement}\n    return 1.0\n"
    path: Path = here("mine.py", f"import os, torch\n{LOGITS}\n{bad}")
    return path


def measured(own: Any, *names: str, tokenizer: Any = None) -> tuple[dict[str, float], list[str]]:
    """Measure by functions of mine.py in this order; return the values and what was told."""
    told: list[str] = []
    specs = [f"m{number}=python:mine:{name}" for number, name in enumerate(names)]
    evaluators = parse_evaluators(specs, "validation", Settings())
    metrics = measure_all(evaluators, own, tokenizer, told.append)
    return {name: metric.value for name, metric in metrics.items()}, told


@pytest.mark.parametrize(
    ("leaves", "place"),
    [
        (
            "model.lm_head.register_forward_hook(lambda m, i, out: out * 3)",
            "hook on lm_head",
        ),
        (
            "model.model.layers[1].register_forward_pre_hook(lambda m, a: (a[0] * 2, *a[1:]))",
            "hook on model.layers.1",
        ),
        (
            "torch.nn.modules.module.register_module_forward_hook("
            "lambda m, i, out: out * 2 if isinstance(m, torch.nn.Linear) else None)",
            "hook on every module",
        ),
        ("model.train()", "setting training"),
        ("model.lm_head = torch.nn.Linear(32, 128, bias=False)", "module lm_head"),
        (
            "model.lm_head.weight = torch.nn.Parameter(torch.zeros(128, 32), requires_grad=False)",
            "weights (parameter lm_head.weight)",
        ),
        ("model.model.rotary_emb.inv_freq.mul_(0.5)", "buffer model.rotary_emb.inv_freq"),
        (
            "model.model.rotary_emb.inv_freq = torch.ones(4)",
            "buffer model.rotary_emb.inv_freq",
        ),
        ("model.lm_head.forward = lambda x: x @ torch.ones(32, 128)", "setting lm_head.forward"),
        ("model.register_buffer('more', torch.ones(3))", "buffer more"),
        ("model.register_parameter('more', None)", "weights (parameter more)"),
        ("model.note = 1", "setting note"),
        ("model.config.rms_norm_eps = 0.5", "setting config.rms_norm_eps"),
        ("model.generation_config.max_new_tokens = 3", "setting generation_config.max_new_tokens"),
        ("model.generation_config = None", "setting generation_config"),
        ("model.requires_grad_(False)", "setting requires_grad of lm_head.weight"),
        ("type(model.lm_head).forward = lambda self, x: x", "setting Linear.forward"),
        ("torch.set_default_dtype(torch.float64)", "setting torch's dtype"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "setting torch's threads"),
        ("torch.set_grad_enabled(True)", None),
        ("os.chdir('/')", "setting the current directory"),
    ],
)
def test_what_is_left_behind_changes_nothing_that_follows(
    here: Any, own: Any, leaves: str, place: str | None
) -> None:
    """The next evaluator, and the next measurement, give what they give alone."""
    folder = write(here, leaves).parent
    alone, told = measured(own, "logits")
    assert told == []
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    state = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    forward = torch.nn.Linear.forward
    if place is not None and place.startswith("weights"):
        with pytest.raises(LinesError) as caught:
            measured(own, "bad", "logits")
        assert place in caught.value.message and "python:mine:bad: " in caught.value.message
    else:
        values, told = measured(own, "bad", "logits")
        assert values["m1"] == alone["m0"]
        if place is not None:
            assert len(told) == 1 and place in told[0] and "m0=python:mine:bad: " in told[0]
    assert measured(own, "logits", "quiet") == ({"m0": alone["m0"], "m1": 0.0}, [])
    after = own.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not own.training
    assert state == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert torch.nn.Linear.forward is forward
    assert Path.cwd() == folder


@pytest.mark.parametrize(
    "writes",
    [
        "model.lm_head.weight.data[3, 5] += 1e-6",
        "model.lm_head.weight.data.numpy()[3, 5] += 1e-6",
        "model.lm_head.weight.data.copy_(model.lm_head.weight.roll(1, 0))",
        "torch.nn.init.normal_(model.lm_head.weight)",
        "model.half()",
    ],
)
def test_written_weights_are_refused(here: Any, own: Any, writes: str) -> None:
    """By the names of the parameters, one entry of one of them too."""
    write(here, writes)
    with pytest.raises(LinesError) as caught:
        measured(own, "bad")
    assert "python:mine:bad: changed the model's weights (parameter lm_head.weight" in (
        caught.value.message
    )
    assert "copy.deepcopy(model)" in caught.value.message
    assert own.lm_head.weight.dtype == torch.float32


def test_what_a_failing_evaluator_leaves_is_put_back(here: Any, own: Any) -> None:
    """Its own error is told, and the next measurement is right."""
    hook = "model.lm_head.register_forward_hook(lambda m, i, out: out * 3)"
    write(here, f"{hook}; raise ValueError(7)")
    alone, _ = measured(own, "logits")
    with pytest.raises(LinesError, match="the function raised ValueError: 7"):
        measured(own, "bad")
    assert measured(own, "logits") == (alone, [])


def test_a_tokenizer_is_each_function_s_own(here: Any, own: Any, tokenizer: Any) -> None:
    """What one sets of it, another does not see."""
    here(
        "mine.py",
        """
        def bad(model, tokenizer):
            tokenizer.padding_side = "left"
            tokenizer.add_tokens(["more"])
            tokenizer.chat_template = "x"
            return 1.0

        def length(model, tokenizer):
            return len(tokenizer) + 1000 * (tokenizer.padding_side == "left")
        """,
    )
    count, side = len(tokenizer), tokenizer.padding_side
    values, told = measured(own, "bad", "length", tokenizer=tokenizer)
    assert (values["m1"], told) == (float(count), [])
    assert (len(tokenizer), tokenizer.padding_side, tokenizer.chat_template) == (count, side, None)


def test_our_own_evaluators_leave_nothing(here: Any, own: Any, tokenizer: Any) -> None:
    """Perplexity and generation tell of no change."""
    here("mine.py", "def score(prompts, completions):\n    return [0.0 for _ in prompts]\n")
    here("a.txt", "w70 w71 w72")
    specs = ["perplexity:a.txt", "rewards:mine:score?prompts=a.txt&max_new_tokens=3"]
    told: list[str] = []
    measure_all(parse_evaluators(specs, "test", Settings()), own, tokenizer, told.append)
    assert told == []


def test_content_hangs_on_every_byte() -> None:
    """A flip of any bit, and an exchange of words, change it; equal bytes give equal numbers."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.bool):
        tensor = (10 * torch.randn(3, 7, generator=generator)).to(dtype)
        number = content(tensor)
        assert content(tensor.clone()) == content(tensor[:, :]) == number
        flat = tensor.view(torch.uint8).reshape(-1)
        for byte in range(len(flat)):
            old = int(flat[byte])
            flat[byte] = old ^ 1
            assert content(tensor) != number
            flat[byte] = old
        assert content(tensor) == number
    long = torch.randn(1 << 18, generator=generator)
    number = content(long)
    long[[0, 2, 1 << 17]] = long[[2, 0, 1 << 17]]
    assert content(long) != number
    assert content(long[1:]) == content(long[1:].clone())
