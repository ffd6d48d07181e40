"""Live models on several processes or machines: a search's measurements, several at a time."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mergekit_lines.cluster.connection import Connection, connected
from mergekit_lines.cluster.shared import Failure
from mergekit_lines.errors import LinesError, ResumableError, reason, tell
from mergekit_lines.search.measuring.meters import (
    Facts,
    Job,
    Measurement,
    Meter,
    Opening,
    PoolMaker,
    portable,
)
from mergekit_lines.search.store import Record

LOSSES = 3  # of the workers on one measurement; what kills that many kills the next one too


@dataclass(frozen=True)
class Begin:
    """What a worker begins with.

    Attributes:
        opening: of its live model.
        directory: what relative paths are relative to, and where functions are imported from.
        threads: of torch, and of setting weights.
    """

    opening: Opening
    directory: Path
    threads: int


class Worker:
    """A process of Ray's that holds one live model.

    A failure is returned, so that it is told as this process would tell it.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._meter: Meter | None = None

    def open(self) -> Facts | Failure:
        """Open the model, and return what the search has to know of it."""
        try:
            self._meter = _opened(self._begin)
            return self._meter.facts()
        except (LinesError, OSError, MemoryError) as error:
            return Failure.of(error)

    def measure(self, job: Job) -> Measurement | Failure:
        """Measure one job."""
        if self._meter is None:
            raise ValueError("the worker was not opened")
        try:
            return self._meter.measure(job)
        except (LinesError, OSError, MemoryError) as error:
            return Failure.of(error)


def _opened(begin: Begin) -> Meter:
    """Open a live model in this process, and see that its evaluators are those of the search.

    Raises:
        LinesError: it cannot be opened here, or measures by other files.
    """
    import torch

    try:
        os.chdir(begin.directory)
    except OSError as error:
        raise LinesError(
            f"{begin.directory}: is not on this machine ({error.strerror}), wanted one storage "
            f"that all machines share. Start the search there."
        ) from error
    torch.set_num_threads(begin.threads)
    opening = begin.opening
    evaluators = opening.evaluators()
    for split, chosen in evaluators.items():
        own = [evaluator.identity() for evaluator in chosen]
        if portable(own) != portable(opening.judges[split]):
            raise LinesError(
                f"the evaluators of {split} have other files on this machine than where the "
                f"search was started. Put the same files on all of them."
            )
    work = opening.model.get("offload_folder")
    model = {"num_threads": begin.threads, **opening.model, "quiet": True}
    if work is not None and not Path(work).is_dir():  # of the machine that the search runs on
        del model["offload_folder"]
    return Meter(replace(opening, model=model), evaluators)


