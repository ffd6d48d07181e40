"""Coefficients of blocks learnt on examples, and measured on others beside what is not learnt."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mergekit_lines.errors import visible
from mergekit_lines.host.process import ending_on_sigterm
from mergekit_lines.live.coefficients import (
    SEVERAL,
    Coefficients,
    Learnable,
    PerModel,
    holds_several,
    rounded,
    uniform,
)
from mergekit_lines.live.learn import Uniform, best_uniform, descend
from mergekit_lines.live.model import LiveModel
from mergekit_lines.search.bench import WORK
from mergekit_lines.search.checks import (
    check_learning,
    check_per_model,
    check_seed,
    open_recipe,
)
from mergekit_lines.search.learning.classes import task_of
from mergekit_lines.search.learning.examples import Examples, parted, read_examples
from mergekit_lines.search.learning.logits import Function, read_function
from mergekit_lines.search.learning.predictions import batches, means, measured
from mergekit_lines.search.measuring.meters import identity_of
from mergekit_lines.search.store import (
    LEARNED,
    LEARNING,
    Store,
    clear_unfinished,
    search_folder,
    write_output,
    write_recipe,
)
from mergekit_lines.search.telling import beginning

CHECKS = 5  # of the way, each with the training part: the best of them is kept


@dataclass(frozen=True)
class Way:
    """Coefficients, and the measures of predictions, by name, on both parts of the data."""

    coefficients: Learnable
    training: Mapping[str, float]
    held_out: Mapping[str, float]


@dataclass(frozen=True)
class Learned:
    """Finished learning.

    Attributes:
        objective: what was minimised: ``entropy`` or ``loss``.
        own: the recipe's own coefficients.
        uniform: the one coefficient for all that is best on the training part.
        uniform_at_edge: no larger one was tried.
        start: where the descent began, at the better of both on the training part: ``own`` or
            ``uniform``.
        learned: what was learnt: the best on the training part.
        steps: the objective on the batch of each step.
        measured: of training and of held-out inputs, how many were measured.
        unit: what one prediction is of: ``token``, ``text`` or ``image``.
        inputs: what the inputs are called.
    """

    objective: str
    own: Way
    uniform: Way
    uniform_at_edge: bool
    start: str
    learned: Way
    steps: tuple[float, ...]
    measured: tuple[int, int]
    unit: str
    inputs: str


def learn(
    recipe: Any,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    objective: str = "entropy",
    steps: int = 30,
    batch_size: int = 4,
    learning_rate: float = 0.03,
    held_out: float = 0.25,
    max_length: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    per_model: bool = False,
    logits: str | None = None,
    **model: Any,
) -> Learned:
    """Learn one coefficient for each block, and one for what is outside, on examples.

    It begins with the recipe's own coefficients, or with the best uniform coefficient where that
    is better on the training part. Of the values on the way those are kept that are best on the
    training part; the held-out part is measured only, and decides nothing. ``out/learned.yml``
    holds the best so far from the beginning on. The same seed gives the same
    coefficients on the CPU with one number of threads.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping.
        data: texts: paragraphs parted by blank lines, JSON lines with a ``text`` and for
            classifiers perhaps a ``label``, or CSV with columns of these names; or a folder of
            images, in which those of one class stand in a folder of its name.
        out: folder of the results.
        objective: ``entropy`` of the predictions (tokens, or classes), or ``loss``: negative
            log-likelihood of tokens or of labels.
        steps: of Adam, a batch each.
        batch_size: windows of text, texts or images at once.
        learning_rate: of Adam: about what a coefficient moves in a step.
        held_out: share of the examples that is not learnt from.
        max_length: tokens in a window, or of a text; the model's positions, at most 1024, without
            it.
        limit: use the first examples only, of images the first of every class in turn.
        seed: of the parts, and of the order of the batches.
        dtype: of the weights while it is learnt; the recipe's without it.
        per_model: learn those of every model's own task vector, where the wrap adds them up by
            weights: task_arithmetic, dare_linear, breadcrumbs, della_linear.
        logits: ``python:MODULE:FUNCTION``, called by model, tokenizer and rows of the data, for
            models that are no classifiers (:class:`~.learning.logits.Logits`).
        **model: what :class:`~mergekit_lines.LiveModel` takes besides: ``device``, ….

    Raises:
        LinesError: recipe, data or a value is at fault, an objective is not finite, or ``out``
            holds another search, or this one's result.

    Source: arXiv 2310.02575 (entropy), arXiv 2407.02880 (loss).
    """
    settings = {
        "objective": objective,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "held_out": held_out,
        "max_length": max_length,
        "limit": limit,
        "seed": seed,
        "dtype": dtype,
        "per_model": per_model,
    }
    check_learning(settings)
    check_seed(model)
    document = open_recipe(recipe)
    if per_model:
        check_per_model(document)
    function = None if logits is None else read_function(logits)
    examples = read_examples(Path(data), limit, whole=function is not None)
    with _opened(document, examples, function, settings, Path(out), model) as learner:
        return learner.learn(steps, learning_rate)


class _Learner:
    """A live model with its data, and the folder that takes what is learnt."""

    def __init__(
        self,
        live: LiveModel,
        document: Mapping[str, Any],
        data: Examples,
        function: Function | None,
        settings: Mapping[str, Any],
        folder: Path,
        bar: Any,
    ) -> None:
        self._live, self._document, self._folder, self._bar = live, document, folder, bar
        self._objective: str = settings["objective"]
        self._size: int = settings["batch_size"]
        self._seed: int = settings["seed"]
        parts = parted(data, settings["held_out"], self._seed)
        if parts.repeated:
            self.say(f"{data.path}: {parts.repeated} examples stand there twice, and count once")
        self._task = task_of(live, data, settings, function)
        self._training, self._held_out = map(self._task.inputs, (parts.training, parts.held_out))
        own: Learnable = Coefficients.of(live.summary)
        if settings["per_model"]:
            own = PerModel.of(live.planned, live.summary)
        self._own = rounded(own)
        if holds_several(live.planned, live.summary, per_model=settings["per_model"]):
            self.say(SEVERAL)
        self._tell_memory()

    def say(self, text: str) -> None:
        """Tell something, above the bar."""
        if not self._bar.disable:
            tqdm.write(f"[lines] {visible(text)}", file=self._bar.fp)

    def _tell_memory(self) -> None:
        memory, task = self._live.accounting, self._task
        longest = max(map(task.size, self._training))
        tokens = f" of {longest} tokens at most" if longest else ""
        self.say(
            f"{len(self._training)} {task.plural} to learn from, {len(self._held_out)} held out; "
            f"{len(self._own.numbers)} coefficients. Memory in MB: weights "
            f"{memory.weights.get(memory.main, 0) / 1e6:.0f}, setting them "
            f"{memory.working / 1e6:.0f}, gradients {memory.gradients / 1e6:.0f}, and the "
            f"activations of {self._size} {task.plural}{tokens}"
        )

    def learn(self, steps: int, rate: float) -> Learned:
        """Learn, with what is compared with it, and write all of it."""
        training = self._some(self._training)
        own = self._way(self._own, training)
        self._keep(own.coefficients, own.training[self._objective], 0)
        best = self._best_uniform(training)
        uniform = self._way(self._flat(best.value), training)
        lower = uniform.training[self._objective] < own.training[self._objective]
        start, first = ("uniform", uniform) if lower else ("own", own)
        self.say(beginning(start, best.value, best.at_edge))
        kept = first.training[self._objective], first.coefficients
        self._keep(kept[1], kept[0], 0)
        values: list[float] = []
        every = math.ceil(steps / CHECKS)
        for value, coefficients in self._descent(first.coefficients, steps, rate):
            values.append(value)
            self._bar.update()
            self._bar.set_postfix_str(f"{self._objective} {value:.4g}")
            if len(values) % every == 0 or len(values) == steps:
                now = self._at(coefficients, training)
                if now < kept[0]:
                    kept = now, coefficients
                    self._keep(coefficients, now, len(values))
        result = Learned(
            self._objective,
            own,
            uniform,
            best.at_edge,
            start,
            self._way(kept[1], training),
            tuple(values),
            (len(training), len(self._some(self._held_out))),
            self._task.unit,
            self._task.plural,
        )
        text = json.dumps(asdict(result), indent=2, allow_nan=False)
        write_output(self._folder / LEARNING, text + "\n")
        return result

    def _best_uniform(self, training: list[Any]) -> Uniform:
        def at(value: float) -> float:
            self._set(self._flat(value))
            objective = means(self._task, self._live.model, training, self._size)[self._objective]
            self._bar.set_postfix_str(f"uniform {value:.4g}: {self._objective} {objective:.4g}")
            return objective

        return best_uniform(at, self._own.mean)

    def _descent(
        self, start: Learnable, steps: int, rate: float
    ) -> Iterator[tuple[float, Learnable]]:
        def loss(model: Any, batch: list[Any]) -> torch.Tensor:
            (total,) = self._task.sums(model, batch, [self._objective])
            return total / self._task.count(batch)

        drawn = batches(self._training, self._size, self._seed)
        return descend(self._live, start, islice(drawn, steps), loss, rate)

    def _some(self, inputs: list[Any]) -> list[Any]:
        """Return what is measured of a part: all of it, or what the seed draws first."""
        return next(batches(inputs, min(self._task.most, len(inputs)), self._seed))

    def _flat(self, value: float) -> Learnable:
        return rounded(uniform(self._own, value))

    def _at(self, coefficients: Learnable, inputs: list[Any]) -> float:
        """Return the objective of some coefficients."""
        self._set(coefficients)
        return measured(self._task, self._live.model, inputs, self._size)[self._objective]

    def _set(self, coefficients: Learnable) -> None:
        self._live.set_recipe(coefficients.recipe(self._live.recipe))

    def _way(self, coefficients: Learnable, training: list[Any]) -> Way:
        self._set(coefficients)
        of_parts = [
            measured(self._task, self._live.model, part, self._size)
            for part in (training, self._some(self._held_out))
        ]
        return Way(coefficients, *of_parts)

    def _keep(self, coefficients: Learnable, value: float, step: int) -> None:
        head = (
            f"# Learnt: step {step}, {self._objective} {value:.6g} on the training part of the "
            f"data.\n"
        )
        write_recipe(self._folder / LEARNED, coefficients.recipe(self._document), head)


@contextmanager
def _opened(
    document: Mapping[str, Any],
    examples: Examples,
    function: Function | None,
    settings: Mapping[str, Any],
    out: Path,
    model: Mapping[str, Any],
) -> Iterator[_Learner]:
    """Yield a learner in its folder, which no other process searches in."""
    dtype = settings["dtype"]
    first = {**document, "out_dtype": dtype} if dtype else document
    with ExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        folder = stack.enter_context(search_folder(out))
        work = folder / WORK
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        live = stack.enter_context(LiveModel(first, **{"offload_folder": work, **model}))
        bar = tqdm(
            total=settings["steps"],
            desc="Learning",
            unit="step",
            disable=bool(model.get("quiet")),
        )
        stack.enter_context(bar)
        learner = _Learner(live, document, examples, function, settings, folder, bar)
        # Only now: data that was refused is mended, and is no other search then.
        data = {"sha256": examples.sha256}
        identity = {"the recipe": document, "the data": data, "the settings": settings}
        identity["the logits"] = function.identity if function else {}
        Store(folder, {**identity, **identity_of(live, model)})
        clear_unfinished(folder)
        try:
            yield learner
        except BaseException as error:
            if not isinstance(error, Exception) and (folder / LEARNED).exists():
                learner.say(f"the best so far is kept in {folder / LEARNED}")
            raise
