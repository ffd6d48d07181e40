"""Specs, their errors, metrics, and what importing the package costs."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from typing import Any

import pytest

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Metric, Settings, measure_all, parse_evaluators
from mergekit_lines.evaluate.metric import metric
from mergekit_lines.evaluate.spec import parse_spec
from tests.evaluate.conftest import one


def refusal(spec: str, **settings: Any) -> str:
    with pytest.raises(LinesError) as caught:
        one(spec, **settings)
    return caught.value.message


def test_importing_the_package_imports_no_library_of_models() -> None:
    """torch, transformers, lm_eval and mergekit wait for a measurement, even after parsing."""
    code = (
        "import sys, pathlib, tempfile\n"
        "from mergekit_lines.evaluate import *\n"
        "file = pathlib.Path(tempfile.mkdtemp()) / 'a.txt'\n"
        "file.write_text('w1 w2')\n"
        "parse_evaluators([f'perplexity:{file}', 'lm_eval:arc_easy'], 'test', Settings())\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'mergekit', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_spec_is_taken_apart() -> None:
    """The name, the kind, what it works on and the options; a path may hold : = ? and spaces."""
    spec = parse_spec("news=perplexity:C:/my data/a=b?.txt?limit=5&batch_size=2")
    assert (spec.name, spec.kind, spec.args) == ("news", "perplexity", "C:/my data/a=b?.txt")
    assert spec.options == {"limit": "5", "batch_size": "2"}
    bare = parse_spec("perplexity:a=b.txt")
    assert (bare.name, bare.args, bare.options) == (None, "a=b.txt", {})


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("texts.txt", "evaluator 'texts.txt': wanted [NAME=]KIND:ARGS[?key=value&…]"),
        ("perplexity:", "wanted [NAME=]KIND:ARGS"),
        ("perplexety:a.txt", "found the kind 'perplexety'"),
        ("perplexety:a.txt", "Did you mean 'perplexity'?"),
        ("1st=perplexity:a.txt", "found the metric name '1st', wanted letters, digits and _"),
        ("1st=perplexity:a.txt", "Give another one: NAME=perplexity:a.txt."),
        ("for=perplexity:a.txt", "found the metric name 'for'"),
        ("tuned=perplexity:a.txt", "the metric name 'tuned' has a meaning of its own"),
        ("mean=perplexity:a.txt", "the metric name 'mean' has a meaning of its own"),
        ("perplexity:a.txt?limt=3", "perplexity has no option 'limt'. Did you mean 'limit'?"),
        ("perplexity:a.txt?limit=3&limit=4", "the option limit is given twice"),
        ("perplexity:a.txt?limit=3&", "found the option '', wanted key=value"),
        ("perplexity:a.txt?limit=0", "the option limit is '0', wanted a whole number of at least"),
        ("perplexity:a.txt?limit=2.5", "the option limit is '2.5', wanted a whole number"),
        ("python:m:f?direction=down", "the option direction is 'down', wanted higher or lower"),
        ("rewards:m:f?chat=yes", "the option chat is 'yes', wanted true or false"),
        ("rewards:m:f?temperature=nan", "the option temperature is 'nan', wanted a number above"),
        ("rewards:m:f?temperature=0", "wanted a number above 0"),
        ("rewards:m:f?seed=-1", "the option seed is '-1', wanted a whole number of at least 0"),
    ],
)
def test_a_wrong_spec_is_told(spec: str, text: str) -> None:
    """The error names the spec, what was found, and what is wanted."""
    assert text in refusal(spec)


def test_all_wrong_specs_are_told_at_once() -> None:
    """Each has its line in one error."""
    with pytest.raises(LinesError) as caught:
        parse_evaluators(["perplexity:a.txt?x=1", "nothing:b"], "test", Settings())
    assert len(caught.value.problems) == 2


def test_a_split_is_one_of_two() -> None:
    """Nothing is evaluated on training data by a slip."""
    with pytest.raises(LinesError, match=r"found the split 'train', wanted validation or test"):
        parse_evaluators([], "train", Settings())


def test_a_metric_comes_back_from_json_as_it_was() -> None:
    """Floats are the same to the last bit, and examples a tuple again."""
    there = Metric(0.1 + 0.2, True, (1 / 3, 5e-324, -1.7976931348623157e308))
    assert Metric.from_json(json.loads(json.dumps(there.to_json()))) == there
    bare = Metric(2.0, False)
    assert Metric.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_the_standard_error_is_that_of_the_mean() -> None:
    """Python's own sample deviation over the square root of n; None for fewer than two."""
    scores = (0.5, 1.25, -3.0, 0.75)
    assert Metric(0.0, True, scores).stderr == pytest.approx(
        statistics.stdev(scores) / math.sqrt(4), rel=1e-15
    )
    assert Metric(0.0, True, (1.0,)).stderr is None
    assert Metric(0.0, True).stderr is None
    # Of numbers whose squares, or whose sum, no float64 has.
    assert Metric(5e199, True, (1e200, 0.0)).stderr == pytest.approx(5e199)
    assert Metric(1e308, True, (1e308, 1e308)).stderr is None


def test_numbers_that_are_not_finite_are_refused() -> None:
    """The sentence names the evaluator, the metric and the example."""
    with pytest.raises(LinesError, match=r"^\[lines\] python:m:f: the metric acc is nan, wanted"):
        metric("python:m:f", "acc", math.nan)
    with pytest.raises(LinesError, match=r"metric acc has the score inf for example 2 of 2"):
        metric("python:m:f", "acc", 1.0, examples=[1.0, math.inf])


def test_two_metrics_of_one_name_are_refused(here: Any, model: Any, tokenizer: Any) -> None:
    """Both evaluators are named, with a spec that would do."""
    here("a.txt", "w1 w2")
    here("b.txt", "w3 w4")
    specs = ["perplexity:a.txt", "perplexity:b.txt"]
    text = (
        "[lines] perplexity:a.txt and perplexity:b.txt both measure perplexity. Give another "
        "one: NAME=perplexity:b.txt."
    )
    with pytest.raises(LinesError) as early:
        parse_evaluators(specs, "test", Settings())
    with pytest.raises(LinesError) as late:
        measure_all([one(spec) for spec in specs], model, tokenizer)
    assert early.value.message == late.value.message == text
    specs[1] = f"other={specs[1]}"
    found = measure_all(parse_evaluators(specs, "test", Settings()), model, tokenizer)
    assert list(found) == ["perplexity", "other"]
