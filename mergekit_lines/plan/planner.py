"""mergekit's planner, extended: wrap, then depth, then one coefficient for every tensor.

Recipes of mergekit's own methods pass through untouched, but for ``mergekit-lines merge``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergekit import plan
from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, MergeConfiguration, OutputModuleDefinition
from mergekit.graph import Task
from mergekit.io.tasks import GatherTensors
from mergekit.parameter_resolver import resolve_parameter
from pydantic import ValidationError

from mergekit_lines.engine.tasks import LinesTask
from mergekit_lines.engine.walks import writing
from mergekit_lines.errors import LinesError, Problem, reason, together
from mergekit_lines.host.names import ALONE, METHODS, OF_MERGEKIT, REMEDY
from mergekit_lines.lines.depth import block_depths, natural_key
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.lines.summary import Summary, summarise
from mergekit_lines.methods.complete import incomplete
from mergekit_lines.methods.registry import alone, method_for, postprocess_method
from mergekit_lines.methods.words import WHOLE_RECIPE, WRAP, of_parameter
from mergekit_lines.plan.calibrate import (
    read_weights,
    settle,
    to_json,
    trim_problems,
    with_settled,
)
from mergekit_lines.plan.planned import ACTIVE, PlannedTensor, placed_task
from mergekit_lines.plan.tokenizer import OrderedTokenizer
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.parameters import check_filters


class LayoutError(LinesError):
    """mergekit's layout of an architecture fails, or does not fit the models.

    Attributes:
        models_agree: whether they say otherwise than the layout, so that it is at fault.
    """

    def __init__(
        self, problems: str | Problem | Sequence[str | Problem], *, models_agree: bool = True
    ) -> None:
        super().__init__(problems)
        self.models_agree = models_agree


class LinesPlanner(plan.MergePlanner):
    """mergekit's planner, which for our methods gives each tensor its coefficient."""

    def __init__(
        self,
        config: MergeConfiguration,
        arch_info: Any,
        options: Any,
        out_model_config: Any,
    ) -> None:
        super().__init__(config, arch_info, options, out_model_config)
        self._method: Any
        self.config: Any
        self._tokenizer_task: Any
        self._postprocess = config.merge_method == "lines_postprocess"
        run = ACTIVE.get()
        # mergekit's own methods are ours only where our run_merge was asked for them.
        methods = METHODS if run is None else (*METHODS, *OF_MERGEKIT)
        self._lines = config.merge_method in methods
        self._alone = config.merge_method if self._lines and config.merge_method in ALONE else None
        self._planned: list[PlannedTensor] | None = None
        self._coefficients: dict[str, float] = {}
        self._module: str | None = None
        self._wraps: dict[str, str] = {}
        self._names: set[str] = set()
        self._sources: dict[str, Mapping[ModelReference, WeightInfo]] = {}
        self._problems: list[Problem] = []
        self.tokenizer: OrderedTokenizer | None = None
        self.seed = 0
        self.summary: Summary | None = None
        if not self._lines:
            return
        if run is None:
            raise LinesError(
                f"merge_method {config.merge_method} was started by a run_merge that is not ours, "
                f"so neither its checks nor its partial folder are in force: {REMEDY}."
            )
        self._run = run
        self.seed = run.seed
        self._recipe = config.model_copy(deep=True)  # mergekit rewrites the other one
        if self._tokenizer_task is not None:
            task = self._tokenizer_task
            self.tokenizer = run.tokenizer or OrderedTokenizer(
                base_model=task.base_model,
                referenced_models=tuple(models_in_order(config)),
                tokenizer_source=task.tokenizer_source,
                trust_remote_code=task.trust_remote_code,
                add_tokens=task.add_tokens,
            )
            self._tokenizer_task = self.tokenizer

    def plan_module(self, module_name: str, definition: OutputModuleDefinition) -> None:
        """Plan one module, remembering its name for the tensors in it."""
        self._module = module_name
        super().plan_module(module_name, definition)

    def plan_tensor(
        self,
        weight: WeightInfo,
        weights_in: list[WeightInfo],
        models: list[ModelReference],
        cfg_reader: ConfigReader,
    ) -> None:
        """Plan one tensor with the method that its ``wrap`` names."""
        if not self._lines:
            super().plan_tensor(weight, weights_in, models, cfg_reader)
            return
        if len(weights_in) != len(models):
            # mergekit counts the sources of the first slice for tensors after the last one.
            weights_in = [weights_in[0]] * len(models)
        self._names.update({weight.name, *(source.name for source in weights_in)})
        if self._is_repeat(weight, dict(zip(models, weights_in, strict=True))):
            return
        recipe_method, planned = self._method, len(self._tensors)
        try:
            if self._postprocess:
                wrap, self._method = "", postprocess_method()
            elif self._alone:
                wrap, self._method = self._alone, alone(self._alone)
            else:
                wrap = resolve_parameter(
                    WRAP,
                    tuple(cfg_reader.parameter_sources(None)),
                    tensor_name=weight.name,
                    t=cfg_reader.t,
                )
                self._method = method_for(wrap)
            super().plan_tensor(weight, weights_in, models, cfg_reader)
        except LinesError as error:
            self._problems += [replace(one, tensors=(weight.name,)) for one in error.problems]
        except ValidationError as error:
            text = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            self._add_mergekits(text.replace(f" for {weight.name}", ""), weight.name)
        except RuntimeError as error:  # a parameter that has no value here
            text = str(error).replace(f".{weight.name}", "").replace(weight.name, "a tensor")
            self._add_mergekits(text, weight.name, ". Give one under parameters.")
        finally:
            self._method = recipe_method
        if len(self._tensors) > planned:
            self._wraps[weight.name] = wrap
            self._replace_last_task()

    def _is_repeat(self, weight: WeightInfo, sources: Mapping[ModelReference, WeightInfo]) -> bool:
        """Tell whether the tensor is planned already, as some of mergekit's layouts do.

        Those that name it in every layer (`override_num_layers`: Qwen2.5-VL's merger) mean one
        tensor, which is of no layer: its first plan stays, where gradients begin.
        """
        if weight.name not in self._sources:
            self._sources[weight.name] = sources
            return False
        if self._sources[weight.name] != sources:
            text = "mergekit's layout makes it twice, of different tensors"
            remedy = ", wanted it once. Is the architecture one that mergekit merges?"
            self._problems.append(Problem("", text, (weight.name,), remedy, of_mergekit=True))
        return True

    def _add_mergekits(self, text: str, tensor: str, rest: str = "") -> None:
        name, end = self._method.spec.name.removesuffix("[alone]"), "" if rest else "."
        self._problems.append(Problem(name, text + end, (tensor,), rest, of_mergekit=True))

    def _replace_last_task(self) -> None:
        weight, task = self._tensors[-1]
        listed = self._run.base_listed
        gather, dtype = task.gather_tensors, task.dtype
        if isinstance(gather, GatherTensors):
            # The recipe's dtype is for weights: the method casts them, and buffers stay.
            gather = gather.model_copy(update={"dtype": None})
            dtype = weight.force_dtype or self.config.dtype
        lines_task = LinesTask(
            method_name=task.method_name,
            gather_tensors=gather,
            model_order=task.model_order,
            base_model=task.base_model,
            output_weight=task.output_weight,
            parameters=task.parameters,
            input_parameters=task.input_parameters,
            dtype=dtype,
            # One rounding: the method itself gives the dtype that will be stored.
            out_dtype=weight.force_dtype or self.config.out_dtype,
            base_listed=listed.get(self._module, listed.get(None, True)),
        )
        self._tensors[-1] = (weight, lines_task)

    def _plan(self) -> None:
        if not self._lines:
            super()._plan()
            return
        if self._planned is not None:
            return
        try:
            super()._plan()
        except LinesError:
            raise
        except Exception as error:
            text = (
                f"mergekit cannot plan this recipe ({reason(error)}). Is the architecture one "
                f"that mergekit merges?"
            )
            raise LayoutError(Problem("", text, of_mergekit=True)) from error
        self._check_filters()
        self._raise_problems()
        # mergekit's order varies between processes for inferred architectures.
        self._tensors.sort(key=lambda item: natural_key(item[0].name))
        self._planned = self._place()
        self._raise_problems()

    def _place(self) -> list[PlannedTensor]:
        """Give every planned tensor its depth, and check the words of its schedule."""
        resolved = {w.name: dict(t.parameters.items()) for w, t in self._tensors}
        for word in WHOLE_RECIPE:
            texts = {repr(values.get(word)) for values in resolved.values()}
            if len(texts) > 1:
                self._problems.append(
                    of_parameter(
                        word,
                        f"found {', '.join(sorted(texts))} for different tensors, wanted one value "
                        f"for the whole recipe. Give it without filter or gradient.",
                    )
                )
        self._raise_problems()
        first = next(iter(resolved.values()), {})
        blocks = first["blocks"].split(",") if first.get("blocks") else None
        count = first.get("num_blocks")
        depths: dict[str, Any] = (
            dict.fromkeys(resolved)  # nothing hangs on depth
            if self._alone
            else block_depths(resolved, blocks=blocks, num_blocks=count)
        )
        self._set_seed(first.get("seed"))
        planned = []
        for weight, task in self._tensors:
            wrap, values = self._wraps[weight.name], resolved[weight.name]
            problem = incomplete(values, wrap)
            if problem:
                self._problems.append(replace(problem, tensors=(weight.name,)))
            depth = depths[weight.name]
            placed = Placed(weight.name, depth, ScheduleWords.of(values))
            planned.append(PlannedTensor(weight, placed_task(task, depth), wrap, placed))
        self._problems += trim_problems(planned)
        by_norms = {item.placed.words.alpha for item in planned if item.placed.words.from_norms}
        if by_norms and len({item.wrap for item in planned}) > 1:
            self._problems.append(
                of_parameter(
                    "wrap",
                    f"found {', '.join(sorted(set(self._wraps.values())))} in one recipe with "
                    f"alpha: {min(map(str, by_norms))}, wanted one wrap: Eq. 2 compares the norms "
                    f"of one merge over the whole model. Give alpha as a number, or one wrap.",
                )
            )
        return planned

    def _check_filters(self) -> None:
        # First: a filter that matches nothing leaves its word without a value.
        unmatched = list(check_filters(self._recipe, self._names))
        if unmatched:
            raise LinesError(unmatched)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None and self._run.seed_from_flag:
            raise LinesError(
                f"parameters.seed: found {seed} and --random-seed {self._run.seed} too, wanted one "
                f"of them. Drop the flag or the parameter."
            )
        if seed is not None:
            self.seed = seed

    def _raise_problems(self) -> None:
        if not self._problems:
            return
        # Of what holds for all of them no tensor is named.
        raise LinesError(
            [
                replace(one, tensors=one.tensors if len(one.tensors) < len(self._tensors) else ())
                for one in together(self._problems)
            ]
        )

    def planned(self) -> list[PlannedTensor]:
        """Return every output tensor with its place; no weight is read."""
        self._plan()
        return self._planned or []

    def finish(self) -> None:
        """Read the weights where a coefficient hangs on them, and settle each tensor's."""
        planned = self.planned()
        settled = settle(planned, self._run, self.options, self.out_model_config)
        if settled:
            planned = self._planned = [with_settled(item, settled) for item in planned]
        readings = read_weights(planned, self._run, self.seed, self.options, self.out_model_config)
        self._coefficients = {
            item.placed.name: item.placed.coefficient(readings) for item in planned
        }
        self.summary = summarise(
            [item.placed for item in planned],
            self._coefficients,
            readings,
            wraps=[item.wrap for item in planned if item.wrap],
            seed=self.seed,
            by_depth=not self._alone,
            trim=to_json(settled) if settled else None,
        )
        if self._run.on_summary:
            self._run.on_summary(self.summary)

    def plan_to_disk(self, out_path: str) -> list[Task]:
        """Plan the merge to disk, reading weights first where ``alpha: auto`` needs them.

        The engine stores the tensors: mergekit's own writer is not used.
        """
        if not self._lines:
            return super().plan_to_disk(out_path)
        self.finish()
        tasks = writing(
            [
                item.task.model_copy(
                    update={"coefficient": self._coefficients[item.weight.name], "seed": self.seed}
                )
                for item in self.planned()
            ],
            self._run.engine,
            self._run.remote,
        )
        if self._tokenizer_task:
            tasks.append(self._tokenizer_task)
        return tasks


# Here and not in the plugin: whoever imports this module, mergekit's own name leads to it.
plan.MergePlanner = LinesPlanner
