"""From the name in ``wrap`` to the method ``lines[name]``, or the reason why there is none."""

from __future__ import annotations

from mergekit.merge_methods import registry
from mergekit.merge_methods.base import BasePolicy, MergeMethod

from mergekit_lines.errors import LinesError, Problem, nearest
from mergekit_lines.host.names import METHODS
from mergekit_lines.methods.words import LINES_WORDS, POSTPROCESS_WORDS, of_parameter
from mergekit_lines.methods.wrapped import LinesMethod, OurMethod


def check_wrap(name: str) -> Problem | None:
    """Return why ``name`` cannot be wrapped, or None when it can."""
    methods = {
        method.spec.name: method
        for method in registry.registered_methods()
        if not isinstance(method, OurMethod)
    }
    if name == "dare":
        reason = ", wanted `dare_linear` or `dare_ties`."
    elif name in METHODS:
        reason = ", which cannot wrap itself. Name the merge inside, e.g. `ties`."
    elif "/" in name and name.rsplit("/", 1)[1] in methods:
        reason = (
            ", a path: mergekit-multi replaces the names of its documents everywhere. Give the "
            "document another name than a method's."
        )
    elif name not in methods:
        reason = (
            f", wanted a registered mergekit method.{nearest(name, methods)} "
            f"(known: {', '.join(sorted(methods))})"
        )
    elif name == "passthrough":
        reason = (
            ", which merges nothing and has no base to measure from. For one model write "
            "merge_method: lines_postprocess."
        )
    elif methods[name].spec.contract.base == BasePolicy.FORBIDDEN:
        reason = ", which accepts no base, and LiNeS scales the change from a base."
    else:
        return None
    return of_parameter("wrap", f"found {name!r}{reason}")


def method_for(wrap: str) -> LinesMethod:
    """Return the method ``lines[wrap]``, registering it when it is first asked for.

    Raises:
        LinesError: ``wrap`` is not registered, or cannot have a base.
    """
    problem = check_wrap(wrap)
    if problem:
        raise LinesError(problem)
    return _registered(f"lines[{wrap}]", registry.get(wrap))


def postprocess_method() -> LinesMethod:
    """Return the method that edits one model: M is that model itself."""
    return _registered("lines_postprocess[model]", registry.passthrough_merge_method)


def registered(name: str) -> LinesMethod:
    """Return a method that :func:`method_for` or :func:`postprocess_method` registered."""
    method: LinesMethod = registry.get(name)
    return method


def _registered(name: str, wrapped: MergeMethod) -> LinesMethod:
    methods = {method.spec.name: method for method in registry.registered_methods()}
    if name not in methods:
        postprocess = name.startswith("lines_postprocess")
        words = POSTPROCESS_WORDS if postprocess else LINES_WORDS
        method = LinesMethod(name, wrapped, words, pass_parameters=not postprocess)
        registry.register(method)
        return method
    method = methods[name]
    if not isinstance(method, LinesMethod):
        raise LinesError(f"the merge method name {name!r} is taken by another package.")
    return method
