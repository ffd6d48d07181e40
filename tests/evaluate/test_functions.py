"""``python:module:function``: what it is called with, and what it may return."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Settings, measure_all, parse_evaluators
from tests.evaluate.conftest import one


def refusal(spec: str, model: Any = None) -> str:
    with pytest.raises(LinesError) as caught:
        one(spec) if model is None else one(spec).measure(model, None)
    return caught.value.message


def test_a_number_is_a_metric(here: Any, model: Any, tokenizer: Any) -> None:
    """It has the function's name, or the one that is given; higher is better by default."""
    here(
        "mine.py",
        """
        def words(model, tokenizer):
            return len(tokenizer) + model.config.hidden_size
        """,
    )
    metric = one("python:mine:words").measure(model, tokenizer)["words"]
    assert (metric.value, metric.higher_is_better, metric.examples) == (160.0, True, None)
    named = one("size=python:mine:words?direction=lower").measure(model, tokenizer)
    assert list(named) == ["size"]
    assert not named["size"].higher_is_better


def test_mappings_of_numbers_and_of_examples(here: Any, model: Any) -> None:
    """Names come from the mapping, behind a given name; a sequence's value is its mean."""
    here(
        "mine.py",
        """
        import numpy, torch
        def f(model, tokenizer):
            return {"acc": 0.5, "loss": torch.tensor(2.0), "f1": [1, 0, 0.5, 0],
                    "np": numpy.array([1.0, 2.0]), "n": numpy.float32(0.25)}
        """,
    )
    found = one("python:mine:f").measure(model, None)
    assert {name: metric.value for name, metric in found.items()} == {
        "acc": 0.5,
        "loss": 2.0,
        "f1": 0.375,
        "np": 1.5,
        "n": 0.25,
    }
    assert found["f1"].examples == (1.0, 0.0, 0.5, 0.0)
    assert found["acc"].examples is None
    assert list(one("m=python:mine:f").measure(model, None))[:2] == ["m_acc", "m_loss"]


def test_the_split_is_given_where_it_is_asked_for(here: Any, model: Any) -> None:
    """As ``split=``, also to a keyword-only parameter; ``identity`` says whether."""
    here(
        "mine.py",
        """
        def f(model, tokenizer, *, split):
            return {"validation": 1, "test": 2}[split]
        """,
    )
    assert one("python:mine:f").measure(model, None)["f"].value == 1
    evaluator = one("python:mine:f", split="test")
    assert evaluator.measure(model, None)["f"].value == 2
    assert evaluator.identity()["takes_split"] is True


def test_the_processor_is_given_where_it_is_asked_for(here: Any, model: Any) -> None:
    """As ``processor=``, loaded for functions that have such a parameter, and for no other."""
    here(
        "mine.py",
        """
        def f(model, tokenizer, processor):
            return processor["size"]
        def g(model, tokenizer):
            return 1
        """,
    )
    loads = []

    def load() -> dict[str, int]:
        loads.append(1)
        return {"size": 24}

    assert measure_all([one("python:mine:g")], model, None, processor=load)["g"].value == 1
    assert loads == []
    assert measure_all([one("python:mine:f")], model, None, processor=load)["f"].value == 24
    assert loads == [1]


def test_a_model_without_a_tokenizer_comes_with_none(here: Any, model: Any) -> None:
    """The function is given None, and the model itself: in evaluation mode, without gradients."""
    here(
        "mine.py",
        """
        import torch
        def f(model, tokenizer):
            assert tokenizer is None and not model.training and not torch.is_grad_enabled()
            return sum(p.numel() for p in model.parameters())
        """,
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert measure_all([one("python:mine:f")], model, None)["f"].value == count


def test_draws_are_the_same_at_every_point(here: Any, model: Any) -> None:
    """torch's, Python's and numpy's generators are seeded, and put back afterwards."""
    here(
        "mine.py",
        """
        import random, numpy, torch
        def f(model, tokenizer):
            return {"a": torch.rand(()), "b": random.random(), "c": numpy.random.rand()}
        """,
    )
    state, numbers = random.getstate(), torch.get_rng_state()
    first = one("python:mine:f").measure(model, None)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), numbers)
    assert one("python:mine:f").measure(model, None) == first
    other = one("python:mine:f", seed=1).measure(model, None)
    assert all(other[name].value != first[name].value for name in "abc")


