"""The ``parameters`` of a recipe: names, places and values, checked without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from mergekit.config import ConditionalParameter, MergeConfiguration
from mergekit.merge_methods.base import ParameterScope, ParameterSpec

from mergekit_lines.errors import LinesError, Problem, nearest, nearest_name
from mergekit_lines.host.names import ALONE
from mergekit_lines.lines.placed import LARV
from mergekit_lines.methods.complete import (
    LARV_AND_BETA,
    MISSING_GAMMA,
    missing_beta,
    values_and_more,
)
from mergekit_lines.methods.registry import alone, check_wrap, method_for, postprocess_method
from mergekit_lines.methods.weights import WEIGHT, WEIGHT_OUTSIDE
from mergekit_lines.methods.words import (
    ALONE_WORDS,
    FOR_WRAP,
    LINES_WORDS,
    POSTPROCESS_WORDS,
    of_parameter,
)
from mergekit_lines.methods.wrapped import LinesMethod
from mergekit_lines.recipe.models import sections


def check_parameters(config: MergeConfiguration, *, names_known: bool = True) -> list[Problem]:
    """Return every problem of the recipe's parameters, and of the number of models for them.

    Where a name is wrong (``names_known``: not even elsewhere in the recipe), what is missing
    is not told: it is most often the very thing that was misspelt.
    """
    problems: list[Problem] = []
    methods = _methods(config, problems)
    of_sections = list(_check_sections(config, methods))
    problems += of_sections
    if names_known and not of_sections:
        problems += _check_required(config, methods)
    problems += _check_counts(config, methods)
    return problems


def _methods(config: MergeConfiguration, problems: list[Problem]) -> list[LinesMethod]:
    """Return the methods that merge the recipe's tensors; what cannot be wrapped is a problem."""
    if config.merge_method == "lines_postprocess":
        return [postprocess_method()]
    if config.merge_method in ALONE:
        return [alone(config.merge_method)]
    return [method_for(wrap) for wrap in wraps(config, problems)]


def check_filters(config: MergeConfiguration, names: Iterable[str]) -> Iterator[Problem]:
    """Yield the filters that match none of the tensors' names."""
    sorted_names = sorted(names)
    for section in sections(config):
        for key, setting in section.parameters.items():
            for entry in setting if isinstance(setting, list) else [setting]:
                if not isinstance(entry, ConditionalParameter) or entry.filter in (None, "*"):
                    continue
                if not any(entry.filter in name for name in sorted_names):
                    yield Problem(
                        f"{section.place}.{key}",
                        f"the filter {entry.filter!r} matches no tensor, wanted a part of a name "
                        f"such as {next(iter(sorted_names), '')}.",
                        about=(key,),
                    )


def _parts(setting: Any) -> Iterator[Any]:
    """Yield a setting's values: one, or one per filter; a gradient is one value."""
    conditions = isinstance(setting, list) and any(
        isinstance(entry, ConditionalParameter) for entry in setting
    )
    for entry in setting if conditions else [setting]:
        yield entry.value if isinstance(entry, ConditionalParameter) else entry


