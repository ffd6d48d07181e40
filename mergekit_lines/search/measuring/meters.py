"""What measures the recipes of a search: one live model with its evaluators, or several of them."""

from __future__ import annotations

import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from types import TracebackType
from typing import Any, Protocol

from mergekit_lines._version import __version__
from mergekit_lines.errors import FullDiskError, LinesError
from mergekit_lines.evaluate import Evaluator, Metric, Settings, measure_all, parse_evaluators
from mergekit_lines.evaluate.partial import PrunedError
from mergekit_lines.lines.summary import Summary
from mergekit_lines.live.model import LiveModel
from mergekit_lines.report.file import versions
from mergekit_lines.search.measuring.early import Early
from mergekit_lines.search.measuring.means import mean_coefficient
from mergekit_lines.search.store import Record, record_key

PACKAGES = ("accelerate", "numpy", "tokenizers")  # whose versions numbers may hang on, too
Evaluators = Mapping[str, Sequence[Evaluator]]  # by split


@dataclass(frozen=True)
class Job:
    """One measurement: a recipe, or ``{"model": NAME}`` for an input as it is, on one split.

    ``early`` says by what it is given up; without it nothing is.
    """

    recipe: Mapping[str, Any]
    split: str = "validation"
    early: Early | None = None

    @property
    def key(self) -> str:
        """What tells it from others of the same search."""
        return record_key(self.split, self.recipe)