def test_what_it_hangs_on_is_told(here: Any) -> None:
    """The file of the function with its digest, relative to where one is."""
    path = here("sub/mine.py", "def f(model, tokenizer): return 1\n")
    assert one("python:sub.mine:f").identity() == {
        "spec": "python:sub.mine:f",
        "name": "f",
        "split": "validation",
        "options": {"direction": "higher", "seed": 0},
        "data": {},
        "code": {"sub/mine.py": hashlib.sha256(path.read_bytes()).hexdigest()},
        "function": "sub.mine:f",
        "takes_split": False,
    }
    assert one("python:sub.mine:f").digests() is None


def test_a_file_of_a_librarys_name_comes_first_for_its_function_only(here: Any) -> None:
    """The current directory is searched first for the module, and last from then on."""
    here("mine_first.py", "def f(model, tokenizer): return 1\n")
    one("python:mine_first:f")
    assert sys.path[-1] == str(Path.cwd())
    assert str(Path.cwd()) not in sys.path[:-1]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("python:mine", "found 'mine', wanted module:function, for example python:rewards:"),
        ("python:mine.py:f", "found 'mine.py:f', wanted module:function"),
        ("python:absent:f", "the module absent cannot be imported (ModuleNotFoundError"),
        ("python:absent:f", "Is absent.py in "),
        ("python:mine:acuracy", "mine.py has no acuracy. Did you mean 'accuracy'?"),
        ("python:mine:number", "number is int, wanted a function."),
        ("python:broken:f", "the module broken cannot be imported (NameError: name 'nothing'"),
        ("python:broken:f", "broken.py, line 2). Mend the module."),
        ("python:mine:max", "the metric name 'max' has a meaning of its own in objectives."),
        ("python:mine:max", "Give another one: NAME=python:mine:max."),
    ],
)
def test_functions_that_cannot_be_had(here: Any, spec: str, text: str) -> None:
    """The error names the module, the file, and the line that failed."""
    here("mine.py", "number = 1\ndef accuracy(model, tokenizer): return 1\nmax = accuracy\n")
    here("broken.py", "\nnothing\n")
    assert text in refusal(spec)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return 'high'", "found str 'high' for f, wanted a number, a mapping from names to"),
        ("return None", "found NoneType 'None' for f"),
        ("return True", "found bool 'True' for f"),
        ("return [0.5, 1.0]", "found list '[0.5, 1.0]' for f"),
        ("return {}", "the function returned an empty mapping."),
        ("return {'a': []}", "found list '[]' for a"),
        ("return {'a': [1, 'b']}", "found list \"[1, 'b']\" for a"),
        ("return {'a': '12'}", "found str '12' for a"),
        ("return {'a b': 1}", "found the metric name 'a b', wanted letters, digits and _"),
        ("return {3: 1}", "found the metric name 3"),
        ("return {'log': 1}", "the metric name 'log' has a meaning of its own"),
        ("return float('nan')", "the metric f is nan, wanted a finite number"),
        (
            "return {'a': [0.0, float('-inf')]}",
            "the metric a has the score -inf for example 2 of 2",
        ),
        (
            "return {'a': [0.0, float('-inf'), float('inf')]}",
            "the metric a has the score -inf for example 2 of 3",
        ),
        ("raise KeyError('x')", "the function raised KeyError: 'x' at "),
        ("raise KeyError('x')", "mine.py, line 1. Mend it."),
    ],
)
def test_returns_that_are_no_numbers(here: Any, model: Any, body: str, text: str) -> None:
    """What was found is shown, and what is wanted said."""
    here("mine.py", f"def f(model, tokenizer): {body}\n")
    assert text in refusal("python:mine:f", model)


def test_several_evaluators_at_once(here: Any, model: Any, tokenizer: Any) -> None:
    """Their metrics come in the order of the specs."""
    here("mine.py", "def f(model, tokenizer): return {'b': 1, 'a': 2}\n")
    here("texts.txt", "w1 w2")
    specs = ["python:mine:f", "perplexity:texts.txt", "x=python:mine:f"]
    found = measure_all(parse_evaluators(specs, "validation", Settings()), model, tokenizer)
    assert list(found) == ["b", "a", "perplexity", "x_b", "x_a"]
