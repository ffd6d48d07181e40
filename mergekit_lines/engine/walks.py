"""Tensors of a plan handed to the engine: of this process, or of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from mergekit.graph import Executor, Task

from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.partial import Partial
from mergekit_lines.checkpoint.writer import ShardLayout
from mergekit_lines.engine.tasks import EngineTask, LinesTask, WriteTask, engine_task


class Remote(Protocol):
    """Does the engine's work in other processes, a shard of the output at a time."""

    def gather(
        self,
        tasks: Sequence[LinesTask],
        kind: type[EngineTask],
        collector: Any,
        text: str,
        *,
        ahead: bool,
    ) -> None:
        """Go over tensors; the collector joins what each process has collected.

        Args:
            tasks: the tensors', in the order of the plan.
            kind: what the engine does with each of them.
            collector: takes what comes of it; it goes to other processes as it is now.
            text: tells people what is done.
            ahead: whether the next tensor is read while one is worked on.

        Raises:
            LinesError: names the tensor.
        """

    def write(self, tasks: Sequence[LinesTask]) -> None:
        """Merge tensors, each with its coefficient and seed, into the partial folder's shards.

        Raises:
            LinesError: names the tensor.
        """


class Crew(Remote, Protocol):
    """Other processes that do a merge's work, and see its folder as this one does.

    Attributes:
        threads: of all of them.
        bytes_read: of the inputs' tensors.
        bytes_written: of the output's shards.
    """

    threads: int
    bytes_read: int
    bytes_written: int

    def begin(
        self, models: OpenedModels, partial: Partial, shards: Sequence[ShardLayout], options: Any
    ) -> None:
        """Take the merge, and see that every process sees its inputs as this one does.

        Args:
            models: the recipe's, opened.
            partial: the partial folder, which takes whole shards.
            shards: the output's.
            options: mergekit's flags.

        Raises:
            LinesError: a machine sees another file, or none.
        """


class RemoteTask(Task[None]):
    """Work of other processes, as one node of mergekit's graph."""

    work: Callable[[], None]

    def arguments(self) -> dict[str, Task[Any]]:
        """Return nothing: who does the work reads what it needs."""
        return {}

    def execute(self, **_kwargs: Any) -> None:
        """See that it is done."""
        self.work()


def walk(
    tasks: Sequence[LinesTask],
    engine: Any,
    remote: Remote | None,
    kind: type[EngineTask],
    collector: Any,
    options: Any,
    text: str,
    *,
    ahead: bool = True,
) -> None:
    """Let the engine go over tensors before any is merged.

    Args:
        tasks: the tensors', in the order of the plan.
        engine: of this process; not asked where there is a ``remote``.
        remote: goes over them instead, where there is one.
        kind: what the engine does with each of them.
        collector: takes what comes of it.
        options: mergekit's flags.
        text: tells people what is done.
        ahead: whether the next tensor is read while one is worked on.

    Raises:
        LinesError: names the tensor.
    """
    if remote is not None:
        remote.gather(tasks, kind, collector, text, ahead=ahead)
        return
    numbered = [
        engine_task(task, kind, engine=engine, number=number, collector=collector)
        for number, task in enumerate(tasks)
    ]
    engine.order(numbered if ahead else [])
    execute(numbered, options, text)


def execute(tasks: Sequence[Task[Any]], options: Any, text: str) -> None:
    """Let mergekit's executor do tasks of the engine, with a bar that says ``text``."""
    executor = Executor(
        tasks,
        math_device=options.device,
        storage_device=options.device if options.low_cpu_memory else "cpu",
    )
    for _ in executor.run(quiet=options.quiet, desc=text):
        pass


def writing(tasks: Sequence[LinesTask], engine: Any, remote: Remote | None) -> list[Task[Any]]:
    """Return what mergekit's executor does to have these tensors in their shards.

    Args:
        tasks: the tensors', in the order of the plan, with their coefficients.
        engine: of this process, which knows what is missing.
        remote: merges them instead, where there is one.
    """
    missing = [
        (number, task) for number, task in enumerate(tasks) if engine.wants(task.output_weight.name)
    ]
    if remote is not None:
        return [RemoteTask(work=partial(remote.write, [task for _, task in missing]))]
    numbered = [engine_task(task, WriteTask, engine=engine, number=n) for n, task in missing]
    engine.order(numbered)
    return list(numbered)
