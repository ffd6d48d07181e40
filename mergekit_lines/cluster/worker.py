"""What a worker does: a shard of the output at a time, from inputs that it opens once."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.io import LazyTensorLoader
from mergekit.io.tasks import LoaderCache

import mergekit_lines
from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.state import shard_digest
from mergekit_lines.checkpoint.writer import ShardLayout, ShardWriter, whole_name
from mergekit_lines.cluster.shared import (
    TOKEN,
    Collected,
    Failure,
    Merge,
    Place,
    Result,
    Work,
    Written,
    facts,
    unpacked,
)
from mergekit_lines.engine.engine import Engine, ending
from mergekit_lines.engine.walks import execute, walk, writing
from mergekit_lines.errors import LinesError, ResumableError, some
from mergekit_lines.kernels.compiled.loading import library
from mergekit_lines.methods.registry import resolve
from mergekit_lines.report.file import versions


@dataclass
class _Opened:
    """A merge whose inputs this process has opened."""

    merge: Merge
    models: OpenedModels


_OPENED: dict[str, _Opened] = {}  # by the command's token; a worker has but one command


def meet(place: Place) -> Failure | None:
    """See that this machine has the command's folder, and the same packages."""
    try:
        _check(place)
    except LinesError as error:
        return Failure.of(error)
    return None


def look(place: Place, references: list[Any]) -> Failure | None:
    """See that this machine has the command's inputs."""
    try:
        _opened(place, references)
    except (LinesError, OSError) as error:
        return Failure.of(error)
    return None


def collect(place: Place, references: list[Any], work: bytes, collector: bytes) -> Result | Failure:
    """Go over the tensors of one shard, and return what the collector has then."""

    def result(opened: _Opened) -> Collected:
        task: Work = _work(work)
        joined = unpacked(collector)
        with _engine(opened, place.folder, task.shard, {}) as engine:
            options = opened.merge.options
            walk(task.tasks, engine, None, task.kind, joined, options, "", ahead=task.ahead)
        return Collected(joined, engine.states)

    return _guarded(place, references, result)


def merge(place: Place, references: list[Any], work: bytes, attempt: str) -> Result | Failure:
    """Merge the tensors of one shard into a file of its own; return it whole and durable."""

    def result(opened: _Opened) -> Written:
        task: Work = _work(work)
        shard = replace(task.shard, file=attempt + task.shard.file)
        digests: dict[str, str] = {}
        with _engine(opened, place.folder, shard, digests) as engine:
            engine.states = task.states
            execute(writing(task.tasks, engine, None), opened.merge.options, "")
        opened.models.check_unchanged()
        name = whole_name(shard.file)
        return Written(name, shard_digest(place.folder / name), digests[shard.file])

    return _guarded(place, references, result)


def _guarded(
    place: Place, references: list[Any], work: Callable[[_Opened], Any]
) -> Result | Failure:
    """Do some work, or tell why it failed in a way that can be sent."""
    try:
        opened = _opened(place, references)
        before = opened.models.bytes_read
        value = work(opened)
    except (LinesError, OSError, MemoryError) as error:
        return Failure.of(error)
    return Result(value, opened.models.bytes_read - before)


def _check(place: Place) -> None:
    """Refuse a machine that does not see the folder, or has other packages.

    Raises:
        LinesError: with what it lacks.
    """
    try:
        token = (place.folder / TOKEN).read_text(encoding="ascii")
    except (OSError, ValueError):
        token = ""
    if token != place.token:
        raise ResumableError(
            f"does not see {place.folder.parent.parent} as this machine does, wanted one storage "
            f"that all of them share under one path. Choose an OUT there."
        )
    own = environment()
    unlike = [f"{name} {own.get(name)}" for name in place.versions if not _same(own, place, name)]
    if unlike:
        wanted = [f"{name} {place.versions[name]}" for name in place.versions]
        raise ResumableError(
            f"has {some(unlike, 3)}, wanted what this machine has ({some(wanted, 9)}): the same "
            f"merge may give other bytes there. Install one environment for all."
        )


def environment() -> dict[str, str]:
    """Return what the bytes of a merge hang on beside its inputs, of this machine.

    The order in which torch sums hangs on what the processor can do.
    """
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    own = f"{mergekit_lines.__version__} ({_sources()})"
    return {"mergekit-lines": own, **versions(), "processor": processor}


def _sources() -> str:
    """Return what two states of this package differ in, which may have one version."""
    digest = hashlib.sha256()
    root = Path(mergekit_lines.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _same(own: Mapping[str, str], place: Place, name: str) -> bool:
    return own.get(name) == place.versions[name]


def _opened(place: Place, references: list[Any]) -> _Opened:
    """Return the merge with its inputs open, which are opened once in a process.

    Raises:
        LinesError: the machine is none that can do the work, or sees other inputs.
    """
    if place.token not in _OPENED:
        _check(place)
        _OPENED[place.token] = _open(place, _received(references[0]))
    return _OPENED[place.token]


def _received(reference: Any) -> bytes:
    import ray

    content: bytes = ray.get(reference)
    return content


def _open(place: Place, content: bytes) -> _Opened:
    mergekit_lines.register()
    torch.set_num_threads(1)  # as the command's own: sums then have one order
    with suppress(OSError):  # where all paths are absolute nothing hangs on it
        os.chdir(place.directory)
    try:
        merge: Merge = unpacked(content)
        models = OpenedModels()
        for one in merge.inputs:
            loader = LazyTensorLoader(one.index, lazy_unpickle=merge.options.lazy_unpickle)
            LoaderCache().loaders[one.model] = loader
            models.add(one.model, loader, one.adapter, one.copied_from)
        own = facts(models)
    except (LinesError, OSError) as error:
        raise ResumableError(
            f"cannot open the models that this machine has opened ({error}). Keep them on storage "
            f"that all machines share, or copy them to the same path with their times (rsync -a)."
        ) from error
    unlike = [Path(file).name for file, one in merge.facts.items() if own.get(file) != one]
    if unlike or own.keys() != merge.facts.keys():
        raise ResumableError(
            f"has other models under the paths of the recipe ({some(unlike, 3)} differ in size, "
            f"header or time of change). Keep them on storage that all machines share, or copy "
            f"them with their times (rsync -a)."
        )
    LoaderCache().setup(options=merge.options)
    return _Opened(merge, models)


def _work(content: bytes) -> Work:
    work: Work = unpacked(content)
    for name in {task.method_name for task in work.tasks}:
        resolve(name)
    return work


@contextmanager
def _engine(
    opened: _Opened, folder: Path, shard: ShardLayout, digests: dict[str, str]
) -> Iterator[Engine]:
    """Yield an engine that writes one shard, whose threads end with the block."""
    writer = ShardWriter(folder, [shard], digests.__setitem__)
    engine = Engine(opened.models, writer, opened.merge.options)
    if engine.device.type == "cpu":
        engine.workers.library = library(opened.merge.entries)
    with ending(engine.workers, writer):
        yield engine