def _is_word_gradient(value: Any) -> bool:
    def is_word(entry: Any) -> bool:
        try:
            float(entry)
        except (TypeError, ValueError, OverflowError):
            return True
        return isinstance(entry, bool)

    return isinstance(value, list) and any(is_word(entry) for entry in value)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the scalars of a parameter setting, through filters and gradients."""
    if isinstance(value, ConditionalParameter):
        yield from leaves(value.value)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


def wraps(config: MergeConfiguration, problems: list[Problem]) -> list[str]:
    """Return the merges that a recipe wraps; what cannot be wrapped is added to the problems."""
    names: list[Any] = []
    for section in sections(config):
        if "wrap" in section.parameters and section.model is None:
            names += list(leaves(section.parameters["wrap"]))
    whole = (config.parameters or {}).get("wrap")
    filters = whole if isinstance(whole, list) else [whole]
    if whole is None or all(
        isinstance(entry, ConditionalParameter) and entry.filter not in (None, "*")
        for entry in filters
    ):
        names.append("task_arithmetic")
    wrapped = []
    # What is no name at all is told by the word's own check.
    for wrap in dict.fromkeys(w for w in names if isinstance(w, str) and w.strip()):
        problem = check_wrap(wrap)
        if problem:
            problems.append(problem)
        else:
            wrapped.append(wrap)
    return wrapped


def _check_sections(config: MergeConfiguration, methods: list[LinesMethod]) -> Iterator[Problem]:
    words = {"lines": LINES_WORDS, "lines_postprocess": POSTPROCESS_WORDS}
    ours = {word.name: word for word in words.get(config.merge_method, ALONE_WORDS)}
    declared: dict[str, list[ParameterSpec]] = {name: [word] for name, word in ours.items()}
    for method in methods:
        for parameter in method.spec.parameters:
            if parameter.name not in ours:
                declared.setdefault(parameter.name, []).append(parameter)
    for section in sections(config):
        for name, setting in section.parameters.items():
            place = f"{section.place}.{name}"
            if name not in declared:
                text = f"nobody declares this name.{hint(name, declared)}"
                meant = nearest_name(name, declared)
                yield Problem(place, text, about=(name, meant) if meant else (name,))
                continue
            shared = all(spec.scope == ParameterScope.SHARED for spec in declared[name])
            if section.model is not None and shared:
                yield Problem(
                    place,
                    "found under one model, where it has no effect, wanted under the recipe's own "
                    "parameters. Move it there.",
                    about=(name,),
                )
                continue
            yield from _check_values(place, setting, declared[name], name)


def hint(name: str, names: Iterable[str]) -> str:
    """Return what an unknown name may have meant, where ``known`` are those of one method."""
    if "wrap" in names and name == "gamma":
        return " It belongs to merge_method: lines_postprocess; here write alpha and beta."
    ours = {word.name for words in (LINES_WORDS, *FOR_WRAP.values()) for word in words}
    if "wrap" not in names and name in ours:
        if "beta" not in names:
            return " It belongs to merge_method: lines; write that, with this merge as its wrap."
        return " It belongs to merge_method: lines; lines_postprocess edits one model."
    return nearest(name, names) or f" (known: {', '.join(sorted(names))})"


def _check_values(
    place: str, setting: Any, specs: list[ParameterSpec], name: str
) -> Iterator[Problem]:
    def wrong(text: str) -> Problem:
        return Problem(place, text, about=(name,))

    values = list(leaves(setting))
    if not values:
        yield wrong("found an empty list, wanted a value.")
    if name == "blocks" and isinstance(setting, list):
        yield wrong(
            "found a list, which mergekit reads as a gradient or filter, wanted ONE text of "
            "container names separated by commas, e.g. `decoder.block`."
        )
        return
    lists = [part for part in _parts(setting) if isinstance(part, list) and part]
    if name == "schedule" and lists and not any(map(_is_word_gradient, lists)):
        yield wrong(
            f"found {lists[0]!r}, a list, which mergekit reads as a gradient over the slice; "
            f"wanted the coefficients from the first block to the last in ONE text: "
            f'schedule: "{", ".join(map(str, lists[0]))}".'
        )
        return
    words = (
        *LINES_WORDS,
        *POSTPROCESS_WORDS,
        *(word for more in FOR_WRAP.values() for word in more),
    )
    ours = name in (WEIGHT, WEIGHT_OUTSIDE, *(word.name for word in words))
    if ours and any(_is_word_gradient(part) for part in _parts(setting)):
        yield wrong(
            f"found {setting!r}, a list of which mergekit would take one word by the place in the "
            f"slice; wanted one value, filters, or a gradient of numbers."
        )
        return
    for value in values:
        failures: list[Problem] = []
        for spec in specs:
            try:
                spec.validate(value)
            except LinesError as error:
                failures += error.problems
        if len(failures) == len(specs):
            yield replace(failures[0], key=place)


def _check_required(config: MergeConfiguration, methods: list[LinesMethod]) -> Iterator[Problem]:
    present = {name for section in sections(config) for name in section.parameters}
    wraps = [method.wrapped.spec.name for method in methods]
    yield from _check_coefficients(config, present, wraps)
    if config.merge_method == "lines_postprocess":
        return
    sliced = config.slices or any(module.slices for module in (config.modules or {}).values())
    for wrap, method in zip(wraps, methods, strict=True):
        if sliced and method.ignores_base:
            yield of_parameter(
                "wrap",
                f"{wrap} ignores the base, and slices list the base among their sources to measure "
                f"from it, so it cannot be told whether it is one of the models too. Use "
                f"`models:`, or a wrap that knows the base.",
            )
    for wrap, method in zip(wraps, methods, strict=True):
        for parameter in method.spec.parameters:
            if parameter.required:
                yield from _check_no_default(config, wrap, parameter, present)


def _check_no_default(
    config: MergeConfiguration, wrap: str, parameter: ParameterSpec, present: set[str]
) -> Iterator[Problem]:
    """Check that a parameter without a default is there, for every model that is listed."""
    name = parameter.name
    kind = "" if config.merge_method == wrap else "wrap "
    text = f"found nothing, wanted a value: {kind}{wrap} has no default for it. Add {name}"
    if name not in present:
        yield of_parameter(name, f"{text} under parameters.")
    elif parameter.scope == ParameterScope.NON_BASE and name not in (config.parameters or {}):
        for number, entry in enumerate(config.models or []):
            if entry.model != config.base_model and name not in (entry.parameters or {}):
                place = f"models[{number}].parameters.{name}"
                yield Problem(place, f"{text} here, or under the recipe's own parameters.")


def _check_coefficients(
    config: MergeConfiguration, present: set[str], wraps: list[str]
) -> Iterator[Problem]:
    """Check that the coefficients are said, and once.

    Args:
        config: the recipe.
        present: names of all its parameters.
        wraps: the wrapped methods.
    """
    postprocess = config.merge_method == "lines_postprocess"
    whole, schedules = (config.parameters or {}).get("schedule"), _schedules(config)
    own = ("alpha", "beta", "gamma") if postprocess else ("alpha", "beta")
    problem = None
    if _is_values(whole) and all(map(_is_values, schedules)):
        problem = values_and_more([name for name in own if name in present])
    elif whole == LARV and all(schedule == LARV for schedule in schedules):
        problem = LARV_AND_BETA if "beta" in present else None
    elif any(_is_values(schedule) or schedule == LARV for schedule in schedules):
        pass  # who lacks a beta is seen tensor by tensor
    elif postprocess and "gamma" not in present and not {"alpha", "beta"} <= present:
        yield MISSING_GAMMA
    elif config.merge_method == "lines" and "beta" not in present:
        yield missing_beta(wraps[0] if wraps else "task_arithmetic")
    if problem:
        yield problem


def _schedules(config: MergeConfiguration) -> list[Any]:
    """Return every schedule of the recipe, whichever tensors it is for."""
    return [
        leaf
        for section in sections(config)
        if "schedule" in section.parameters
        for leaf in leaves(section.parameters["schedule"])
    ]


def _is_values(schedule: Any) -> bool:
    return isinstance(schedule, str) and "," in schedule


def _check_counts(config: MergeConfiguration, methods: list[LinesMethod]) -> Iterator[Problem]:
    """Check how many models the method takes, for recipes that list them in one place."""
    if config.models is None or config.base_model is None:
        return
    others = [entry.model for entry in config.models if entry.model != config.base_model]
    count = len(dict.fromkeys(others))
    if config.merge_method == "lines_postprocess":
        if count > 1:
            yield Problem(
                "models",
                f"found {count} models besides base_model, wanted one: lines_postprocess edits "
                f"one model. Merge first, or write merge_method: lines.",
            )
        return
    for method in methods:
        wrap, contract = method.wrapped.spec.name, method.spec.contract
        # The base is one of the inputs.
        least = max(contract.min_inputs - 1, contract.min_non_base or 0)
        limits = [contract.max_inputs and contract.max_inputs - 1, contract.max_non_base]
        most = min((limit for limit in limits if limit is not None), default=None)
        if count and (count < least or (most is not None and count > most)):
            bounds = f"{least}" if least == most else f"at least {least}"
            bounds = bounds if most is None or least == most else f"{least} to {most}"
            yield Problem(
                "models",
                f"found {count} besides base_model, wanted {bounds}: that is what wrap {wrap} "
                f"takes. Change the models or the wrap.",
            )
