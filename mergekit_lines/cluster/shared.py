"""What a command and its workers send each other."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.io import ShardedTensorIndex
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.writer import ShardLayout
from mergekit_lines.engine.jobs import States
from mergekit_lines.engine.tasks import EngineTask, LinesTask, WriteTask
from mergekit_lines.errors import FullDiskError, LinesError, Problem, ResumableError

TOKEN = "token"  # noqa: S105 - the file by which a machine shows that it sees the folder


@dataclass(frozen=True)
class Place:
    """Where the workers of one command write, and how they see that it is there.

    Attributes:
        folder: in the partial folder; it is gone with the command, whoever still wants to write.
        token: what the file :data:`TOKEN` in it holds.
        directory: what the command's relative paths are relative to.
        versions: of the packages that the output's bytes hang on.
    """

    folder: Path
    token: str
    directory: Path
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Input:
    """A model as the command has opened it; its shards open anew where it is unpickled."""

    model: ModelReference
    index: ShardedTensorIndex
    adapter: Adapter | None
    copied_from: tuple[Path, ...]


@dataclass(frozen=True)
class Merge:
    """What all shards of a merge have in common.

    Attributes:
        inputs: the recipe's models.
        facts: of the inputs' files, see :func:`facts`.
        options: mergekit's flags, with the threads of one worker.
        entries: of all tensors of the output.
    """

    inputs: Sequence[Input]
    facts: Mapping[str, Any]
    options: MergeOptions
    entries: int

    @classmethod
    def of(cls, models: OpenedModels, options: MergeOptions, entries: int) -> Merge:
        """Return a merge as workers open it."""
        inputs = [
            Input(model, opened.loader.index, opened.adapter, opened.copied_from)
            for model, opened in models.models.items()
        ]
        return cls(inputs, facts(models), options, entries)


@dataclass(frozen=True)
class Work:
    """One worker's work on one shard of the output.

    Attributes:
        shard: the shard.
        tasks: the tensors' in it, in the order of the plan.
        kind: what the engine does with each of them.
        ahead: whether the next tensor is read while one is worked on.
        states: what an earlier pass had to know of the tensors.
    """

    shard: ShardLayout
    tasks: Sequence[LinesTask]
    kind: type[EngineTask] = WriteTask
    ahead: bool = True
    states: States = field(default_factory=States)


@dataclass(frozen=True)
class Collected:
    """What a pass over one shard's tensors came to, and what it had to know of them."""

    collector: Any
    states: States


@dataclass(frozen=True)
class Written:
    """A whole shard in the workers' folder.

    Attributes:
        name: of the file.
        digest: of all its bytes.
        sampled: of samples, by which the command sees that it has the same file.
    """

    name: str
    digest: str
    sampled: str


@dataclass(frozen=True)
class Result:
    """What came of a worker's work, and the bytes that it read for it."""

    value: Any
    bytes_read: int


@dataclass(frozen=True)
class Failure:
    """Why a worker's work failed, as this process would have failed itself."""

    kind: type[LinesError]
    problems: tuple[Problem, ...] = ()
    error: Exception | None = None

    @classmethod
    def of(cls, error: LinesError | OSError | MemoryError) -> Failure:
        """Return a failure that can be sent."""
        if not isinstance(error, LinesError):
            return cls(LinesError, error=error)
        kinds = (FullDiskError, ResumableError, LinesError)
        return cls(next(kind for kind in kinds if isinstance(error, kind)), error.problems)

    def again(self) -> Exception:
        """Return the exception in this process."""
        return self.error or self.kind(list(self.problems))


def facts(models: OpenedModels) -> dict[str, Any]:
    """Return what the inputs' files are alike by on two machines that share them.

    Bytes, headers and times of change: a copy that kept its time (``cp -p``, ``rsync -a``) is
    the same file, and another fine-tuned model of equal headers is not.
    """
    return {
        file: {name: value for name, value in one.items() if name != "ctime_ns"}
        for files in models.describe().values()
        for file, one in files.items()
    }


def packed(value: Any) -> bytes:
    """Return what :func:`unpacked` takes; Ray itself would hide why that fails."""
    return pickle.dumps(value)


def unpacked(text: bytes) -> Any:
    """Return what another process of this command has packed."""
    return pickle.loads(text)  # noqa: S301 - by Ray, from the command that started this worker
