"""A merge's work given to workers, a shard of the output at a time, and what comes back."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.partial import Partial
from mergekit_lines.checkpoint.state import shard_digest
from mergekit_lines.checkpoint.writer import ShardLayout, sync, whole_name
from mergekit_lines.cluster import worker
from mergekit_lines.cluster.connection import Connection, connected
from mergekit_lines.cluster.shared import (
    TOKEN,
    Failure,
    Merge,
    Place,
    Result,
    Work,
    Written,
    packed,
)
from mergekit_lines.engine.jobs import KEPT, States
from mergekit_lines.engine.tasks import EngineTask, LinesTask, WriteTask
from mergekit_lines.errors import LinesError, ResumableError, reason
from mergekit_lines.kernels.compiled.loading import library
from mergekit_lines.plan.sizes import idle_workers

LOSSES = 20  # of the workers on one shard; what kills that many kills the next one too
UNIT = "tensors"


@dataclass(frozen=True)
class Sent:
    """A shard's work in a form to be sent, as often as it takes."""

    number: int
    work: Work
    packed: bytes

    @property
    def tensors(self) -> int:
        """Number of its tensors."""
        return len(self.work.tasks)


@contextmanager
def crew(
    folder: Path,
    say: Callable[[str], None],
    *,
    workers: int | None,
    address: str | None,
    threads: int | None = None,
    gpus: bool = False,
    quiet: bool = False,
) -> Iterator[RayCrew]:
    """Yield workers that see a partial folder as this process does.

    Args:
        folder: the partial folder.
        say: tells people a line.
        workers: how many; see :func:`~mergekit_lines.cluster.connection.connected`.
        address: of a running Ray, or None.
        threads: of each worker.
        gpus: give each of them a GPU.
        quiet: without a progress bar.

    Raises:
        LinesError: there is no Ray, or a machine does not see the folder.
    """
    token = secrets.token_hex(16)
    place = Place(
        folder / f"workers-{token[:8]}",
        token,
        Path.cwd(),
        worker.environment(),
    )
    place.folder.mkdir()
    try:
        (place.folder / TOKEN).write_text(token, encoding="ascii")
        with connected(workers, address, threads=threads, gpus=gpus) as connection:
            members = RayCrew(connection, place, say, quiet=quiet)
            members.on_every_machine(worker.meet)
            yield members
    finally:  # after the last worker, where they are this command's own
        shutil.rmtree(place.folder, ignore_errors=True)


