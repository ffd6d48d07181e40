"""From specs to evaluators."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields

from mergekit_lines.errors import LinesError, Problem, nearest
from mergekit_lines.evaluate.measuring import Evaluator, name_taken
from mergekit_lines.evaluate.spec import Settings, Spec, parse_spec

# kind: (module, class); each class is made of (spec, split, settings).
_KINDS = {
    "lm_eval": ("harness.evaluator", "Harness"),
    "perplexity": ("perplexity", "Perplexity"),
    "python": ("functions", "PythonFunction"),
    "rewards": ("rewards", "Rewards"),
}
_ONE_METRIC = ("perplexity", "rewards")
SPLITS = ("validation", "test")


def parse_evaluators(specs: Sequence[str], split: str, settings: Settings) -> list[Evaluator]:
    """Make the evaluators of one split; files are read, and functions imported, here.

    Args:
        specs: ``[NAME=]KIND:ARGS[?key=value[&key=value…]]`` each.
        split: ``validation`` or ``test``.
        settings: what a spec does not say itself.

    Raises:
        LinesError: a spec cannot be understood, or what it names is not there; all such
            problems at once.
    """
    if split not in SPLITS:
        raise LinesError(f"found the split {split!r}, wanted {' or '.join(SPLITS)}.")
    evaluators: list[Evaluator] = []
    problems: list[str | Problem] = []
    for text in specs:
        try:
            spec = parse_spec(text)
            evaluators.append(_make(spec, split, settings))
            problems += _names_taken(spec, evaluators)
        except LinesError as error:
            problems += error.problems
    if problems:
        raise LinesError(problems)
    return evaluators


def check_settings(settings: Settings, evaluators: Sequence[Evaluator]) -> None:
    """Refuse settings that none of a search's evaluators looks at: they would change nothing.

    Raises:
        LinesError: names them.
    """
    taken = {name for evaluator in evaluators for name in evaluator.takes}
    idle = [
        f"--{field.name.replace('_', '-')}: found {getattr(settings, field.name)}, and no "
        f"evaluator of this search looks at it. Leave it out."
        for field in fields(settings)
        if field.name not in taken and getattr(settings, field.name) != field.default
    ]
    if idle:
        raise LinesError(idle)


def _names_taken(spec: Spec, evaluators: Sequence[Evaluator]) -> list[str]:
    """Return whether the last evaluator's one metric has the name of another, in a sentence."""
    if spec.kind not in _ONE_METRIC:
        return []
    *others, last = evaluators
    return [name_taken(other, last) for other in others if other.name == last.name]


def _make(spec: Spec, split: str, settings: Settings) -> Evaluator:
    if spec.kind not in _KINDS:
        raise LinesError(
            f"{spec.text}: found the kind {spec.kind!r}, wanted {', '.join(_KINDS)}."
            f"{nearest(spec.kind, _KINDS)}"
        )
    module, name = _KINDS[spec.kind]
    home = importlib.import_module(f"mergekit_lines.evaluate.{module}")
    evaluator: Evaluator = getattr(home, name)(spec, split, settings)
    return evaluator
