"""mergekit's global state, held for one merge and put back."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit import merge as mergekit_merge
from mergekit.architecture import auto
from mergekit.architecture.auto import infer_architecture_info
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers import PretrainedConfig

from mergekit_lines.files import names_no_class

# mergekit's caches and torch's generators are global to the process.
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Empty mergekit's caches before and after.

    mergekit keeps indexes and inferred layouts by path for the whole process, also when the
    files have changed since.
    """
    LoaderCache().loaders.clear()
    infer_architecture_info.cache_clear()
    try:
        with _configs_read_once():
            yield
    finally:
        LoaderCache().flush_all()
        LoaderCache().loaders.clear()


@contextmanager
def _configs_read_once() -> Iterator[None]:
    """Read each model's config once; one that names no class of transformers is an empty one.

    mergekit and we ask for it hundreds of times in one plan. Whoever asks may change what it
    gets, as mergekit does for the output's.
    """
    original = ModelReference.config
    kept: dict[tuple[ModelReference, bool], Any] = {}

    def config(self: ModelReference, trust_remote_code: bool = False) -> Any:
        key = self, trust_remote_code
        if key not in kept:
            no_class = names_no_class(Path(self.model.path))
            kept[key] = PretrainedConfig() if no_class else original(self, trust_remote_code)
        return copy.deepcopy(kept[key])

    ModelReference.config = config
    try:
        yield
    finally:
        ModelReference.config = original


@contextmanager
def logged_failures() -> Iterator[None]:
    """Raise what mergekit only logs: that a tokenizer was not copied, for a full disk perhaps."""
    failures: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.ERROR:
            return True
        failures.append(error)
        return False

    logger = logging.getLogger("mergekit.merge")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
    if failures:
        raise failures[0]


@contextmanager
def donor_as_it_is(folder: Path) -> Iterator[None]:
    """Let mergekit copy tokenizers and the like from a folder as it is.

    mergekit's own donor is always the base; of one with an adapter it would make a merged copy
    for that, or fail without a cache.
    """
    original = mergekit_merge._get_donor_model
    donor = ModelReference(model=ModelPath(path=str(folder)))

    def get_donor(merge_config: MergeConfiguration, options: MergeOptions) -> Any:  # noqa: ARG001
        return donor, str(folder)

    mergekit_merge._get_donor_model = get_donor
    try:
        yield
    finally:
        mergekit_merge._get_donor_model = original


@contextmanager
def names_from_indexes() -> Iterator[None]:
    """Let mergekit infer a layout from the loaders in its cache: its own would download models."""
    original = auto.get_model_tensor_names

    # The parameters' names are checked too, by a merge that begins in another thread.
    def names(model: ModelReference, options: object) -> list[str]:  # noqa: ARG001
        return list(LoaderCache().get(model).index.tensor_paths)

    auto.get_model_tensor_names = names
    try:
        yield
    finally:
        auto.get_model_tensor_names = original


@contextmanager
def layout_as_planned(arch_info: Any) -> Iterator[None]:
    """Let mergekit merge by the layout that the plan was made with."""
    original = mergekit_merge.get_architecture_info
    mergekit_merge.get_architecture_info = lambda *_, **__: arch_info
    try:
        yield
    finally:
        mergekit_merge.get_architecture_info = original
