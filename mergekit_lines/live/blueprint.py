"""A recipe for a live model, checked and planned by headers alone; then its inputs, opened."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit import merge as mergekit_merge
from mergekit.common import dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

from mergekit_lines.checkpoint.loading import NO_POOLER
from mergekit_lines.checkpoint.opened import OpenedModels, adapter_folder
from mergekit_lines.checkpoint.remote.downloads import files_from_hub, hub_models
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.checkpoint.room import check_room
from mergekit_lines.checkpoint.writer import Slot
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.host.names import METHODS
from mergekit_lines.host.process import one_thread
from mergekit_lines.host.state import ONE_AT_A_TIME, fresh_caches
from mergekit_lines.live.architecture import (
    Parts,
    maker,
    parameter_parts,
    without_its_head,
    without_its_pooler,
)
from mergekit_lines.live.placement import Device, DevicePlan, empty_model, in_dtypes, place_parts
from mergekit_lines.plan.inputs import check_models
from mergekit_lines.plan.memory import working_bytes
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.planned import MergeRun
from mergekit_lines.plan.prepare import prepare
from mergekit_lines.plan.sizes import Sizes
from mergekit_lines.plan.tokenizer import (
    check_tokenizers,
    donor_folders,
    own_folder,
    vocabulary,
)
from mergekit_lines.plugin import register
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.models import carried, models_in_order
from mergekit_lines.recipe.options import effective_options
from mergekit_lines.recipe.reading import merge_options, parsed, read_recipe


@dataclass(frozen=True)
class Accounting:
    """What a live model takes, in bytes.

    Attributes:
        weights: per device, ``cpu`` and ``disk`` among them.
        main: the device that computes.
        working: on that device, while weights are replaced: the largest group of tensors, or
            pieces of it.
        vectors: task vectors that a wrap that is no plain sum is rescaled from: in host memory
            up to the budget, on disk beyond it.
        gradients: on that device, while coefficients are learnt, beside the activations.
    """

    weights: Mapping[str, int]
    main: str
    working: int
    vectors: int
    gradients: int = 0

    @property
    def device(self) -> int:
        """Bytes on the computing device, at most: its weights, and what replacing them takes."""
        return self.weights.get(self.main, 0) + self.working


def check_method(recipe: MergeConfiguration) -> None:
    """Check that a recipe has coefficients to set.

    Raises:
        LinesError: it is of another method than ours.
    """
    if recipe.merge_method not in METHODS:
        raise LinesError(
            f"merge_method: found {recipe.merge_method!r}, wanted {' or '.join(METHODS)}: only "
            f"their coefficients can be set on a live model."
        )


class Blueprint:
    """A recipe for a live model that fits its models, and the model without its weights.

    Args:
        recipe: path of a YAML file, or what such a file holds as a mapping.
        device: where the model computes; the CPU if it is not given.
        max_memory: bytes per device, in the place of ``device``.
        options: other fields of mergekit's ``MergeOptions``.

    Raises:
        LinesError: with every problem that configs, indexes and headers show.
    """

    @hub_session()
    def __init__(
        self,
        recipe: Any,
        device: str | None = None,
        max_memory: Mapping[Device, int | str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        register()
        if device is not None and max_memory is not None:
            raise LinesError("max_memory: found device too, wanted one of them: it names devices.")
        text, self.document = read_recipe(recipe)
        flags = merge_options({**(options or {}), "device": device or "cpu"})
        _, self.recipe = parsed(self.document)
        check_method(self.recipe)
        problems = check_recipe(self.recipe, None, flags, text) + check_models(self.recipe, flags)
        if problems:
            raise LinesError(problems)
        self.options: MergeOptions = effective_options(self.recipe, flags, lambda _: None)
        with ONE_AT_A_TIME, one_thread(), fresh_caches():
            run = MergeRun.of(self.recipe, self.options)
            self.prepared = prepare(self.recipe, self.options, run)
            if self.prepared.refusals:
                raise LinesError(self.prepared.refusals)
            check_tokenizers(self.recipe, self.options, self.prepared.tokenizer)
            self._rows = vocabulary(self.recipe, self.prepared.tokenizer)
            self.sizes = Sizes(
                self.prepared.planned,
                self.prepared.headers,
                self.recipe,
                self.options,
                self._rows,
            )
        self.config = self._out_config()
        self._placed(torch.device(device or "cpu"), max_memory)

    def _out_config(self) -> Any:
        config = copy.deepcopy(self.prepared.out_config)
        if self.prepared.tokenizer is not None:
            multiple = self.recipe.tokenizer and self.recipe.tokenizer.pad_to_multiple_of
            mergekit_merge._update_config_vocab(
                config,
                self.prepared.arch_info,
                self.prepared.tokenizer.execute().tokenizer,
                pad_to_multiple_of=multiple or None,
            )
        return config

    def _placed(self, device: torch.device, max_memory: Mapping[Device, int | str] | None) -> None:
        outputs = [sized.slot for sized in self.sizes.tensors]
        # As transformers chooses it when it loads the output.
        named = getattr(self.config, "dtype", None)
        named = dtype_from_name(named) if isinstance(named, str) else named
        dtypes = [named, *(slot.dtype for slot in outputs)]
        floating = (each for each in dtypes if each is not None and each.is_floating_point)
        dtype = next(floating, torch.float32)
        model, parts = self._model(dtype, outputs)
        in_dtypes(model, parts.slots)
        on_gpu = device.type != "cpu" or any(key not in ("cpu", "disk") for key in max_memory or ())
        calibrated = {
            item.weight.name for item in self.prepared.planned if item.placed.words.from_norms
        }
        kind = torch.device("cuda" if on_gpu else "cpu")
        self.working = working_bytes(self.sizes, calibrated, kind, self.options.num_threads)
        self.device_plan: DevicePlan = place_parts(model, parts, device, max_memory, self.working)

    def _model(self, dtype: torch.dtype, outputs: Sequence[Slot]) -> tuple[Any, Parts]:
        """Return the empty model whose parameters the output's tensors are, and which is which.

        A trunk that was saved by a class with a head may lack a pooler, which the trunk's own
        class has: then the model is the trunk as the class with the head makes it.
        """
        trust = self.options.trust_remote_code
        model: Any = empty_model(maker(self.config, dtype, trust_remote_code=trust))
        trunk = without_its_head(model, outputs)
        if trunk is None:
            if without_its_pooler(model, outputs):
                bare = maker(self.config, dtype, trust_remote_code=trust, class_options=NO_POOLER)
                model = empty_model(bare)
            return model, parameter_parts(model, outputs)
        inside = getattr(model, model.base_model_prefix)
        self.config.architectures = [trunk]
        alone = empty_model(maker(self.config, dtype, trust_remote_code=trust))
        try:
            return alone, parameter_parts(alone, outputs)
        except LinesError:
            return inside, parameter_parts(inside, outputs)

    def accounting(self) -> Accounting:
        """Return what the live model will take; nothing is allocated for it."""
        main = self.device_plan.main
        vectors = 0
        for sized in self.sizes.tensors:
            merge = sized.item.task.kernel(sized.inputs)
            if merge is None or not merge.linear:
                wide = any(dtype == torch.float64 for dtype in sized.inputs.values())
                vectors += sized.entries * (8 if wide else 4)
        return Accounting(
            weights=self.device_plan.bytes(),
            main="cpu" if main.type == "cpu" else str(main.index if main.index is not None else 0),
            working=self.working,
            vectors=vectors,
            gradients=self.device_plan.gradient_bytes(),
        )

    @hub_session()
    def open(self, folder: Path, stack: ExitStack) -> OpenedModels:
        """Open the inputs, downloading what is on the Hub.

        Args:
            folder: for copies of adapters that cannot be read as such.
            stack: closes the files.

        Raises:
            LinesError: a model cannot be opened, or the disk has no room for a download.
        """
        self._check_devices()
        on_hub = hub_models(self.prepared.headers)
        if on_hub:
            check_room(on_hub, 0, folder, self.options)
        with ONE_AT_A_TIME, one_thread(), fresh_caches(), files_from_hub(on_hub):
            LoaderCache().setup(options=self.options)
            models = open_models(self.recipe, self.options, folder, stack)
            models.check_adapters([item.task.gather_tensors for item in self.prepared.planned])
            donor = carried(self.recipe)
            adapter = adapter_folder(donor) if donor.lora else None
            tokenizer = donor_folders(self.recipe, adapter)[0]
            own = [own_folder(donor), own_folder(models_in_order(self.recipe)[0])]
            first = [] if tokenizer in own else [tokenizer]
            self._tokenizer, self.texts_from = tokenizer, list(dict.fromkeys([*first, *own]))
        return models

    def _check_devices(self) -> None:
        """Refuse devices that are not there; a plan alone does without them."""
        devices = {*self.device_plan.device_map.values(), self.device_plan.main}
        for device in devices - {"cpu", "disk"}:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:
                raise LinesError(
                    f"device {device}: is not there ({reason(error)}). Name one that is."
                ) from error

    def tokenizer(self) -> Any:
        """Return the output's tokenizer, or None where there is none; the inputs were opened.

        Raises:
            LinesError: it cannot be loaded.
        """
        if self.prepared.tokenizer is not None:
            tokenizer = self.prepared.tokenizer.execute().tokenizer
        elif not self.options.copy_tokenizer:
            return None
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    self._tokenizer, trust_remote_code=self.options.trust_remote_code
                )
            except Exception as error:
                raise LinesError(
                    f"tokenizer: the one in {self._tokenizer} cannot be loaded ({reason(error)}). "
                    f"Save it again, or give copy_tokenizer=False to go without it."
                ) from error
        mergekit_merge._set_chat_template(tokenizer, self.recipe)
        return tokenizer

    def processor(self) -> Any:
        """Return what makes inputs of images, sounds and texts, or None where there is none.

        Raises:
            LinesError: it cannot be loaded.
        """
        for folder in self.texts_from:
            if any(folder.glob("*processor_config.json")):
                try:
                    return AutoProcessor.from_pretrained(
                        folder, trust_remote_code=self.options.trust_remote_code
                    )
                except Exception as error:
                    raise LinesError(
                        f"processor: the one in {folder} cannot be loaded ({reason(error)}). Save "
                        f"it again, or install what it needs."
                    ) from error
        return None

    def configure(self, model: Any) -> None:
        """Give the opened model the settings of generation that a merge carries."""
        if not hasattr(model, "generation_config"):
            return
        for folder in self.texts_from:
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder)
                return
