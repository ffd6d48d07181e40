"""A live model and its evaluators: any setting of one recipe measured, once."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_lines._version import __version__
from mergekit_lines.errors import LinesError, visible
from mergekit_lines.evaluate import Evaluator, check_apart, measure_all
from mergekit_lines.host.process import ending_on_sigterm
from mergekit_lines.lines.summary import Summary
from mergekit_lines.live.model import LiveModel
from mergekit_lines.report.file import versions
from mergekit_lines.search.store import Record, Store, search_folder

Recipe = Mapping[str, Any]
# The three ways in which every point is measured, as tables and figures call them.
LINES, UNIFORM, UNSCALED = "LiNeS", "uniform, equal mean", "unscaled"
PACKAGES = ("accelerate", "numpy", "tokenizers")  # whose versions numbers may hang on, too
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

    def without(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {
                key: (
                    {name: kept for name, kept in inner.items() if name not in dropped}
                    if key == "parameters" and isinstance(inner, Mapping)
                    else without(inner)
                )
                for key, inner in part.items()
            }
        return [without(item) for item in part] if isinstance(part, (list, tuple)) else part

    result: dict[str, Any] = without(copy.deepcopy(dict(recipe)))
    result["parameters"] = {**(result.get("parameters") or {}), "alpha": value, "beta": 0.0}
    return result


def mean_coefficient(summary: Summary) -> float:
    """Return the mean of λ over all blocks of all containers; without blocks, over the tensors."""
    blocks = [block for container in summary.containers.values() for block in container]
    values = [statistics.fmean(block) for block in blocks] or list(summary.outside.values())
    return statistics.fmean(values)


@dataclass(frozen=True)
class _Remembered:
    """An evaluator as an earlier run knew it: what it measured was on these examples."""

    spec: str
    described: Mapping[str, Any]
    examples: frozenset[str]

    def identity(self) -> dict[str, Any]:
        return dict(self.described)

    def digests(self) -> frozenset[str]:
        return self.examples


class Bench:
    """Measures recipes on a live model, and keeps every result in the folder of the search.

    A recipe that was measured before, in an interrupted run too, is not measured again.

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
        if model.get("random_seed") is not None:
            raise LinesError(
                f"random_seed: found {model['random_seed']}, wanted parameters.seed in the recipe: "
                f"a recipe that was chosen has to say by itself what it draws."
            )
        check_apart(evaluators["validation"], evaluators.get("test", ()))
        # A harness that is missing, for example, is told before a model is opened.
        judges = {
            f"the evaluators of {split}": [evaluator.identity() for evaluator in chosen]
            for split, chosen in evaluators.items()
        }
        self._evaluators = evaluators
        with ExitStack() as stack:
            stack.enter_context(ending_on_sigterm())
            folder = stack.enter_context(search_folder(out))
            work = _empty(folder / WORK)
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            self.live = stack.enter_context(LiveModel(first, **{"offload_folder": work, **model}))
            self.store = Store(folder, {"the recipe": document, **judges, **self._identity(model)})
            quiet = bool(model.get("quiet"))
            self._bar = stack.enter_context(
                tqdm(total=total, desc="Measuring", unit="point", disable=quiet)
            )
            if self.store.count:
                count = self.store.count
                self.say(f"found {count} results in {out}: going on behind them")
            self._stack = stack.pop_all()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C, or a signal
            self.say(f"what was measured is kept in {self.store.folder}: the same command goes on")
        self._stack.close()

    def _identity(self, model: Mapping[str, Any]) -> dict[str, Any]:
        options = ("lora_merge_dtype", "copy_tokenizer", "allow_crimes")
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {
            "inputs": self.live.describe_inputs(),
            "the device": self.live.device.type,
            "options": {name: model[name] for name in options if name in model},
            "versions": {"mergekit-lines": __version__, **versions(), **packages},
        }

    def measure(self, recipe: Recipe, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of a recipe.

        Raises:
            LinesError: the recipe is refused, or an evaluator cannot measure it.
        """
        record = self.store.find(split, recipe)
        if record is not None:
            return self._kept(record)
        begun = time.monotonic()
        try:
            summary = self.live.set_recipe(recipe)
            return self._measured(split, recipe, mean_coefficient(summary), begun)
        except LinesError as error:
            words = recipe.get("parameters")
            raise LinesError(
                [one.under(f"at the parameters {words}") for one in error.problems]
            ) from error

    def measure_input(self, name: str, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of one of the recipe's models as it is.

        Raises:
            LinesError: the model cannot be loaded as it is, or an evaluator cannot measure it.
        """
        stands_for = {"model": name}
        record = self.store.find(split, stands_for)
        if record is not None:
            return self._kept(record)
        begun = time.monotonic()
        self.live.load(name)
        return self._measured(split, stands_for, None, begun)

    def _kept(self, record: Record) -> Record:
        # The bar's rate is that of measurements.
        if self._bar.total is not None:
            self._bar.total = max(self._bar.total - 1, self._bar.n)
            self._bar.refresh()
        return record

    def _measured(self, split: str, recipe: Recipe, mean: float | None, begun: float) -> Record:
        chosen = self._evaluators[split]
        metrics = measure_all(chosen, self.live.model, self.live.tokenizer)
        if not metrics:
            raise LinesError(f"--evaluate: the evaluators of {split} gave no metric. Check them.")
        learnt = {
            _place(split, evaluator): digests
            for evaluator in chosen
            if (digests := evaluator.digests())
        }
        self.store.keep_digests(learnt)
        # Some know their examples only when they have measured them, in an earlier run perhaps.
        check_apart(list(self._as_known("validation")), list(self._as_known("test")))
        record = Record(split, dict(recipe), mean, metrics, time.monotonic() - begun)
        self.store.add(record)
        self._bar.update()
        return record

    def _as_known(self, split: str) -> Iterator[Any]:
        stored = self.store.digests()
        for evaluator in self._evaluators.get(split, ()):
            digests = stored.get(_place(split, evaluator))
            if digests and not evaluator.digests():
                examples = frozenset(digests)
                yield _Remembered(evaluator.spec, evaluator.identity(), examples)
            else:
                yield evaluator

    def three_ways(self, recipe: Recipe) -> dict[str, Record]:
        """Return a point with LiNeS, at the uniform coefficient of equal mean, and unscaled."""
        lines = self.measure(recipe)
        if lines.mean is None:
            raise ValueError("an input as it is has no coefficients")
        return {
            LINES: lines,
            UNIFORM: self.measure(uniform(recipe, lines.mean)),
            UNSCALED: self.measure(unscaled(recipe)),
        }

    def say(self, text: str) -> None:
        """Tell something, above the bar."""
        if not self._bar.disable:
            tqdm.write(f"[lines] {visible(text)}", file=self._bar.fp)


def _place(split: str, evaluator: Evaluator) -> str:
    return f"{split} {evaluator.spec}"


def _empty(folder: Path) -> Path:
    """Make a folder anew; what a killed search left in it is nobody's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
