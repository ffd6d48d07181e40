"""Measuring a model in place: the protocol of an evaluator, and several of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mergekit_lines.errors import LinesError, some, tell
from mergekit_lines.evaluate.functions import failures, reason_at
from mergekit_lines.evaluate.imprint import Imprint
from mergekit_lines.evaluate.metric import Completions, Metric
from mergekit_lines.evaluate.partial import Listener, heard_by
from mergekit_lines.evaluate.spec import rename


class Evaluator(Protocol):
    """What measures a model on one split."""

    @property
    def spec(self) -> str:
        """Return the text it was made of."""

    @property
    def name(self) -> str:
        """Return its name: of its metric, or what its metrics' names begin with."""

    @property
    def split(self) -> str:
        """Return ``validation`` or ``test``."""

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of the settings that it looks at."""

    def identity(self) -> dict[str, Any]:
        """Return everything its numbers hang on but the model, as JSON takes it.

        The keys are ``spec``, ``name``, ``split``, ``options``; ``data``: the files of examples
        with their SHA-256; ``code``: likewise the other files that the numbers hang on.
        Of lm-evaluation-harness also ``tasks`` and ``version``; of a python function
        ``function`` and ``takes_split``.
        """

    def digests(self) -> frozenset[str] | None:
        """Return the SHA-256 of each example's text, None as long as they are not known."""

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        completions: Completions | None = None,
        processor: Callable[[], Any] | None = None,
    ) -> dict[str, Metric]:
        """Return its metrics by name; ``tokenizer`` is None for a model without one.

        ``completions`` are texts of this very model that another evaluator generated;
        ``processor`` loads what makes inputs of images and sounds.
        """


def measure_all(
    evaluators: Sequence[Evaluator],
    model: Any,
    tokenizer: Any,
    say: Callable[[str], None] = tell,
    processor: Callable[[], Any] | None = None,
    listener: Listener | None = None,
) -> dict[str, Metric]:
    """Measure one model with every evaluator; those that generate alike share the texts.

    What one of them leaves behind in the model or the process is put back.

    Args:
        evaluators: of one split.
        model: a ``torch.nn.Module``, where its weights are now; it is not moved.
        tokenizer: the model's, or None.
        say: tells the user a sentence, here what was put back.
        processor: loads the model's processor, for evaluators that want it.
        listener: is told the metrics so far, after each evaluator and, of some, in between.

    Raises:
        PrunedError: the listener ends it.
        LinesError: a measurement fails, a number is not finite, two metrics have one name, or an
            evaluator wrote over weights.
    """
    completions: Completions = {}
    metrics: dict[str, Metric] = {}
    owners: dict[str, Evaluator] = {}
    imprint = Imprint(model)
    for evaluator in evaluators:
        hear = None if listener is None else _with_those_before(metrics, listener)
        with _left_as_it_was(evaluator.spec, imprint, say), heard_by(hear):
            measured = evaluator.measure(model, tokenizer, completions, processor)
        for name, metric in measured.items():
            if name in metrics:
                raise LinesError(name_taken(owners[name], evaluator, name))
            metrics[name], owners[name] = metric, evaluator
        if listener is not None and evaluator is not evaluators[-1]:
            listener(metrics)
    return metrics


def _with_those_before(metrics: Mapping[str, Metric], listener: Listener) -> Listener:
    return lambda own: listener({**metrics, **own})


@contextmanager
def _left_as_it_was(spec: str, imprint: Imprint, say: Callable[[str], None]) -> Iterator[None]:
    try:
        with failures(lambda error: f"{spec}: failed ({reason_at(error)})."):
            yield
    finally:
        changes = imprint.undo()
    weights = {*imprint.overwritten(), *(one for one in changes if one.kind == "parameter")}
    if weights:
        raise LinesError(
            f"{spec}: changed the model's weights ({some(map(str, weights), 3)}), and others are "
            f"measured on them. Let it work on a copy: copy.deepcopy(model)."
        )
    if changes:
        say(f"{spec}: left these changed, and they were put back: {some(map(str, changes))}")


def name_taken(first: Evaluator, second: Evaluator, name: str | None = None) -> str:
    """Return a sentence about two evaluators that have a metric of one name."""
    return (
        f"{first.spec} and {second.spec} both measure {name or second.name}. {rename(second.spec)}"
    )
