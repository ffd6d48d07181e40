"""Make mergekit know our methods as soon as it is imported (standard library only).

``activate`` is an entry point of the group ``torch.backends``: ``import torch``, which
every mergekit module does sooner or later, calls it last. It must never raise (that
would break ``import torch``) and must cost nothing, so it imports neither torch nor
mergekit; it only leaves a watcher for the three mergekit modules that are extended
right after they have been executed.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

WATCHED = ("mergekit.merge_methods.registry", "mergekit.plan", "mergekit.merge")
OFF = "MERGEKIT_LINES_AUTOLOAD"


def activate() -> None:
    """Arrange for :mod:`mergekit_lines.plugin` to extend mergekit when it is imported."""
    if os.environ.get(OFF, "1").strip().lower() in {"0", "false", "off", "no"}:
        return
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    waiting = set()
    for name in WATCHED:
        module = sys.modules.get(name)
        if module is None:
            waiting.add(name)
        elif getattr(module.__spec__, "_initializing", False):
            _notify_when_initialised(module)
        else:
            _extend(name)
    if waiting:
        sys.meta_path.insert(0, _Watcher(waiting))


def _extend(name: str) -> None:
    """Hand a fully executed mergekit module to the plugin; a failure is only a warning."""
    try:
        from mergekit_lines import plugin

        plugin.extend(name)
    except Exception as error:  # noqa: BLE001 - whatever it is, `import torch` must go on
        with warnings.catch_warnings():
            # Shown under `-W error` too: mergekit's own import must go on.
            warnings.simplefilter("always")
            warnings.warn(
                f"mergekit-lines could not extend {name}, so `merge_method: lines` does not work "
                f"here: {error} (torch and mergekit itself are not affected; "
                f"{OFF}=0 silences this message)",
                RuntimeWarning,
                stacklevel=2,
            )


class _Watcher(MetaPathFinder):
    """Finds the watched modules as the other finders would, and runs ``_extend`` after each."""

    def __init__(self, waiting: set[str]) -> None:
        self.waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._watch(spec)
                return spec
        return None

    def _watch(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ not in self.waiting:  # a loader that many modules share
                return
            # Disarmed here and not in find_spec: a mere probe must not use it up.
            self.waiting.discard(module.__name__)
            if not self.waiting and self in sys.meta_path:
                sys.meta_path.remove(self)
            _extend(module.__name__)

        # On the instance, so that the loader keeps its class and all its other methods.
        loader.exec_module = exec_module  # type: ignore[method-assign]


class _NotifyingSpec(ModuleSpec):
    """The spec of a module under execution, which tells when that execution has ended."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            if self.name in sys.modules:
                _extend(self.name)


def _notify_when_initialised(module: ModuleType) -> None:
    # `import mergekit.merge` as the first import of a program reaches `import torch`, and so
    # us, in the middle of mergekit.merge: no finder sees that module any more. What the
    # import system does last with a module is to clear this flag of its spec. Should that
    # change, our methods refuse to run and name the remedy, see plugin.require_extended.
    if module.__spec__ is not None:
        module.__spec__.__class__ = _NotifyingSpec
