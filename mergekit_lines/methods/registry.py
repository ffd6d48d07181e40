"""From the name in ``wrap`` to the method ``lines[name]``, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit.merge_methods import registry
from mergekit.merge_methods.base import BasePolicy, MergeMethod, ParameterSpec

from mergekit_lines.errors import LinesError, Problem, nearest
from mergekit_lines.host.names import LINES
from mergekit_lines.methods.words import (
    ALONE_WORDS,
    LINES_WORDS,
    POSTPROCESS_WORDS,
    of_parameter,
)
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
    elif name in LINES:
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
    return _registered(f"lines[{wrap}]", registry.get(wrap), LINES_WORDS)


def postprocess_method() -> LinesMethod:
    """Return the method that edits one model: M is that model itself."""
    model = registry.passthrough_merge_method
    return _registered("lines_postprocess[model]", model, POSTPROCESS_WORDS)


def alone(name: str) -> LinesMethod:
    """Return what runs a merge by our kernels that no recipe's ``lines`` scales: λ is 1."""
    return _registered(f"{name}[alone]", registry.get(name), ALONE_WORDS)


def registered(name: str) -> LinesMethod:
    """Return a method that one of the functions above registered."""
    method: LinesMethod = registry.get(name)
    return method


def resolve(name: str) -> LinesMethod:
    """Return the method of such a name, registering it where another process has made it.

    Raises:
        LinesError: what it wraps is not registered in this process.
    """
    if name.startswith("lines["):
        return method_for(name.removeprefix("lines[").removesuffix("]"))
    if name.endswith("[alone]"):
        return alone(name.removesuffix("[alone]"))
    return postprocess_method()


def _registered(name: str, wrapped: MergeMethod, words: Sequence[ParameterSpec]) -> LinesMethod:
    methods = {method.spec.name: method for method in registry.registered_methods()}
    if name not in methods:
        method = LinesMethod(name, wrapped, words, pass_parameters=words is not POSTPROCESS_WORDS)
        registry.register(method)
        return method
    method = methods[name]
    if not isinstance(method, LinesMethod):
        raise LinesError(f"the merge method name {name!r} is taken by another package.")
    return method
