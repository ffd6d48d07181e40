"""What a search tells people: errors in the unit of the value, and names."""

from __future__ import annotations

import json
import math

import pytest

from mergekit_lines.evaluate import Metric
from mergekit_lines.search.telling import short_names, with_error


def test_error_of_a_mean_is_that_of_its_examples() -> None:
    """Four scores: sample deviation over √4, by hand."""
    metric = Metric(2.5, True, (1.0, 2.0, 3.0, 4.0))
    assert metric.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert with_error(metric) == "2.5 ± 0.65"
    assert Metric(2.5, True).error is None
    assert with_error(Metric(2.5, True)) == "2.5"


def test_error_of_a_perplexity_has_its_unit() -> None:
    """The examples are in nats: d exp(m) = exp(m)·dm."""
    nats = (1.0, 1.2, 1.4)
    metric = Metric(math.exp(1.25), False, nats, exponential=True)
    assert metric.error == pytest.approx(math.exp(1.25) * 0.2 / math.sqrt(3))
    assert Metric.from_json(json.loads(json.dumps(metric.to_json()))) == metric


def test_short_names_are_folders_unless_two_are_alike() -> None:
    """The base is called base; equal folder names stay paths."""
    assert short_names(["/m/llama", "/m/a", "user/b"]) == {
        "/m/llama": "base",
        "/m/a": "a",
        "user/b": "b",
    }
    alike = ["/m/llama", "/m/1/tuned", "/m/2/tuned"]
    assert short_names(alike) == {"/m/llama": "base", alike[1]: alike[1], alike[2]: alike[2]}
    assert short_names(["x", "/m/base"])["/m/base"] == "/m/base"
