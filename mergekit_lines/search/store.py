"""Results on disk after every measurement: JSON lines that an interrupted search goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mergekit_lines.checkpoint.bounded import parse_json, read_bytes, read_json
from mergekit_lines.errors import LinesError, reason, some
from mergekit_lines.evaluate import Metric
from mergekit_lines.files import write_whole

FORMAT = 1
RESULTS = "results.jsonl"
RESULTS_BYTES = 1 << 30
SEARCH = "search.json"
# What the searches write, by the names of their files.
BEST, BEST_UNIFORM, GREEDY = "best.yml", "best-uniform.yml", "greedy.yml"
LEARNED, LEARNING = "learned.yml", "learned.json"
CARD, FIGURE, RECIPES = "results.json", "figure.png", "recipes"
OUTPUTS = (RESULTS, BEST, BEST_UNIFORM, GREEDY, LEARNED, LEARNING, CARD, FIGURE, RECIPES)
EXAMPLES = "examples.json"  # digests of the evaluators' examples, by split and spec


@dataclass(frozen=True)
class Record:
    """What was measured of one recipe on one split, or why nothing could be.

    Attributes:
        split: ``validation`` or ``test``.
        recipe: the recipe as YAML would hold it, or ``{"model": NAME}`` for an input as it is.
        mean: mean coefficient over the blocks; None for an input as it is.
        metrics: by name; none where it failed.
        seconds: that setting the weights and measuring took.
        problems: why it failed, in sentences; none where it was measured.
        partials: the objective of parts of the data, in the order in which they were measured;
            None of a part that it has no value of.
        pruned: it ended after these.
        goal: the objective that they are of; none where there are none.
    """

    split: str
    recipe: Mapping[str, Any]
    mean: float | None
    metrics: Mapping[str, Metric]
    seconds: float
    problems: tuple[str, ...] = ()
    partials: tuple[float | None, ...] = ()
    pruned: bool = False
    goal: str = ""

    @property
    def key(self) -> str:
        """What it is found by."""
        return record_key(self.split, self.recipe)


def record_key(split: str, recipe: Mapping[str, Any]) -> str:
    """Return what tells a measurement from others of the same search."""
    text = json.dumps([split, recipe], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The folder of a search, held by this process alone.

    Args:
        folder: it exists.
        identity: what the numbers hang on, by what people call it; JSON values.

    Attributes:
        identity: the same.

    Raises:
        LinesError: the folder holds results of another search, or a line that is none.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._path = folder / RESULTS
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._records: dict[str, Record] = {}
        self.count = 0
        self._check_identity()
        self._read()

    def _check_identity(self) -> None:
        path = self.folder / SEARCH
        now, left = {"format": FORMAT, **self.identity}, dict[str, Any]()
        if path.exists():
            with _reading(path):
                left = dict(read_json(path))
        elif mine := [name for name in OUTPUTS if (self.folder / name).exists()]:
            raise LinesError(
                f"{self.folder}: found {', '.join(mine)} without the {SEARCH} that says what was "
                f"measured, and would write over them. Choose another --out."
            )
        # What one of the two does not have, test evaluators for example, changes no number.
        differ = [kind for kind in now if kind in left and left[kind] != now[kind]]
        if differ:
            raise LinesError(
                f"{self.folder}: holds results of another search: {some(differ)} differ. Run that "
                f"one again to finish it, or choose another --out."
            )
        if {**left, **now} != left:
            write_output(path, json.dumps({**left, **now}, indent=2, ensure_ascii=False) + "\n")

    def _read(self) -> None:
        if not self._path.exists():
            return
        with _reading(self._path):
            content = read_bytes(self._path, RESULTS_BYTES)
        whole = _whole_lines(content)
        if len(whole) < len(content):  # the process was killed while it wrote
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        self._records = {record.key: record for record in _records(self._path, whole)}
        self.count = sum(
            not (record.problems or record.pruned) for record in self._records.values()
        )

    def find(self, split: str, recipe: Mapping[str, Any]) -> Record | None:
        """Return what was measured of a recipe on a split; None too where that failed."""
        record = self._records.get(record_key(split, recipe))
        return None if record is None or record.problems or record.pruned else record

    def add(self, record: Record) -> None:
        """Keep a record, on the disk before anything else is done."""
        line = json.dumps(_to_json(record), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritten(self._path, error) from error
        self._records[record.key] = record

    def digests(self) -> dict[str, list[str]]:
        """Return the digests of evaluators' examples that an earlier run learnt by measuring."""
        path = self.folder / EXAMPLES
        if not path.exists():
            return {}
        with _reading(path):
            return dict(read_json(path))

    def keep_digests(self, learnt: Mapping[str, Iterable[str]]) -> None:
        """Keep such digests: they tell later whether two splits share examples."""
        digests = {**self.digests(), **{spec: sorted(digests) for spec, digests in learnt.items()}}
        if digests != self.digests():
            write_output(self.folder / EXAMPLES, json.dumps(digests, indent=1) + "\n")