class RayCrew:
    """Workers of a Ray, each on one shard at a time; one that is lost has its shard done again.

    Args:
        connection: the Ray.
        place: where the workers write.
        say: tells people a line.
        quiet: without a progress bar.

    Attributes:
        threads: of all of them.
        bytes_read: of the inputs' tensors.
        bytes_written: of the output's shards.
    """

    def __init__(
        self, connection: Connection, place: Place, say: Callable[[str], None], *, quiet: bool
    ) -> None:
        self._connection, self._place, self._say = connection, place, say
        self._ray, self._quiet = connection.ray, quiet
        self._references: list[Any] = []
        self._shard_of: dict[str, ShardLayout] = {}
        self._states: dict[str, States] = {}  # by shard
        self._partial: Partial
        self.threads = connection.workers * connection.threads
        self.bytes_read = self.bytes_written = 0

    def begin(
        self, models: OpenedModels, partial: Partial, shards: Sequence[ShardLayout], options: Any
    ) -> None:
        """See :class:`~mergekit_lines.engine.walks.Crew`."""
        self._partial = partial
        self._shard_of = {name: shard for shard in shards for name in shard.offsets}
        slots = [slot for shard in shards for slot in shard.slots.values()]
        entries = sum(slot.bytes // slot.dtype.itemsize for slot in slots)
        update = {"num_threads": self._connection.threads}
        merge = Merge.of(models, options.model_copy(update=update), entries)
        self._references = [self._ray.put(packed(merge))]
        if note := idle_workers(shards, self._connection.workers):
            self._say(note)
        if (options.device or "cpu") == "cpu" and self._connection.is_local:
            library(entries, self._say)  # compiled once, and not by all of them at once
        self.on_every_machine(worker.look, self._references)

    def on_every_machine(self, check: Callable[..., Failure | None], *arguments: Any) -> None:
        """Let every machine that can hold a worker check something.

        Raises:
            LinesError: with what the machines lack.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self._ray.remote(check)
        nodes = self._connection.nodes()
        asked = {
            task.options(
                num_cpus=0,
                max_retries=3,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(self._place, *arguments): name
            for node, name in nodes.items()
        }
        problems = []
        for reference, name in asked.items():
            try:
                failure = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise _failed(f"machine {name}: ", error) from error
            except self._ray.exceptions.RayError:
                continue  # a machine that has just gone does no work, and so none that is wrong
            if failure is not None:
                failed = failure.again()
                if not isinstance(failed, LinesError):
                    raise failed
                problems += [one.under(f"machine {name}") for one in failed.problems]
        if problems:
            raise ResumableError(problems)

    def gather(
        self,
        tasks: Sequence[LinesTask],
        kind: type[EngineTask],
        collector: Any,
        text: str,
        *,
        ahead: bool,
    ) -> None:
        """See :class:`~mergekit_lines.engine.walks.Remote`."""
        start = self._ray.put(packed(collector))
        task = self._ray.remote(worker.collect)
        early: dict[int, Any] = {}
        expected = 0

        def send(sent: Sent, _attempt: str) -> Any:
            return task.options(**self._options()).remote(
                self._place, self._references, sent.packed, start
            )

        for sent, result in self._done(self._sent(tasks, kind, ahead=ahead), send, text):
            early[sent.number] = result.collector
            if sum(one.numbers for one in self._states.values()) + result.states.numbers <= KEPT:
                self._states[sent.work.shard.file] = result.states
            while expected in early:  # in the order of the shards, whoever was first
                collector.join(early.pop(expected))
                expected += 1

    def write(self, tasks: Sequence[LinesTask]) -> None:
        """See :class:`~mergekit_lines.engine.walks.Remote`."""
        task = self._ray.remote(worker.merge)

        def send(sent: Sent, attempt: str) -> Any:
            return task.options(**self._options()).remote(
                self._place, self._references, sent.packed, attempt
            )

        for sent, result in self._done(self._sent(tasks), send, "Merging"):
            self._take(sent.work.shard, result)

    def _options(self) -> dict[str, Any]:
        # Lost workers are told and counted here: Ray's own retries would be silent.
        return {
            **self._connection.demands,
            "max_retries": 0,
            "scheduling_strategy": "SPREAD",
        }

    def _sent(
        self,
        tasks: Sequence[LinesTask],
        kind: type[EngineTask] = WriteTask,
        *,
        ahead: bool = True,
    ) -> list[Sent]:
        """Return the work on each shard, in the order of the output."""
        by_shard: dict[str, list[LinesTask]] = {}
        for task in tasks:
            by_shard.setdefault(self._shard_of[task.output_weight.name].file, []).append(task)
        works = [
            Work(self._shard_of[own[0].output_weight.name], own, kind, ahead, self._kept(file))
            for file, own in by_shard.items()
        ]
        return [Sent(number, work, packed(work)) for number, work in enumerate(works)]

    def _kept(self, file: str) -> States:
        return self._states.get(file) or States()

    def _done(
        self, sent: Sequence[Sent], send: Callable[[Sent, str], Any], text: str
    ) -> Iterator[tuple[Sent, Any]]:
        """Yield what comes of each shard's work, as it comes; at most one shard per worker runs."""
        waiting, running = deque(sent), dict[Any, Sent]()
        losses: Counter[int] = Counter()
        total = sum(one.tensors for one in sent)
        with tqdm(total=total, desc=text, unit=UNIT, disable=self._quiet) as bar:
            while waiting or running:
                while waiting and len(running) < self._connection.workers:
                    one = waiting.popleft()
                    running[send(one, _attempt(one, losses))] = one
                reference = self._connection.first_of(list(running))
                one = running.pop(reference)
                result = self._result(reference, one, losses)
                if result is None:
                    waiting.appendleft(one)
                    continue
                self.bytes_read += result.bytes_read
                yield one, result.value
                bar.update(one.tensors)

    def _result(self, reference: Any, sent: Sent, losses: Counter[int]) -> Result | None:
        """Return what a worker has done, or None where it was lost.

        Raises:
            LinesError: the work failed, or one shard's workers are lost again and again.
        """
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise _failed("", error) from error
        except exceptions.RayError as error:
            for left in self._place.folder.glob(f"*{_attempt(sent, losses)}*"):
                left.unlink(missing_ok=True)
            losses[sent.number] += 1
            file = sent.work.shard.file
            why = type(error).__name__
            if losses[sent.number] >= LOSSES:
                raise ResumableError(
                    f"{file}: {LOSSES} workers were lost over it, the last by {why}. Is the "
                    f"memory of their machines enough (`mergekit-lines inspect --workers`)? Give "
                    f"fewer workers, and run the same command to go on."
                ) from error
            with tqdm.external_write_mode(file=sys.stderr):
                self._say(f"a worker was lost ({why}): {file} is merged again")
            return None
        if isinstance(result, Failure):
            raise result.again()
        done: Result = result
        return done

    def _take(self, shard: ShardLayout, written: Written) -> None:
        """Take a shard for whole that is here as its worker has written it.

        Raises:
            ResumableError: it is not.
        """
        path = self._place.folder / written.name
        here = path.is_file() and path.stat().st_size == shard.size
        if not here or shard_digest(path, sampled=True) != written.sampled:
            raise ResumableError(
                f"{shard.file}: is not here as its worker has written it. Do all machines see one "
                f"storage at {self._place.folder.parent}? Run the same command to go on."
            )
        self._partial.vouch(shard.file, written.digest)
        path.rename(self._partial.path / whole_name(shard.file))
        sync(self._partial.path)
        self.bytes_written += shard.size


def _attempt(sent: Sent, losses: Counter[int]) -> str:
    """Return what begins the name of what a worker writes, and nobody else writes."""
    return f"{sent.number:06d}.{losses[sent.number]}-"


def _failed(place: str, error: Any) -> ResumableError:
    cause = getattr(error, "cause", None) or error
    return ResumableError(
        f"{place}a worker failed ({reason(cause)}). Has every machine the same environment, with "
        f"mergekit-lines in it? OUT was not made."
    )
