"""Evaluators: what is measured on the model of a sweep or a soup, on which split.

A spec is ``[NAME=]KIND:ARGS[?key=value[&key=value…]]``, with one of these kinds:

- ``perplexity:FILE``: token-weighted perplexity of a text file (:mod:`.perplexity`);
- ``lm_eval:task,task``: tasks of lm-evaluation-harness (:mod:`.harness.evaluator`);
- ``python:module:function``: a function of model and tokenizer (:mod:`.functions`);
- ``rewards:module:function``: a function of prompts and generated texts (:mod:`.rewards`).

Importing this package imports neither torch nor a kind's library: a measurement does.
"""

from __future__ import annotations

from mergekit_lines.evaluate.apart import check_apart
from mergekit_lines.evaluate.measuring import Evaluator, measure_all
from mergekit_lines.evaluate.metric import Metric
from mergekit_lines.evaluate.parsing import check_settings, parse_evaluators
from mergekit_lines.evaluate.spec import Settings

__all__ = [
    "Evaluator",
    "Metric",
    "Settings",
    "check_apart",
    "check_settings",
    "measure_all",
    "parse_evaluators",
]
