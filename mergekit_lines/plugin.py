"""Extend mergekit: our methods, our planner, and the wrapper around ``run_merge``."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lines.errors import LinesError
from mergekit_lines.files import DIFFUSERS_INDEX, DIFFUSERS_WEIGHTS
from mergekit_lines.host import seams
from mergekit_lines.host.names import METHODS, REMEDY

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    from mergekit_lines.merges.request import Cluster


def register() -> None:
    """Make mergekit know ``lines`` and ``lines_postprocess``, whatever autoload did.

    Calling it again changes nothing. A ``run_merge`` that was imported by name before the
    call is not ours; our methods then refuse to run and say so.

    Raises:
        LinesError: this mergekit is not one that the package works with.
    """
    seams.check_version()
    for name in ("mergekit.merge_methods.registry", "mergekit.plan", "mergekit.merge"):
        importlib.import_module(name)
        extend(name)
    seams.check()


def extend(name: str) -> None:
    """Extend one fully executed mergekit module; a second call changes nothing.

    Raises:
        LinesError: a seam of that module is not where it should be.
    """
    seams.check_version()
    _EXTENSIONS[name](sys.modules[name])


def _extend_registry(registry: Any) -> None:
    # Runs in the middle of `import mergekit.merge_methods`: only its `base` can be imported.
    from mergekit_lines.merges.recipe_methods import RECIPE_METHODS

    present = {method.spec.name for method in registry.registered_methods()}
    for method in RECIPE_METHODS:
        if method.spec.name not in present:
            registry.register(method)
    # The one part of mergekit that every command of recipes calls before it reads its file.
    _extend_options(importlib.import_module("mergekit.options").MergeOptions)


def _extend_options(options: Any) -> None:
    apply = options.apply_global_options
    if getattr(apply, "extended_by", None) == __name__:
        return

    @functools.wraps(apply)
    def wrapped(self: Any) -> None:
        apply(self)
        context = click.get_current_context(silent=True)
        words = context.params if context else {}
        if file := words.get("config_file") or words.get("config_path"):
            from mergekit_lines.recipe.looking import look_at

            look_at(Path(file))
        # By these names `mergekit-multi --lazy` knows what it has merged already.
        lazy = getattr(sys.modules.get("mergekit.scripts.multimerge"), "MODEL_CHECK_FILENAMES", [])
        lazy += [name for name in (DIFFUSERS_WEIGHTS, DIFFUSERS_INDEX) if name not in lazy]

    wrapped.extended_by = __name__  # type: ignore[attr-defined]
    options.apply_global_options = wrapped


def _extend_plan(plan: Any) -> None:
    seams.check("mergekit.plan")
    planner = importlib.import_module("mergekit_lines.plan.planner")
    # Half imported where it is itself what imported mergekit.plan: it then does this at its end.
    plan.MergePlanner = getattr(planner, "LinesPlanner", plan.MergePlanner)


def _extend_merge(merge: Any) -> None:
    seams.check("mergekit.merge")
    from mergekit_lines.plan.planner import LinesPlanner

    merge.MergePlanner = LinesPlanner
    if getattr(merge.run_merge, "extended_by", None) != __name__:
        merge.run_merge = _wrap(merge.run_merge)


_EXTENSIONS = {
    "mergekit.merge_methods.registry": _extend_registry,
    "mergekit.plan": _extend_plan,
    "mergekit.merge": _extend_merge,
}


def _wrap(run_merge: Any) -> Any:
    @functools.wraps(run_merge)
    def wrapped(
        merge_config: MergeConfiguration,
        out_path: str,
        options: MergeOptions,
        config_source: str | None = None,
    ) -> None:
        if merge_config.merge_method not in METHODS:
            run_merge(merge_config, out_path, options, config_source)
            return
        require_extended()
        from mergekit_lines.merges.folder import run_lines_merge

        run_lines_merge(run_merge, merge_config, out_path, options, config_source)

    wrapped.extended_by = __name__  # type: ignore[attr-defined]
    wrapped.of_mergekit = run_merge  # type: ignore[attr-defined]
    return wrapped


def run_by_kernels(
    config: MergeConfiguration,
    out_path: str,
    options: Any,
    text: str,
    cluster: Cluster | None = None,
) -> None:
    """Merge a recipe as the wrapped ``run_merge`` does those of our methods.

    mergekit's own methods that have a kernel of ours are merged by it, which the wrapped one
    leaves to mergekit.

    Args:
        config: the recipe; ``merge_method`` is one of ``host.names.MERGED``.
        out_path: the folder to make.
        options: mergekit's flags.
        text: the recipe's.
        cluster: other processes among which the work is shared.

    Raises:
        LinesError: the recipe, a model, an option or the disk is at fault; nothing is left.
    """
    register()
    require_extended()
    from mergekit_lines.merges.folder import run_lines_merge

    run_merge = sys.modules["mergekit.merge"].run_merge.of_mergekit
    run_lines_merge(run_merge, config, out_path, options, text, cluster)


def require_extended() -> None:
    """Check that every seam is ours, before a merge of ours begins.

    Raises:
        LinesError: a part of mergekit could not be extended.
    """
    seams.check()  # first: where a seam is gone, the planner may not even be importable
    from mergekit_lines.plan.planner import LinesPlanner

    for name in ("mergekit.plan", "mergekit.merge"):
        if getattr(sys.modules.get(name), "MergePlanner", None) is not LinesPlanner:
            raise LinesError(f"{name}.MergePlanner could not be extended: {REMEDY}.")
