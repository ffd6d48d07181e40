"""A live model and its evaluators: any setting of one recipe measured, once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_lines import __version__
from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Evaluator, check_apart, measure_all
from mergekit_lines.live.model import LiveModel
from mergekit_lines.live.settings import with_settings
from mergekit_lines.planner import Summary
from mergekit_lines.report import versions
from mergekit_lines.search.store import Record, Store, search_folder

Recipe = Mapping[str, Any]


def unscaled(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's plain merge: coefficient 1 for every tensor."""
    return with_settings(uniform(recipe, 1.0), {"outside": None})


def uniform(recipe: Recipe, mean: float) -> dict[str, Any]:
    """Return a recipe with one coefficient at every depth; ``outside`` stays what it is."""
    settings: dict[str, Any] = {"alpha": mean, "beta": 0.0}
    if recipe.get("merge_method") == "lines_postprocess":  # elsewhere gamma is the wrap's own
        settings["gamma"] = None
    return with_settings(recipe, settings)


def mean_coefficient(summary: Summary) -> float:
    """Return the mean of λ over all blocks of all containers; without blocks, over the tensors."""
    blocks = [block for container in summary.containers.values() for block in container]
    values = [statistics.fmean(block) for block in blocks] or list(summary.outside.values())
    return statistics.fmean(values)


class Bench:
    """Measures recipes on a live model, and keeps every result in the folder of the search.

    A recipe that was measured before, in an interrupted run too, is not measured again.

    Args:
        first: the recipe with which the model is opened.
        out: folder of the search.
        evaluators: by split.
        about: more of what the numbers hang on, by what people call it.
        model: what :class:`LiveModel` takes besides.
        total: number of measurements, for the bar.
    """

    def __init__(
        self,
        first: Recipe,
        out: Path,
        evaluators: Mapping[str, Sequence[Evaluator]],
        about: Mapping[str, Any],
        model: Mapping[str, Any],
        total: int,
    ) -> None:
        check_apart(evaluators["validation"], evaluators.get("test", ()))
        self._evaluators = evaluators
        with ExitStack() as stack:
            folder = stack.enter_context(search_folder(out))
            self.live = stack.enter_context(LiveModel(first, **model))
            self.store = Store(folder, {**self._identity(), **about})
            quiet = bool(model.get("quiet"))
            self._bar = stack.enter_context(
                tqdm(total=total, desc="Measuring", unit="point", disable=quiet)
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _identity(self) -> dict[str, Any]:
        return {
            **{
                f"the evaluators of {split}": [evaluator.identity() for evaluator in chosen]
                for split, chosen in self._evaluators.items()
            },
            "inputs": self.live.describe_inputs(),
            "the device": self.live.device.type,
            "versions": {"mergekit-lines": __version__, **versions()},
        }

    def measure(self, recipe: Recipe, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of a recipe.

        Raises:
            LinesError: the recipe is refused, or an evaluator cannot measure it.
        """
        found = self.store.find(split, recipe)
        if found is None:
            begun = time.monotonic()
            summary = self.live.set_recipe(recipe)
            found = self._measured(split, recipe, mean_coefficient(summary), begun)
        self._bar.update()
        return found

    def measure_input(self, name: str, split: str = "validation") -> Record:
        """Return what the evaluators of a split say of one of the recipe's models as it is."""
        stands_for = {"model": name}
        found = self.store.find(split, stands_for)
        if found is None:
            begun = time.monotonic()
            self.live.load(name)
            found = self._measured(split, stands_for, None, begun)
        self._bar.update()
        return found

    def _measured(self, split: str, recipe: Recipe, mean: float | None, begun: float) -> Record:
        chosen = self._evaluators[split]
        metrics = measure_all(chosen, self.live.model, self.live.tokenizer)
        if not metrics:
            raise LinesError(f"--evaluate: the evaluators of {split} gave no metric. Check them.")
        # Some know their examples only when they have measured them.
        check_apart(self._evaluators["validation"], self._evaluators.get("test", ()))
        record = Record(split, dict(recipe), mean, metrics, time.monotonic() - begun)
        self.store.add(record)
        return record

    def beside(self, recipe: Recipe, record: Record) -> tuple[Record, Record]:
        """Return the unscaled merge, and the uniform coefficient of equal mean, at a point."""
        if record.mean is None:
            raise ValueError("an input as it is has no coefficients")
        return (
            self.measure(unscaled(recipe), record.split),
            self.measure(uniform(recipe, record.mean), record.split),
        )

    def say(self, text: str) -> None:
        """Tell something, above the bar."""
        if not self._bar.disable:
            tqdm.write(f"[lines] {text}", file=self._bar.fp)