class RayMeters:
    """A pool of live models, one in each worker of a Ray; one that is lost is opened anew.

    Args:
        opening: of every live model.
        workers: how many; see :func:`~mergekit_lines.cluster.connection.connected`.
        address: of a running Ray, or None.

    Raises:
        LinesError: there is no Ray, or a live model cannot be opened.
    """

    def __init__(self, opening: Opening, *, workers: int | None, address: str | None) -> None:
        self._opening, self._workers, self._address = opening, workers, address
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, tuple[Job, Any]] = {}
        self._losses: Counter[str] = Counter()
        self._idle: list[Any] = []
        self._opened_soon: dict[Any, Any] = {}  # workers that take the place of lost ones
        self._stack = ExitStack()
        self._connection: Connection
        self._facts: Facts

    @property
    def size(self) -> int:
        """Return how many measure at once."""
        return self._connection.workers

    def __enter__(self) -> RayMeters:
        gpus = _wants_gpu(self._opening.model)
        threads = self._opening.model.get("num_threads")
        with self._stack as stack:
            silence = stack.enter_context(ExitStack())  # which lasts until Ray has gone
            self._connection = stack.enter_context(
                connected(self._workers, self._address, threads=threads, gpus=gpus)
            )
            self._ray = self._connection.ray
            silence.enter_context(_without_remarks(self._ray))
            begun = [self._begun() for _ in range(self._connection.workers)]
            facts = [self._answer(opened) for _, opened in begun]
            self._facts = _alike(facts)
            self._idle = [worker for worker, _ in begun]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        busy = [worker for _, worker in self._running.values()]
        for worker in (*self._idle, *self._opened_soon.values(), *busy):
            self._ray.kill(worker)
        self._stack.close()

    def facts(self) -> Facts:
        """Return what the search has to know; the same of each live model."""
        return self._facts

    def start(self, job: Job) -> None:
        """Measure a job as soon as a worker is free."""
        self._waiting.append(job)
        self._send()

    def wait(self) -> tuple[Job, Measurement]:
        """Return a job that was started, when it is done.

        Raises:
            LinesError: a worker cannot measure any more, or not be opened again.
        """
        while True:
            # Others go on measuring while a lost one's place has to be found on another machine.
            reference = self._connection.first_of([*self._running, *self._opened_soon])
            if reference in self._opened_soon:
                self._idle.append(self._opened_again(reference))
                self._send()
                continue
            job, worker = self._running.pop(reference)
            try:
                measurement = self._answer(reference)
            except self._ray.exceptions.RayError as error:
                lost = self._lost(job, type(error).__name__)
                worker, opened = self._begun()
                self._opened_soon[opened] = worker
                self._send()
                if lost is not None:
                    return job, lost
                continue
            self._idle.append(worker)
            self._send()
            return job, measurement

    def _send(self) -> None:
        while self._waiting and self._idle:
            job, worker = self._waiting.popleft(), self._idle.pop()
            self._running[worker.measure.remote(job)] = job, worker

    def _begun(self) -> tuple[Any, Any]:
        """Start a worker; return it, and the reference to what it says of its live model."""
        begin = Begin(self._opening, Path.cwd(), self._connection.threads)
        kind = self._ray.remote(Worker)
        # Lost workers are told and counted here: Ray's own restarts would be silent.
        options = {**self._connection.demands, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        worker = kind.options(**options).remote(begin)
        return worker, worker.open.remote()

    def _opened_again(self, opened: Any) -> Any:
        """Return a worker that stands for one that was lost.

        Raises:
            ResumableError: this one is lost, too.
        """
        worker = self._opened_soon.pop(opened)
        try:
            self._answer(opened)
        except self._ray.exceptions.RayError as error:
            raise ResumableError(
                f"a worker was lost, and another one while it opened its model "
                f"({type(error).__name__}). Is the memory of their machines enough? Give fewer "
                f"--workers, and run the same command to go on."
            ) from error
        return worker

    def _answer(self, reference: Any) -> Any:
        """Return what a worker answers.

        Raises:
            LinesError: it failed.
        """
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise LinesError(
                f"a worker failed ({reason(cause)}). Has every machine the same environment, with "
                f"mergekit-lines in it? Run the same command to go on."
            ) from error
        if isinstance(answer, Failure):
            raise answer.again()
        return answer

    def _lost(self, job: Job, why: str) -> Measurement | None:
        """Put a job whose worker was lost before the others; of too many, return that it failed."""
        self._losses[job.key] += 1
        if self._losses[job.key] < LOSSES:
            if not self._opening.model.get("quiet"):
                tell(f"a worker was lost ({why}): its trial is measured again")
            self._waiting.appendleft(job)
            return None
        problem = (
            f"{LOSSES} workers were lost while they measured it, the last by {why}. Is the memory "
            f"of their machines enough?"
        )
        return Measurement(Record(job.split, dict(job.recipe), None, {}, 0.0, (problem,)))


@contextmanager
def _without_remarks(ray: Any) -> Iterator[None]:
    """Keep back what Ray writes about a lost worker: on stdout, where a search's tables stand.

    It has no setting for that; where it calls its function by another name, it says it.
    """
    module, name = ray._private.worker, "print_to_stdstream"
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, original)


def _wants_gpu(model: Mapping[str, Any]) -> bool:
    """Whether each live model is held on a GPU of its own.

    Raises:
        LinesError: it names one GPU of a machine, or several.
    """
    device, limits = str(model.get("device") or "cpu"), model.get("max_memory") or {}
    cards = [key for key in limits if key not in ("cpu", "disk")]
    if ":" in device or len(cards) > 1:
        named = f"--device {device}" if ":" in device else "--max-memory"
        raise LinesError(
            f"{named}: found GPUs of a machine by their numbers, wanted --device cuda: each worker "
            f"has a GPU of its own, as Ray hands them out."
        )
    return device == "cuda" or bool(cards)


def _alike(facts: list[Facts]) -> Facts:
    """Return what all workers say.

    Raises:
        LinesError: two of them have other models or packages.
    """
    first, *others = facts
    identity = portable(first.identity)
    for other in others:
        if portable(other.identity) != identity:
            own = dict(portable(other.identity))
            unlike = [name for name, value in identity if own.get(name) != value]
            raise LinesError(
                f"the workers do not see the same search: {', '.join(unlike)} differ. Keep models "
                f"and evaluators on storage that all machines share, in one environment."
            )
    return first


def ray_meters(workers: int | None, address: str | None) -> PoolMaker | None:
    """Return what makes the live models of a search: in workers of a Ray, or None without one."""
    if workers is None and address is None:
        return None
    return partial(RayMeters, workers=workers, address=address)