def read_results(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return what the folder of a search holds, and leave it as it is: one may be running there.

    A last line that has no end yet is left out.

    Returns:
        What the numbers hang on, and the last record of every measurement, the first made first.

    Raises:
        LinesError: it is not the folder of a search, or a line of its results is none.
    """
    missing = [name for name in (SEARCH, RESULTS) if not (folder / name).exists()]
    if missing:
        raise LinesError(
            f"{folder}: found no {' and no '.join(missing)}, wanted a folder that sweep, search, "
            f"soup or greedy wrote: its --out."
        )
    path = folder / RESULTS
    try:
        identity = read_json(folder / SEARCH)
        content = read_bytes(path, RESULTS_BYTES)
    except (OSError, ValueError) as error:
        raise LinesError(f"{folder}: its results cannot be read ({reason(error)}).") from error
    if not isinstance(identity, dict):
        raise LinesError(f"{folder / SEARCH}: found no mapping, wanted what a search wrote there.")
    records = {record.key: record for record in _records(path, _whole_lines(content))}
    return identity, list(records.values())


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _records(path: Path, lines: bytes) -> Iterator[Record]:
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            yield _from_json(parse_json(line.decode()))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise LinesError(
                f"{path}, line {number}: is no result ({reason(error)}). "
                f"Take the line out to measure that point again."
            ) from error


def _to_json(record: Record) -> dict[str, Any]:
    return {
        "split": record.split,
        "recipe": record.recipe,
        "mean": record.mean,
        "metrics": {name: metric.to_json() for name, metric in record.metrics.items()},
        "seconds": round(record.seconds, 3),
        **({"problems": record.problems} if record.problems else {}),
        **({"partials": record.partials} if record.partials else {}),
        **({"pruned": True} if record.pruned else {}),
        **({"goal": record.goal} if record.goal else {}),
    }


def _from_json(data: Mapping[str, Any]) -> Record:
    metrics = {name: Metric.from_json(metric) for name, metric in data["metrics"].items()}
    mean = None if data["mean"] is None else float(data["mean"])
    problems = tuple(map(str, data.get("problems", ())))
    if not isinstance(data["recipe"], dict):
        raise TypeError("its recipe is no mapping")
    partials = tuple(None if one is None else float(one) for one in data.get("partials", ()))
    return Record(
        split=data["split"],
        recipe=data["recipe"],
        mean=mean,
        metrics=metrics,
        seconds=float(data["seconds"]),
        problems=problems,
        partials=partials,
        pruned=bool(data.get("pruned", False)),
        goal=str(data.get("goal", "")),
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise LinesError(
            f"{path}: cannot be read ({reason(error)}). Choose another --out."
        ) from error


@contextmanager
def search_folder(folder: Path) -> Iterator[Path]:
    """Make the folder of a search and keep other processes out of it.

    Raises:
        LinesError: it cannot be made, or another process searches there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise LinesError(
            f"--out {folder}: another process searches there. Wait for it, or choose another."
        ) from None
    except OSError as error:
        raise LinesError(
            f"--out {folder}: cannot be written ({error.strerror}), wanted a folder. Choose "
            f"another."
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def clear_unfinished(folder: Path) -> None:
    """Take away what learning that was interrupted left.

    Raises:
        LinesError: it was not interrupted: the result is there, and would be lost.
    """
    if (folder / LEARNING).exists():
        raise LinesError(
            f"--out {folder}: found {LEARNING}: the same recipe was learnt already on the same "
            f"data. Take {LEARNED} from there, or give another --out to learn it again."
        )
    for name in (LEARNED, FIGURE):
        (folder / name).unlink(missing_ok=True)


def write_output(path: Path, text: str) -> None:
    """Write a file of a search so that it is there whole or not at all.

    Raises:
        LinesError: it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise unwritten(path, error) from error


def write_recipe(path: Path, recipe: Mapping[str, Any], head: str = "") -> None:
    """Write a recipe for ``mergekit-yaml``, behind lines of comment."""
    write_output(path, head + recipe_text(recipe))


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as YAML, in the order of its own keys."""
    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))


def unwritten(path: Path, error: OSError) -> LinesError:
    """Return the refusal of a file that cannot be written, a full disk's for example."""
    return LinesError(
        f"{path}: cannot be written ({error.strerror or reason(error)}). Mend that, and run the "
        f"same command again: what was measured before is kept."
    )
