"""``lm_eval:task,task``: tasks of lm-evaluation-harness, on the model object that is there."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError, nearest, reason
from mergekit_lines.evaluate.code import same_directory
from mergekit_lines.evaluate.functions import as_number, failures
from mergekit_lines.evaluate.harness.tasks import Tasks
from mergekit_lines.evaluate.metric import Completions, Metric, metric
from mergekit_lines.evaluate.models import input_device, still, text_tokenizer
from mergekit_lines.evaluate.partial import is_heard, so_far
from mergekit_lines.evaluate.spec import (
    FromSpec,
    Settings,
    Spec,
    check_name,
    count,
    natural,
    read_options,
)

BATCH_SIZE = 8
PREFERRED = ("acc_norm", "acc", "exact_match")


class Harness(FromSpec):
    """Tasks, groups and tags of lm-evaluation-harness, a metric for each.

    A group that defines an aggregate is one metric; one that does not, and a tag, is a metric
    for each of its tasks. A metric has the task's name, with ``_`` for what no identifier has.
    With a NAME, a single metric is called that, and several ``NAME_task``. Of a task's metrics,
    the one taken is ``metric`` (``exact_match``, or with its filter ``exact_match,strict-match``),
    or ``acc_norm``, ``acc``, ``exact_match``, or the first one with a direction. Examples are
    kept where their mean is the value.

    A task's examples are those of its ``test_split``, or of its ``validation_split`` where it
    has no other: that is the task's choice, and not this evaluator's split. To choose on one
    part and report on another, name two tasks.

    Options: ``limit`` (examples per task), ``num_fewshot``, ``include_path`` (a folder with task
    YAMLs), ``batch_size`` (8), ``metric``.
    """

    takes = ("batch_size", "limit", "seed", "include_path")

    def __init__(self, spec: Spec, split: str, settings: Settings) -> None:
        """Read the spec; tasks are looked up by :meth:`identity` or the first measurement.

        Raises:
            LinesError: an option is wrong, or ``include_path`` is no folder.
        """
        options = read_options(
            spec,
            {
                "limit": count,
                "num_fewshot": natural,
                "include_path": Path,
                "batch_size": count,
                "metric": str,
            },
        )
        super().__init__(spec, split, spec.name or "lm_eval")
        self._label = spec.name
        self._asked = [task.strip() for task in spec.args.split(",")]
        if not all(self._asked) or len(set(self._asked)) != len(self._asked):
            raise LinesError(
                f"{spec.text}: found the tasks {spec.args!r}, wanted different names joined by "
                f"commas."
            )
        self._limit: int | None = options.get("limit", settings.limit)
        self._shots: int | None = options.get("num_fewshot")
        self._batch_size: int = options.get("batch_size", settings.batch_size or BATCH_SIZE)
        self._metric: str | None = options.get("metric")
        self._seed = settings.seed
        self._include: Path | None = options.get("include_path", settings.include_path)
        if self._include is not None and not self._include.is_dir():
            raise LinesError(
                f"{spec.text}: include_path {self._include} is no folder. Give the folder with "
                f"the task's YAML."
            )
        self._tasks: Tasks | None = None
        self._digests: frozenset[str] | None = None

    def identity(self) -> dict[str, Any]:
        """Return what the numbers hang on: options, the harness's version, tasks, local files.

        Of tasks below ``include_path`` these are the YAMLs, what they include, the Python files
        of their functions, and the local files of their data. Datasets from the Hub are not
        looked at.

        Raises:
            LinesError: the harness is not installed, or a task cannot be loaded.
        """
        tasks = self._load()
        options = {
            "limit": self._limit,
            "num_fewshot": self._shots,
            "batch_size": self._batch_size,
            "metric": self._metric,
            "seed": self._seed,
        }
        version = importlib.metadata.version("lm_eval")
        named = {"tasks": sorted(tasks.tasks), "version": version}
        return {**self.described(options, tasks.data, tasks.code), **named}

    def digests(self) -> frozenset[str] | None:
        """Return the harness's SHA-256 of every document, None before the first measurement."""
        return self._digests

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        completions: Completions | None = None,
        processor: Callable[[], Any] | None = None,
    ) -> dict[str, Metric]:
        """Return a metric for each task, by name.

        Raises:
            LinesError: the harness fails, a task has no such metric, or a number is not finite.
        """
        text_tokenizer(self.spec, tokenizer)
        tasks = self._load()
        for task in tasks.tasks.values():
            task.set_fewshot_seed(seed=self._seed)
        single = is_heard() and len(tasks.tasks) > 1 and not tasks.loaded.get("groups")
        results: dict[str, Any] = {}
        with still(model, self._seed), self._failures("lm-evaluation-harness failed"):
            lm = _language_model(model, tokenizer, self._batch_size)
            if not single:
                results = self._evaluated(lm, tasks.loaded)
            for number, (name, task) in enumerate(tasks.tasks.items() if single else (), 1):
                part = self._evaluated(lm, {**tasks.loaded, "tasks": {name: task}})
                for kind in ("results", "samples", "higher_is_better"):
                    results.setdefault(kind, {}).update(part[kind])
                if number < len(tasks.tasks):
                    so_far(self._metrics(results, tasks, list(results["results"]), alone=False))
        samples = results["samples"].values()
        self._digests = frozenset(sample["doc_hash"] for each in samples for sample in each)
        kept = self._reported(results, tasks)
        return self._metrics(results, tasks, kept, alone=len(kept) == 1)

    def _evaluated(self, lm: Any, loaded: Mapping[str, Any]) -> dict[str, Any]:
        # Not simple_evaluate: it loads the tasks anew, and lists all installed packages, for
        # seconds each time; the seeds it sets are set by the caller.
        from lm_eval import evaluate

        results: dict[str, Any] = evaluate(
            lm=lm, task_dict=loaded, limit=self._limit, log_samples=True, bootstrap_iters=0
        )
        return results

    def _metrics(
        self, results: Mapping[str, Any], tasks: Tasks, kept: Sequence[str], *, alone: bool
    ) -> dict[str, Metric]:
        metrics = {}
        for task in kept:
            name = self._named(task, alone=alone)
            if name in metrics:
                raise LinesError(
                    f"{self.spec}: two of its tasks would both be called {name}. Give them two "
                    f"evaluators, each with a name: NAME=lm_eval:task."
                )
            metrics[name] = self._read(name, task, results, tasks)
        return metrics

    def _named(self, task: str, *, alone: bool) -> str:
        name = re.sub(r"\W", "_", task)
        if self._label is not None:
            name = self._label if alone else f"{self._label}_{name}"
        return check_name(self.spec, name)

    def _reported(self, results: Mapping[str, Any], tasks: Tasks) -> list[str]:
        """Return the groups that have an aggregate, and the tasks of what has none."""
        groups = results.get("groups") or {}
        kept: list[str] = []
        for asked in self._asked:
            kept += [asked] if asked in groups else tasks.leaves[asked]
        return list(dict.fromkeys(kept))

    def _read(self, name: str, task: str, results: Mapping[str, Any], tasks: Tasks) -> Metric:
        numbers = {**results["results"], **(results.get("groups") or {})}[task]
        directions = results["higher_is_better"].get(task, {})
        values = {
            key: value
            for key, value in numbers.items()
            if "," in key and "_stderr," not in key and as_number(value) is not None
        }
        key = self._choose(task, values, directions)
        word, _, chosen = key.partition(",")
        higher = directions.get(word)
        if higher is None:
            raise LinesError(
                f"{self.spec}: the harness does not say whether more or less of {word} is better "
                f"for {task}. Choose another of its metrics with ?metric=."
            )
        leaves = tasks.leaves.get(task, [task])
        scores = [
            as_number(sample.get(word))
            for leaf in leaves
            for sample in results["samples"].get(leaf, ())
            if sample.get("filter", chosen) == chosen
        ]
        value = float(values[key])
        return metric(
            self.spec,
            name,
            value,
            origin=task,
            higher_is_better=higher,
            examples=_examples(scores, value),
        )

    def _choose(
        self, task: str, values: Mapping[str, Any], directions: Mapping[str, bool | None]
    ) -> str:
        """Return the key ``metric,filter`` of what is reported of a task."""
        words = list(dict.fromkeys(key.partition(",")[0] for key in values))
        if self._metric is not None:
            for key in values:
                if self._metric in {key, key.partition(",")[0]}:
                    return key
            raise LinesError(
                f"{self.spec}: the task {task} has no metric {self._metric!r}."
                f"{nearest(self._metric, [*words, *values])} It has: {', '.join(values)}."
            )
        directed = [word for word in words if directions.get(word) is not None]
        for word in (*PREFERRED, *directed):
            for key in values:
                if key.partition(",")[0] == word:
                    return key
        raise LinesError(
            f"{self.spec}: the task {task} has no metric that is a number and has a direction. "
            f"Take another task."
        )

    def _load(self) -> Tasks:
        if self._tasks is None:
            with self._failures("lm-evaluation-harness could not load a task or its data"):
                self._tasks = Tasks(self.spec, self._asked, self._include)
                self._tasks.set_shots(self.spec, self._shots)
        return self._tasks

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        in_words = failures(lambda error: f"{self.spec}: {what} ({reason(error)}).")
        with in_words, same_directory():  # a task's own Python files run here
            yield


def _language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Wrap a model for the harness, and leave model and tokenizer as they are."""
    from lm_eval.models.huggingface import HFLM

    # The harness ties weights anew, which an untied checkpoint of a tied class does not survive,
    # and gives a tokenizer without a padding token one.
    model.tie_weights = lambda *_, **__: None
    try:
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    finally:
        del model.tie_weights
    wrapped._device = input_device(model)  # of an offloaded model it would say "meta"
    return wrapped


def _examples(scores: Sequence[float | None], value: float) -> list[float] | None:
    """Return the scores if all are numbers whose mean is the value."""
    kept = [score for score in scores if score is not None]
    if not kept or len(kept) != len(scores):
        return None
    same = math.isclose(math.fsum(kept) / len(kept), value, rel_tol=1e-9, abs_tol=1e-12)
    return kept if same else None
