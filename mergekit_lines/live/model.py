"""A live model: one model on a device, whose weights follow the recipe's coefficients."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from tqdm import tqdm

from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.sources import HeldTensor, Source
from mergekit_lines.engine.engine import Engine
from mergekit_lines.engine.vectors import TaskVectors
from mergekit_lines.errors import LinesError, plain_failures
from mergekit_lines.files import file_digest
from mergekit_lines.host.process import one_thread
from mergekit_lines.host.state import ONE_AT_A_TIME, fresh_caches, names_from_indexes
from mergekit_lines.lines.summary import Summary
from mergekit_lines.live.blueprint import Accounting, Blueprint
from mergekit_lines.live.calibrations import Calibrations
from mergekit_lines.live.gradients import CoefficientGradients, attached
from mergekit_lines.live.inputs import aligned_tensors, copy_tensor, input_problem
from mergekit_lines.live.placement import Device, LiveWeights
from mergekit_lines.plan.planned import MergeRun, planning
from mergekit_lines.plan.planner import LinesPlanner
from mergekit_lines.plan.prepare import refused_values
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.reading import parsed
from mergekit_lines.recipe.settings import with_settings, without_parameters

DISK = "Check the disk, or give an offload_folder on another one."
BUDGET = 4 << 30


def _texts(folder: Path) -> dict[str, str]:
    """Return the digests of the texts in a model's folder."""
    return {
        path.name: file_digest(path)
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.is_file()
        if not path.name.endswith(".index.json")
    }


