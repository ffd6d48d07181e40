"""A live model and its evaluators: any setting of one recipe measured, once."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_lines._version import __version__
from mergekit_lines.errors import FullDiskError, LinesError, visible
from mergekit_lines.evaluate import Evaluator, Metric, check_apart, measure_all
from mergekit_lines.host.process import ending_on_sigterm
from mergekit_lines.lines.summary import Summary
from mergekit_lines.live.model import LiveModel
from mergekit_lines.recipe.settings import without_words
from mergekit_lines.report.file import versions
from mergekit_lines.search.checks import check_seed
from mergekit_lines.search.store import Record, Store, search_folder

Recipe = Mapping[str, Any]
# The three ways in which every point is measured, as tables and figures call them.
LINES, UNIFORM, UNSCALED = "LiNeS", "uniform, equal mean", "unscaled"
PACKAGES = ("accelerate", "numpy", "tokenizers")  # whose versions numbers may hang on, too
HOPELESS = 3  # failures before anything was measured, after which a search ends
WORK = ".work"  # in the folder of a search: what a live model keeps on disk while it lives


def unscaled(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's plain merge: coefficient 1 for every tensor."""
    return _one_coefficient(recipe, 1.0, {"outside"})


def uniform(recipe: Recipe, mean: float) -> dict[str, Any]:
    """Return a recipe with one coefficient for all tensors; an ``outside`` of its own stays."""
    return _one_coefficient(recipe, mean, set())


def _one_coefficient(recipe: Recipe, value: float, dropped: set[str]) -> dict[str, Any]:
    """Set alpha at the top and nowhere else: parameters of slices and modules would win."""
    dropped = {"alpha", "beta", "schedule", "norm", *dropped}
    if recipe.get("merge_method") == "lines_postprocess":  # elsewhere gamma is the wrap's own
        dropped.add("gamma")

    result: dict[str, Any] = without_words(copy.deepcopy(dict(recipe)), dropped)
    result["parameters"] = {**(result.get("parameters") or {}), "alpha": value, "beta": 0.0}
    return result


def mean_coefficient(summary: Summary) -> float:
    """Return the mean of λ over all blocks of all containers; without blocks, over the tensors.

    Each block counts once, whatever its size, and as the mean of its λ where filters give several.
    """
    blocks = [block for container in summary.containers.values() for block in container]
    values = [statistics.fmean(block) for block in blocks] or list(summary.outside.values())
    return statistics.fmean(values)


class Bench:
    """Measures recipes on a live model, and keeps every result in the folder of the search.

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

    Raises:
        LinesError: validation and test share data, the model cannot be opened, or ``out`` holds
            another search.
    """

    def __init__(
        self,
        first: Recipe,
        out: Path,
        evaluators: Mapping[str, Sequence[Evaluator]],
        document: Recipe,
        model: Mapping[str, Any],
        total: int,
    ) -> None:
        check_seed(model)
        check_apart(evaluators["validation"], evaluators.get("test", ()))
        # A harness that is missing, for example, is told before a model is opened.
        judges = {
            f"the evaluators of {split}": [evaluator.identity() for evaluator in chosen]
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
            self.live = stack.enter_context(LiveModel(first, **{"offload_folder": work, **model}))
            self.store = Store(
                folder, {"the recipe": document, **judges, **identity_of(self.live, model)}
            )
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

    def measure(self, recipe: Recipe, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of a recipe, or why they cannot.

        Raises:
            LinesError: splits share data, inputs were changed, or nothing can be measured at all.
        """
        return self._kept(split, recipe) or self._measured(
            split, recipe, lambda: mean_coefficient(self.live.set_recipe(recipe))
        )

    def measure_input(self, name: str, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of one of the recipe's models as it is.

        Raises:
            LinesError: as :meth:`measure` does.
        """
        recipe = {"model": name}
        return self._kept(split, recipe) or self._measured(
            split, recipe, lambda: self.live.load(name)
        )

    def _kept(self, split: str, recipe: Recipe) -> Record | None:
        record = self.store.find(split, recipe)
        # The bar's rate is that of measurements.
        if record is not None and self._bar.total is not None:
            self._bar.total = max(self._bar.total - 1, self._bar.n)
            self._bar.refresh()
        return record

    def _measured(
        self, split: str, recipe: Recipe, set_weights: Callable[[], float | None]
    ) -> Record:
        chosen, begun = self._evaluators[split], time.monotonic()
        mean, metrics, problems = None, dict[str, Metric](), tuple[str, ...]()
        try:
            mean = set_weights()
            metrics = measure_all(
                chosen,
                self.live.model,
                self.live.tokenizer,
                self.say,
                lambda: self.live.processor,
            )
        except FullDiskError:
            raise
        except LinesError as error:
            self.live.check_inputs()  # changed ones are no failure of a point
            problems = tuple(map(str, error.problems))
        if not metrics and not problems:
            problems = (f"the evaluators of {split} gave no metric. Check them.",)
        record = Record(split, dict(recipe), mean, metrics, time.monotonic() - begun, problems)
        if problems:
            self.store.add(record)
            self._note(record)
        else:
            self._keep_apart(chosen)
            self.store.add(record)
            self._any = True
        self._bar.update()
        return record

    def _note(self, record: Record) -> None:
        """Take note of a failure; where nothing could ever be measured, it is no point's."""
        self.failures += failures_of(record)
        self.say(f"failed, going on: {self.failures[-1]}")
        if not self._any and len(self.failures) >= HOPELESS:
            raise LinesError(self.failures[0])

    def _keep_apart(self, chosen: Sequence[Evaluator]) -> None:
        self.store.keep_digests(
            {_place(evaluator): digests for evaluator in chosen if (digests := evaluator.digests())}
        )
        # Some know their examples only when they have measured them, in an earlier run perhaps.
        stored = self.store.digests()

        def digests_of(evaluator: Evaluator) -> frozenset[str]:
            return evaluator.digests() or frozenset(stored.get(_place(evaluator), ()))

        check_apart(self._evaluators["validation"], self._evaluators.get("test", ()), digests_of)

    def three_ways(self, recipe: Recipe) -> dict[str, Record]:
        """Return a point with LiNeS, at the uniform coefficient of equal mean, and unscaled.

        The second is not there where the first's weights could not be set.
        """
        records = {LINES: self.measure(recipe)}
        mean = records[LINES].mean
        if mean is not None:
            # Schedules of one mean share one measurement: their sums differ in roundings.
            records[UNIFORM] = self.measure(uniform(recipe, float(f"{mean:.12g}")))
        return {**records, UNSCALED: self.measure(unscaled(recipe))}

    def say(self, text: str) -> None:
        """Tell something, above the bar and once."""
        if not self._bar.disable and text not in self._said:
            self._said.add(text)
            tqdm.write(f"[lines] {visible(text)}", file=self._bar.fp)


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


def failures_of(record: Record) -> list[str]:
    """Return a record's problems, each with the point that has it."""
    place = record.recipe.get("model") or f"at the parameters {record.recipe.get('parameters')}"
    return [f"{place}: {problem}" for problem in record.problems]


def _place(evaluator: Evaluator) -> str:
    return f"{evaluator.split} {evaluator.spec}"