@dataclass(frozen=True)
class Measurement:
    """What came of a job.

    Attributes:
        record: its numbers, or its problems.
        digests: of the evaluators' examples, by :func:`place_of`; of those that know them.
        notes: sentences for the user.
    """

    record: Record
    digests: Mapping[str, frozenset[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a search has to know of its live model.

    Attributes:
        identity: what its numbers hang on beside recipe and data, as JSON takes it.
        input_problem: why the inputs cannot be measured as they are, if they cannot.
        pipeline_tag: the model's, as the Hub has it.
    """

    identity: Mapping[str, Any]
    input_problem: str | None
    pipeline_tag: str


@dataclass(frozen=True)
class Opening:
    """What a live model and its evaluators are opened with, wherever that is.

    Attributes:
        recipe: the first one.
        specs: of the evaluators, by split.
        settings: for evaluators whose specs do not say otherwise.
        model: what :class:`~mergekit_lines.LiveModel` takes besides.
        judges: what the evaluators' numbers hang on, by split.
    """

    recipe: Mapping[str, Any]
    specs: Mapping[str, Sequence[str]]
    settings: Settings
    model: Mapping[str, Any]
    judges: Mapping[str, Any]

    def evaluators(self) -> dict[str, list[Evaluator]]:
        """Return the evaluators, made anew.

        Raises:
            LinesError: what a spec names is not there.
        """
        return {
            split: parse_evaluators(texts, split, self.settings)
            for split, texts in self.specs.items()
        }


class Pool(Protocol):
    """Live models that measure jobs, one at a time each."""

    @property
    def size(self) -> int:
        """Return how many measure at once."""

    def facts(self) -> Facts:
        """Return what the search has to know; the same of each of them."""

    def start(self, job: Job) -> None:
        """Measure a job as soon as one of them is free."""

    def wait(self) -> tuple[Job, Measurement]:
        """Return a job that was started, when it is done.

        Raises:
            LinesError: nothing can be measured any more.
        """

    def __enter__(self) -> Pool:
        """Return itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the live models go."""


# Makes the pool of a search; one live model in this process is :class:`OneMeter`.
PoolMaker = Callable[[Opening], Pool]


class Meter:
    """One live model and its evaluators.

    Args:
        opening: what it is opened with.
        evaluators: those of the opening, where they were made already.

    Raises:
        LinesError: the model cannot be opened, or an evaluator not be made.
    """

    def __init__(self, opening: Opening, evaluators: Evaluators | None = None) -> None:
        self._evaluators = evaluators or opening.evaluators()
        self._opening = opening
        self.live = LiveModel(opening.recipe, **opening.model)

    def close(self) -> None:
        """Let the live model go."""
        self.live.close()

    def facts(self) -> Facts:
        """Return what the search has to know of the model."""
        return Facts(
            identity=identity_of(self.live, self._opening.model),
            input_problem=self.live.input_problem(),
            pipeline_tag="text-generation" if self.live.generates else "other",
        )

    def measure(self, job: Job) -> Measurement:
        """Return what the evaluators of the job's split say of its recipe, or why they cannot.

        Raises:
            LinesError: the disk is full, or inputs were changed.
        """
        chosen, begun = self._evaluators[job.split], time.monotonic()
        mean, metrics, problems = None, dict[str, Metric](), tuple[str, ...]()
        notes: list[str] = []
        partials: list[float | None] = []
        early, pruned = job.early, False
        try:
            mean = self._set(job.recipe)
            metrics = measure_all(
                chosen,
                self.live.model,
                self.live.tokenizer,
                notes.append,
                lambda: self.live.processor,
                None if early is None else lambda so_far: early.look(partials, so_far),
            )
        except PrunedError:
            pruned = True
        except FullDiskError:
            raise
        except LinesError as error:
            self.live.check_inputs()  # changed ones are no failure of a point
            problems = tuple(map(str, error.problems))
        if not metrics and not problems and not pruned:
            problems = (f"the evaluators of {job.split} gave no metric. Check them.",)
        seconds = time.monotonic() - begun
        if all(one is None for one in partials):
            partials = []
        goal = str(early.goal) if early is not None and partials else ""
        outcome = mean, metrics, seconds, problems, tuple(partials), pruned, goal
        record = Record(job.split, dict(job.recipe), *outcome)
        digests = {} if problems or pruned else digests_of(chosen)
        return Measurement(record, digests, tuple(notes))

    def _set(self, recipe: Mapping[str, Any]) -> float | None:
        if set(recipe) == {"model"}:
            self.live.load(recipe["model"])
            return None
        summary: Summary = self.live.set_recipe(recipe)
        return mean_coefficient(summary)


class OneMeter:
    """A pool of one live model, in this process."""

    size = 1

    def __init__(self, opening: Opening, evaluators: Evaluators | None = None) -> None:
        self._meter = Meter(opening, evaluators)
        self._jobs: deque[Job] = deque()

    def __enter__(self) -> OneMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self._meter.close()

    def facts(self) -> Facts:
        """Return what the search has to know of the model."""
        return self._meter.facts()

    def start(self, job: Job) -> None:
        """Put a job behind those that wait."""
        self._jobs.append(job)

    def wait(self) -> tuple[Job, Measurement]:
        """Measure the job that waited longest.

        Raises:
            LinesError: as :meth:`Meter.measure` does.
        """
        job = self._jobs.popleft()
        return job, self._meter.measure(job)


def place_of(evaluator: Evaluator) -> str:
    """Return what the digests of an evaluator's examples are kept under."""
    return f"{evaluator.split} {evaluator.spec}"


def digests_of(evaluators: Sequence[Evaluator]) -> dict[str, frozenset[str]]:
    """Return the digests of the examples of those evaluators that know them."""
    return {
        place_of(evaluator): digests for evaluator in evaluators if (digests := evaluator.digests())
    }


def identity_of(live: LiveModel, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the numbers of a live model hang on beside recipe and data.

    Args:
        live: the model.
        model: what it was opened with.
    """
    options = ("lora_merge_dtype", "copy_tokenizer", "allow_crimes")
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "inputs": live.describe_inputs(),
        "the device": live.device.type,
        "options": {name: model[name] for name in options if name in model},
        "versions": {"mergekit-lines": __version__, **versions(), **packages},
    }


def portable(identity: Any) -> Any:
    """Return an identity without folders and times: what is the same on another machine, too."""
    if isinstance(identity, Mapping):
        times = ("mtime_ns", "ctime_ns")
        return [
            [PurePath(str(key)).name, portable(value)]
            for key, value in sorted(identity.items())
            if key not in times
        ]
    if isinstance(identity, (list, tuple)):
        return [portable(value) for value in identity]
    return identity