class LiveModel:
    """One model on a device; :meth:`set` makes its weights those of other coefficients.

    After any sequence of settings the weights equal, bit for bit, what ``mergekit-yaml`` writes
    for the same recipe on that kind of device: each setting is computed from θ_0 and the
    inputs' shards, never from the weights before it. The inputs stay on the disk and are read
    lazily; adapters stay adapters.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping; ``merge_method`` is
            ``lines`` or ``lines_postprocess``.
        device: where the model computes; ``cpu`` by default.
        max_memory: bytes of weights per device, as accelerate takes them
            (``{0: "20GiB", "cpu": "16GiB"}``); what does not fit is offloaded. It takes the
            place of ``device``.
        memory_budget: bytes of host memory for task vectors of wraps that are no plain sum;
            those beyond it are kept on disk.
        offload_folder: where files of this model are kept while it lives; the system's
            temporary folder by default.
        **options: other fields of mergekit's ``MergeOptions``: ``num_threads=…``, ….

    Attributes:
        model: the transformers model, in eval mode; replaced in place.
        tokenizer: the output's tokenizer, or None where the base has none.
        summary: the coefficients of the last setting.
        planned: the output's tensors, as the last setting planned them.
        accounting: what the live model takes.

    Raises:
        LinesError: the recipe or a model is at fault, or the architecture's checkpoints are not
            one-to-one with its parameters.
    """

    def __init__(
        self,
        recipe: Any,
        *,
        device: str | None = None,
        max_memory: Mapping[Device, int | str] | None = None,
        memory_budget: int = BUDGET,
        offload_folder: Any = None,
        **options: Any,
    ) -> None:
        self._closed = False
        if isinstance(memory_budget, bool) or not isinstance(memory_budget, int):
            raise LinesError(f"memory_budget: found {memory_budget!r}, wanted a number of bytes.")
        with plain_failures(DISK), ExitStack() as stack:
            blueprint = Blueprint(recipe, device, max_memory, options)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=offload_folder))
            self._blueprint = blueprint
            self._models: OpenedModels = blueprint.open(Path(folder), stack)
            self.accounting: Accounting = blueprint.accounting()
            weights, vectors = Path(folder, "weights"), Path(folder, "vectors")
            weights.mkdir()
            vectors.mkdir()
            self._weights = LiveWeights(blueprint.device_plan, weights)
            flags = blueprint.options.model_copy(update={"device": str(blueprint.device_plan.main)})
            kept = TaskVectors(memory_budget, vectors)
            self._engine = Engine(self._models, self._weights, flags, kept)
            stack.callback(self._engine.close)
            self.model: Any = self._weights.model
            self.tokenizer: Any = blueprint.tokenizer()
            blueprint.configure(self.model)
            self._calibrations = Calibrations()
            self._document = blueprint.document
            self.summary: Summary
            self.set()
            self._stack = stack.pop_all()

    def __enter__(self) -> LiveModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the inputs and remove the files of this model; it cannot be set any more."""
        self._closed = True
        self._stack.close()

    @cached_property
    def processor(self) -> Any:
        """What makes inputs of images, sounds and texts, or None where the models have none.

        Raises:
            LinesError: it cannot be loaded.
        """
        return self._blueprint.processor()

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._engine.device

    @property
    def generates(self) -> bool:
        """Whether the model generates text."""
        can: Any = getattr(self.model, "can_generate", None)
        return bool(can and can())

    def describe_inputs(self) -> dict[str, Any]:
        """Return what tells the inputs from changed ones: of each model, and of the texts in use.

        Weights by file, size, time and digest of the header; the base's config, and tokenizer and
        settings of generation of the model that a merge takes them from, by their SHA-256.
        """
        base = self._models.models[self._blueprint.recipe.base_model].folder
        others = [folder for folder in self._blueprint.texts_from if folder != base]
        own, *carried = (_texts(folder) for folder in (base, *others))
        description = {"models": self._models.describe(), "texts of the base": own}
        return {**description, "texts that are carried": carried} if carried else description

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe that was set last, as YAML would hold it; an input as it is has none."""
        return copy.deepcopy(self._document)

    def set(self, settings: Mapping[str, Any] | None = None, /, **words: Any) -> Summary:
        """Set parameters of the recipe, and make the weights those of the recipe as it is then.

        Args:
            settings: values by key, e.g. ``{"models.0.parameters.weight": 0.3}``.
            **words: the recipe's words, e.g. ``alpha=0.2, beta=0.5``; ``weights=[0.3, 0.7]`` is
                the weight of every listed model but the base. None takes a word out.

        Returns:
            The coefficients that were set.

        Raises:
            LinesError: a value is refused; the weights are then as they were. Where an input
                cannot be read or is not finite, the weights are of two settings, and the next
                one that succeeds makes them whole.
        """
        return self.set_recipe(with_settings(self._document, {**(settings or {}), **words}))

    def set_recipe(self, document: Mapping[str, Any]) -> Summary:
        """Make the weights those of a recipe that differs from the open one in parameters alone.

        Args:
            document: the recipe, as YAML would hold it.

        Raises:
            LinesError: as :meth:`set` does.
        """
        if without_parameters(document) != without_parameters(self._document):
            raise LinesError(
                "the recipe differs from the one that is open in more than parameters: open it "
                "as a live model of its own."
            )
        document = copy.deepcopy(dict(document))
        text, config = parsed(document)
        problems = check_recipe(config, None, self._blueprint.options, text)
        if problems:
            raise LinesError(problems)
        with plain_failures(DISK), self._merging(config) as planner:
            self._plan(planner)
            tasks = planner.plan_to_disk("")
            executor = Executor(tasks, math_device=self._engine.device)
            bar = tqdm(
                executor.run(quiet=True),
                total=len(tasks),
                desc="Setting weights",
                delay=2,
                leave=False,
                disable=self._blueprint.options.quiet,
            )
            for _ in bar:
                pass
            self._models.check_unchanged()
            if planner.summary is None:
                raise LinesError("the plan has no coefficients; nothing was set.")
            self.summary, self._document = planner.summary, document
            self.planned = planner.planned()
        return self.summary

    def load(self, model: str | None = None) -> None:
        """Make the weights those of one input of the recipe, as it is.

        Args:
            model: as the recipe writes it; the base if it is not given.

        Raises:
            LinesError: the recipe has no such model, or it lacks a tensor of the output.
        """
        _, config = parsed(self._document)
        models = {str(each): each for each in self._models.models}
        reference = config.base_model if model is None else models.get(str(model))
        if reference is None:
            raise LinesError(
                f"model {model}: the recipe has {', '.join(models)}, wanted one of them."
            )
        if problem := input_problem(self._blueprint, reference):
            raise LinesError(problem)
        with plain_failures(DISK), self._merging(config) as planner:
            for item in planner.planned():
                name = item.weight.name
                if not self._weights.wants(name):
                    continue
                source = self._input(item.task, reference)
                slot = self._weights.slot(name)
                if source is None or source.shape != slot.shape:
                    raise LinesError(f"model {model}: has no tensor for {name} of the output.")
                copy_tensor(source, item.task.input_dtype(), slot, self._weights.sink(name))
            self._models.check_unchanged()

    @contextmanager
    def gradients(self, *, per_model: bool = False) -> Iterator[CoefficientGradients]:
        """Yield what gives a loss's gradient by the coefficient of every tensor of the output.

        Args:
            per_model: by what each model's task vector is multiplied with, where the merge is
                a sum of them.

        Raises:
            LinesError: weights are offloaded.
        """
        parts = self._blueprint.device_plan.parts
        arguments = (self.model, parts, self._engine, self.planned)
        with attached(*arguments, per_model=per_model) as gradients:
            yield gradients

    def check_inputs(self) -> None:
        """Check that the inputs are those that were opened.

        Raises:
            LinesError: names what was changed.
        """
        self._models.check_unchanged()

    def input_problem(self) -> str | None:
        """Return why the base cannot be loaded as it is, or None: slices may stack other blocks."""
        return input_problem(self._blueprint)

    def _input(self, task: Any, model: Any) -> Source | None:
        tensors = aligned_tensors(self._engine, task)
        if tensors is not None:
            tensor: torch.Tensor | None = tensors.get(model)
            return None if tensor is None else HeldTensor(tensor.contiguous())
        weights = dict(task.gather_tensors.weight_info.items())
        return self._models.source(model, weights[model]) if model in weights else None

    @contextmanager
    def _merging(self, config: MergeConfiguration) -> Iterator[LinesPlanner]:
        """Yield a planner for the recipe, with mergekit's global state as the models need it."""
        if self._closed:
            raise LinesError("the live model was closed. Open the recipe again.")
        self._models.check_unchanged()
        blueprint = self._blueprint
        run = replace(
            MergeRun.of(config, blueprint.options),
            tokenizer=blueprint.prepared.tokenizer,
            engine=self._engine,
            partial=self._calibrations,
        )
        with ONE_AT_A_TIME, one_thread(), torch.no_grad(), fresh_caches(), names_from_indexes():
            LoaderCache().setup(options=blueprint.options)
            LoaderCache().loaders.update(
                {model: each.loader for model, each in self._models.models.items()}
            )
            recipe = config.model_copy(deep=True)  # mergekit's planner rewrites it
            arch = blueprint.prepared.arch_info
            with planning(run):
                yield LinesPlanner(recipe, arch, blueprint.options, blueprint.config)

    def _plan(self, planner: LinesPlanner) -> None:
        planned = planner.planned()
        names = [item.weight.name for item in planned]
        if names != [item.weight.name for item in self._blueprint.prepared.planned]:
            raise LinesError("the recipe gives other tensors than the model was opened with.")
        problems = refused_values(planned)[:1]
        if problems:
            raise LinesError(problems)
        self._calibrations.plan(planned)
