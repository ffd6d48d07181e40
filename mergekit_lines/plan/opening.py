"""Opening a recipe's models: downloads, indexes, adapters."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.checkpoint.headers import TensorHeader, read_headers, stem_of, weight_files
from mergekit_lines.checkpoint.opened import OpenedModels, adapter_folder
from mergekit_lines.errors import LinesError, reason, some, visible
from mergekit_lines.files import STEM
from mergekit_lines.recipe.models import models_in_order

LOG = logging.getLogger(__name__)


def open_model(model: ModelReference) -> LazyTensorLoader:
    """Download a model, merge its adapter, and read its index, as mergekit does.

    Raises:
        LinesError: a file is missing or broken, or an adapter does not fit its base.
    """
    own = Path(model.model.path)
    # mergekit finds neither a file nor diffusers' names.
    by_headers = model.lora is None and (own.is_file() or stem_of(own) != STEM)
    if by_headers and model not in LoaderCache().loaders:
        LoaderCache().loaders[model] = loader_of(own, read_headers(own).tensors or {})
    try:
        with warnings.catch_warnings():
            # PEFT starts what an adapter's file lacks with random numbers, and only warns.
            warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
            return LoaderCache().get(model)
    except (LinesError, OSError):
        raise
    except Exception as error:
        files = some(weight_files(Path(model.model.path)), 3)
        made_for = " Was the adapter made for this base?" if model.lora else ""
        raise LinesError(
            f"model {model}: its files ({files or 'on the Hub'}) cannot be opened "
            f"({reason(error)}). Download or save it again.{made_for}"
        ) from error


def loader_of(place: Path, tensors: Mapping[str, TensorHeader]) -> LazyTensorLoader:
    """Return mergekit's loader of a folder, or of a file that is a checkpoint, by its headers."""
    folder = place.parent if place.is_file() else place
    paths = {name: header.file for name, header in tensors.items()}
    return LazyTensorLoader(
        ShardedTensorIndex(
            base_path=str(folder), is_safetensors=True, tensor_paths=paths, shards=[]
        )
    )


def open_models(
    config: MergeConfiguration, options: MergeOptions, partial: Path, stack: ExitStack
) -> OpenedModels:
    """Open every model of a recipe, downloading what is on the Hub.

    An adapter is read as one, over its base's shards. One of a kind that is not read so is
    merged by peft into a whole copy first, which lasts as long as ``stack``.

    Args:
        config: the recipe.
        options: mergekit's flags.
        partial: the partial folder, where copies go unless ``--lora-merge-cache`` is given.
        stack: closes the files.

    Raises:
        LinesError: a model cannot be opened.
    """
    opened = OpenedModels()
    stack.callback(opened.close)
    for model in models_in_order(config):
        plain = ModelReference(model=model.model)
        loader = open_model(plain)
        adapter: Adapter | None = None
        copied_from: tuple[Path, ...] = ()
        if model.lora is not None:
            tensors = read_headers(Path(loader.index.base_path)).tensors
            adapter = adapter_of(model, tensors, options)
            if adapter is None:
                cache = stack.enter_context(_copies(options, partial))
                LoaderCache().setup(options=options.model_copy(update={"lora_merge_cache": cache}))
                folders = Path(loader.index.base_path), adapter_folder(model)
                copied_from = tuple(
                    path
                    for folder in folders
                    for path in sorted(folder.iterdir())
                    if path.is_file()
                )
                loader = open_model(model)
        LoaderCache().loaders[model] = loader
        opened.add(model, loader, adapter, copied_from)
    return opened


def adapter_of(
    model: ModelReference, tensors: Mapping[str, TensorHeader] | None, options: MergeOptions
) -> Adapter | None:
    """Return the model's adapter, or None where peft has to merge it.

    Args:
        model: BASE+ADAPTER; an adapter on the Hub is downloaded.
        tensors: what the base's headers say; None for a pickled one.
        options: mergekit's flags.

    Raises:
        LinesError: the adapter is broken, or was made for another base.
    """
    shapes = None if tensors is None else {name: one.shape for name, one in tensors.items()}
    config = model.config(trust_remote_code=options.trust_remote_code)
    try:
        adapter = Adapter.open(adapter_folder(model), shapes, base_config=config)
    except LinesError as error:
        raise LinesError([one.under(f"model {model}") for one in error.problems]) from None
    if adapter.reason is None:
        return adapter
    if getattr(config, "quantization_config", None):
        adapter.close()
        raise LinesError(
            f"model {model}: peft has to merge this adapter ({adapter.reason}), and would quantise "
            f"the base by the quantization_config in {model.model.path}/config.json. Take "
            f"quantization_config out of it: the weights are plain."
        )
    LOG.info(visible(f"adapter {adapter.folder} is merged by peft: {adapter.reason}"))
    adapter.close()
    return None


@contextmanager
def _copies(options: MergeOptions, partial: Path) -> Iterator[str]:
    """Yield a folder of this run alone for a model with its adapter merged.

    mergekit reuses what lies in ``--lora-merge-cache`` by path: a retrained adapter would be
    ignored, and a copy that was left half-made would be taken for whole.
    """
    parent = Path(options.lora_merge_cache or partial)
    is_new = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="mergekit-lines-adapters-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and not any(parent.iterdir()):
            parent.rmdir()
