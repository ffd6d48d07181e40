"""The measurements of a search: each made once, kept on the disk, by one live model or several."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tqdm import tqdm

from mergekit_lines.errors import LinesError, visible
from mergekit_lines.evaluate import Evaluator, Settings, check_apart
from mergekit_lines.host.process import ending_on_sigterm
from mergekit_lines.search.checks import check_seed
from mergekit_lines.search.measuring.means import (
    LINES,
    UNIFORM,
    UNSCALED,
    Recipe,
    of_equal_mean,
    unscaled,
)
from mergekit_lines.search.measuring.meters import (
    Evaluators,
    Facts,
    Job,
    Measurement,
    OneMeter,
    Opening,
    Pool,
    PoolMaker,
    place_of,
)
from mergekit_lines.search.store import Record, Store, search_folder

T = TypeVar("T")
K = TypeVar("K")
# Work that yields the jobs it needs, one after another, and is sent what was measured of each.
Task: TypeAlias = Generator[Job, Record, T]
HOPELESS = 3  # failures before anything was measured, after which a search ends
WORK = ".work"  # in the folder of a search: what a live model keeps on disk while it lives


class Bench:
    """Measures recipes on live models, and keeps every result in the folder of the search.

    A recipe that was measured before, in an interrupted run too, is not measured again. One that
    cannot be measured becomes a record of its problems, and the search goes on; the next run tries
    it again. ``failures`` are those of this run, in sentences.

    Args:
        first: the recipe with which the model is opened.
        out: folder of the search.
        evaluators: by split.
        document: the recipe of the search, as it was given.
        model: what :class:`LiveModel` takes besides.
        total: number of measurements, for the bar.
        settings: those that the evaluators were made with.
        workers: makes the live models; one in this process by default.

    Raises:
        LinesError: validation and test share data, the model cannot be opened, or ``out`` holds
            another search.
    """

    def __init__(
        self,
        first: Recipe,
        out: Path,
        evaluators: Evaluators,
        document: Recipe,
        model: Mapping[str, Any],
        total: int,
        *,
        settings: Settings | None = None,
        workers: PoolMaker | None = None,
    ) -> None:
        check_seed(model)
        check_apart(evaluators["validation"], evaluators.get("test", ()))
        # A harness that is missing, for example, is told before a model is opened.
        judges = {
            split: [evaluator.identity() for evaluator in chosen]
            for split, chosen in evaluators.items()
        }
        self._evaluators = evaluators
        self.failures: list[str] = []
        self._said: set[str] = set()
        with ExitStack() as stack:
            stack.enter_context(ending_on_sigterm())
            folder = stack.enter_context(search_folder(out))
            work = folder / WORK
            shutil.rmtree(work, ignore_errors=True)  # of a search that was killed
            work.mkdir()
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            specs = {split: [one.spec for one in chosen] for split, chosen in evaluators.items()}
            with_work = {"offload_folder": work, **model}
            opening = Opening(first, specs, settings or Settings(), with_work, judges)
            self._pool: Pool = stack.enter_context(
                workers(opening) if workers else OneMeter(opening, evaluators)
            )
            self.facts: Facts = self._pool.facts()
            by_name = {f"the evaluators of {split}": each for split, each in judges.items()}
            self.store = Store(folder, {"the recipe": document, **by_name, **self.facts.identity})
            bar = tqdm(
                total=total, desc="Measuring", unit="point", disable=bool(model.get("quiet"))
            )
            self._bar = stack.enter_context(bar)
            self._any = self.store.count > 0
            if self._any:
                self.say(f"found {self.store.count} results in {out}: going on behind them")
            self._stack = stack.pop_all()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C, or a signal
            self.say(f"what was measured is kept in {self.store.folder}: the same command goes on")
        self._stack.close()

    def each(self, tasks: Iterable[Task[T]]) -> Iterator[T]:
        """Run tasks, a new one whenever a live model is free, and yield what each returns.

        With one live model the tasks run one after another, and the next is taken from
        ``tasks`` when the one before has ended. Two that want one measurement share it. Nothing
        else may be measured before the last has ended.

        Raises:
            LinesError: splits share data, inputs were changed, or nothing can be measured at all.
        """
        coming, left = iter(tasks), True
        waiting: dict[str, list[Task[T]]] = {}
        while left or waiting:
            while left and len(waiting) < self._pool.size:
                task = next(coming, None)
                left = task is not None
                if task is not None:
                    yield from self._advance(task, None, waiting)
            if waiting:
                job, measurement = self._pool.wait()
                tasks_of_it = waiting.pop(job.key)
                self._keep(measurement)
                for one in tasks_of_it:
                    yield from self._advance(one, measurement.record, waiting)

    def _advance(
        self, task: Task[T], record: Record | None, waiting: dict[str, list[Task[T]]]
    ) -> Iterator[T]:
        """Let a task go on until it waits for a measurement, or yield what it returns."""
        try:
            while True:
                job = next(task) if record is None else task.send(record)
                record = self._kept(job)
                if record is None:
                    break
        except StopIteration as end:
            yield end.value
            return
        if job.key not in waiting:
            self._pool.start(job)
        waiting.setdefault(job.key, []).append(task)

    def all(self, jobs: Sequence[Job]) -> list[Record]:
        """Return the records of several jobs, in their order.

        Raises:
            LinesError: as :meth:`each` does.
        """
        records = {record.key: record for record in self.each([_one(job) for job in jobs])}
        return [records[job.key] for job in jobs]

    def measure(self, recipe: Recipe, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of a recipe, or why they cannot.

        ``{"model": NAME}`` is one of the recipe's models as it is.

        Raises:
            LinesError: as :meth:`each` does.
        """
        (record,) = self.each([_one(Job(recipe, split))])
        return record

    def measure_input(self, name: str, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of one of the recipe's models as it is.

        Raises:
            LinesError: as :meth:`each` does.
        """
        return self.measure({"model": name}, split)

    def _kept(self, job: Job) -> Record | None:
        record = self.store.find(job.split, job.recipe)
        # The bar's rate is that of measurements.
        if record is not None and self._bar.total is not None:
            self._bar.total = max(self._bar.total - 1, self._bar.n)
            self._bar.refresh()
        return record

    def _keep(self, measurement: Measurement) -> None:
        """Keep a result on the disk, and take note of what it tells."""
        record = measurement.record
        for note in measurement.notes:
            self.say(note)
        if record.problems:
            self.store.add(record)
            self._note(record)
        else:
            if not record.pruned:
                self._keep_apart(measurement.digests)
            self.store.add(record)
            self._any = True
        self._bar.update()

    def _note(self, record: Record) -> None:
        """Take note of a failure; where nothing could ever be measured, it is no point's."""
        self.failures += failures_of(record)
        self.say(f"failed, going on: {self.failures[-1]}")
        if not self._any and len(self.failures) >= HOPELESS:
            raise LinesError(self.failures[0])

    def _keep_apart(self, digests: Mapping[str, frozenset[str]]) -> None:
        self.store.keep_digests(digests)
        # Some know their examples only when they have measured them, in an earlier run perhaps.
        stored = self.store.digests()

        def digests_of(evaluator: Evaluator) -> frozenset[str]:
            return evaluator.digests() or frozenset(stored.get(place_of(evaluator), ()))

        check_apart(self._evaluators["validation"], self._evaluators.get("test", ()), digests_of)

    def say(self, text: str) -> None:
        """Tell something, above the bar and once."""
        if not self._bar.disable and text not in self._said:
            self._said.add(text)
            tqdm.write(f"[lines] {visible(text)}", file=self._bar.fp)


def _one(job: Job) -> Task[Record]:
    return (yield job)


def labelled(label: K, task: Task[T]) -> Task[tuple[K, T]]:
    """Do a task, and return its label with what it returns."""
    return label, (yield from task)


def three_ways(recipe: Recipe) -> Task[dict[str, Record]]:
    """Measure a point with LiNeS, at the uniform coefficient of equal mean, and unscaled.

    The second is not there where the first's weights could not be set.
    """
    records = {LINES: (yield Job(recipe))}
    mean = records[LINES].mean
    if mean is not None:
        records[UNIFORM] = yield Job(of_equal_mean(recipe, mean))
    return {**records, UNSCALED: (yield Job(unscaled(recipe)))}


def failures_of(record: Record) -> list[str]:
    """Return a record's problems, each with the point that has it."""
    place = record.recipe.get("model") or f"at the parameters {record.recipe.get('parameters')}"
    return [f"{place}: {problem}" for problem in record.problems]
