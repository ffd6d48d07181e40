"""What a planner is handed beside the recipe, and what it returns of each output tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from mergekit.architecture import WeightInfo
from mergekit.common import ImmutableMap
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.engine.walks import Remote
from mergekit_lines.lines.alpha import Contribution
from mergekit_lines.lines.depth import BlockDepth
from mergekit_lines.lines.placed import Placed
from mergekit_lines.lines.summary import Summary
from mergekit_lines.methods import weights
from mergekit_lines.methods.trim import cuts_whole_model
from mergekit_lines.methods.words import plain_sum_factors
from mergekit_lines.plan.tokenizer import OrderedTokenizer
from mergekit_lines.recipe.models import base_listed

ACTIVE: ContextVar[MergeRun | None] = ContextVar("mergekit_lines_run", default=None)


@dataclass(frozen=True)
class MergeRun:
    """The inputs of a planner beside the recipe.

    Attributes:
        seed: of ``--random-seed``; the recipe's own goes before.
        seed_from_flag: whether that flag was given.
        base_listed: per module (None: all), whether the recipe lists the base as an input.
        tokenizer: the output's, where a plan before has built it.
        engine: merges and stores; a plan alone needs none.
        remote: has it done in other processes, where there are some.
        partial: keeps α for a run that goes on after this one.
        on_summary: is called with what the plan came to.
    """

    seed: int = 0
    seed_from_flag: bool = False
    base_listed: Mapping[str | None, bool] = field(default_factory=dict)
    tokenizer: OrderedTokenizer | None = None
    engine: Any = None
    remote: Remote | None = None
    partial: Any = None
    on_summary: Callable[[Summary], object] | None = None

    @classmethod
    def of(cls, config: MergeConfiguration, options: MergeOptions) -> MergeRun:
        """Return the inputs that recipe and flags give."""
        return cls(
            seed=options.random_seed or 0,
            seed_from_flag=options.random_seed is not None,
            base_listed=base_listed(config),
        )


@contextmanager
def planning(run: MergeRun) -> Iterator[None]:
    """Let the planners that are made inside take ``run``."""
    token = ACTIVE.set(run)
    try:
        yield
    finally:
        ACTIVE.reset(token)


def placed_task(task: LinesTask, depth: BlockDepth | None) -> LinesTask:
    """Return a tensor's task with the weights that its models have at its depth."""
    own = {
        model: ImmutableMap(weights.with_weight_at(dict(values.items()), depth))
        for model, values in task.input_parameters.items()
    }
    return task.model_copy(update={"input_parameters": ImmutableMap(own)})


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: the task that makes it, what that wraps, its place and its schedule."""

    weight: WeightInfo
    task: LinesTask
    wrap: str
    placed: Placed

    @property
    def norm(self) -> str:
        """The norm of Eq. 2, which holds for the whole recipe."""
        return str(self.task.parameters["norm"])

    @property
    def cut(self) -> bool:
        """Whether TIES cuts it by a magnitude of the whole model, which is found before."""
        return cuts_whole_model(dict(self.task.parameters.items()))

    def contribution(self) -> Contribution:
        """Return the tensor as Eq. 2 sees it."""
        models = [model for model in self.task.model_order if model != self.task.base_model]
        values: dict[str, Any] = dict(self.task.parameters.items())
        values |= self.task.input_values(models)
        factors = plain_sum_factors(self.wrap, values, models)
        return Contribution(self.placed, frozenset(models), factors)
