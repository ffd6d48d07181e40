"""The words of a recipe: what each may be, how it is checked, and its default.

mergekit resolves filters, gradients and overrides itself and calls the validator of the
parameter on every scalar it meets; the validators here raise :class:`LinesError`, which
passes through mergekit and pydantic untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from pydantic import PlainValidator, ValidationError

from mergekit_lines.errors import LinesError, Problem, nearest
from mergekit_lines.lines.placed import AUTO, BLOCK, LARV
from mergekit_lines.lines.schedule import EXPONENTS

FP32_MAX = 3.4e38
SHARE = "a share from 0 to 1"


def of_parameter(name: str, text: str) -> Problem:
    """Return what is wrong with a parameter of the recipe."""
    return Problem(f"parameters.{name}", text, about=(name,))


def word(
    name: str,
    check: Callable[[Any], Any],
    default: Any,
    meaning: str,
    scope: ParameterScope = ParameterScope.SHARED,
) -> ParameterSpec:
    """Return a word of a recipe.

    Args:
        name: of it.
        check: returns a value as it is meant, or raises LinesError.
        default: None for none.
        meaning: of it, in some words.
        scope: whether each model has its own value.
    """

    def validate(value: Any) -> Any:
        # mergekit validates the default too; None stands for "not given".
        return value if value is None else check(value)

    return ParameterSpec(
        name,
        Annotated[Any, PlainValidator(validate)],
        scope,
        default=default,
        description=meaning,
    )


def wrong(name: str, value: object, meaning: str, choices: Iterable[str] = ()) -> LinesError:
    """Return the error for a value that a word cannot have."""
    kind = " (a boolean)" if isinstance(value, bool) else ""
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return LinesError(of_parameter(name, f"found {value!r}{kind}, wanted {meaning}.{hint}"))


def number(name: str, value: Any, meaning: str = "a finite number") -> float:
    """Return ``value`` as a float; booleans, NaN, infinity and words are refused.

    Text that is a number is taken as mergekit takes it (YAML reads ``1e-5`` as text).

    Raises:
        LinesError: it is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong(name, value, meaning)
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise wrong(name, value, meaning) from None
    # The arithmetic is in fp32.
    if not math.isfinite(result) or abs(result) > FP32_MAX:
        raise wrong(name, value, meaning)
    return result


def whole_number(name: str, value: Any, least: int) -> int:
    """Return ``value`` as a whole number of at least ``least``.

    Raises:
        LinesError: it is none.
    """
    meaning = f"a whole number of at least {least}"
    result = number(name, value, meaning)
    if result != int(result) or result < least:
        raise wrong(name, value, meaning)
    return value if isinstance(value, int) else int(result)  # a float has 53 bits


def share(name: str, value: Any) -> float:
    """Return ``value`` as a share from 0 to 1, both of them included.

    Raises:
        LinesError: it is none.
    """
    result = number(name, value)
    if not 0 <= result <= 1:
        raise wrong(name, value, SHARE)
    return result


def _alpha(value: Any) -> float | str:
    if isinstance(value, str) and value in (AUTO, BLOCK):
        return value
    try:
        return number("alpha", value)
    except LinesError:
        choices = [AUTO, BLOCK]
        raise wrong("alpha", value, "a finite number, `auto` or `block`", choices) from None


def _alpha_postprocess(value: Any) -> float:
    if isinstance(value, str) and value in (AUTO, BLOCK):
        raise LinesError(
            of_parameter(
                "alpha",
                f"found {value!r}, wanted a finite number: lines_postprocess sees one model, for "
                f"which Eq. 2 says nothing. Write gamma (0 to 1), or alpha and beta.",
            )
        )
    return number("alpha", value)


def _schedule(value: Any) -> float | tuple[float, ...] | str:
    return LARV if value == LARV else _shape(value, [*EXPONENTS, LARV])


def _schedule_postprocess(value: Any) -> float | tuple[float, ...]:
    if value == LARV:
        raise LinesError(
            of_parameter(
                "schedule",
                "found 'larv', wanted a schedule that reads no weights: lines_postprocess sees one "
                "model, and larv compares several. Write merge_method: lines, or another schedule.",
            )
        )
    return _shape(value, EXPONENTS)


def _shape(value: Any, names: Iterable[str]) -> float | tuple[float, ...]:
    if isinstance(value, str) and value in EXPONENTS:
        return EXPONENTS[value]
    if written_out(value):
        return _values("schedule", value)
    meaning = (
        f"{', '.join(names)}, an exponent above 0, or the coefficients from the first block "
        f'to the last in ONE text, e.g. "0.1, 0.2, 0.4"'
    )
    try:
        exponent = number("schedule", value)
    except LinesError:
        raise wrong("schedule", value, meaning, names) from None
    if exponent <= 0:
        raise wrong("schedule", value, meaning)
    return exponent


def written_out(value: Any) -> bool:
    """Tell values by depth, in one text, from one value; those that were read are a tuple."""
    return isinstance(value, tuple) or (isinstance(value, str) and "," in value)


def _values(name: str, value: tuple[Any, ...] | str) -> tuple[float, ...]:
    """Return values by depth that are written out."""
    entries = [entry.strip() for entry in value.split(",")] if isinstance(value, str) else value
    meaning = 'finite numbers separated by commas, two at least, e.g. "0.1, 0.2, 0.4"'
    try:
        numbers = tuple(number(name, entry) for entry in entries)
    except LinesError:
        raise wrong(name, value, meaning) from None
    if len(numbers) < 2:
        raise wrong(name, value, meaning)
    return numbers


def _outside(value: Any) -> float | str:
    if value == "alpha":
        return "alpha"
    try:
        return number("outside", value)
    except LinesError:
        raise wrong("outside", value, "`alpha` or a finite number") from None


def _blocks(value: Any) -> str:
    entries = [entry.strip() for entry in value.split(",")] if isinstance(value, str) else []
    if not entries or not all(entries):
        raise wrong(
            "blocks",
            value,
            "ONE text of container names separated by commas, e.g. `decoder.block` "
            "(a YAML list would be a gradient)",
        )
    return ",".join(entries)


def _norm(value: Any) -> str:
    if value not in ("l1", "l2"):
        raise wrong("norm", value, "`l1` (the authors' code) or `l2`")
    return str(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong("allow_nonfinite", value, "true or false")
    return value


def _wrap_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise wrong("wrap", value, "the name of a mergekit merge method, e.g. `ties`")
    return value


_BETA = word(
    "beta", lambda v: number("beta", v), None, "coefficient gained from first to last block"
)
_SHAPES = "linear, sqrt, quadratic, an exponent, or coefficients"
_SHARED_WORDS = (
    word("outside", _outside, "alpha", "coefficient of tensors outside the blocks"),
    word("blocks", _blocks, None, "containers that count as blocks, comma-separated"),
    word("num_blocks", lambda v: whole_number("num_blocks", v, 1), None, "block count"),
    word(
        "allow_nonfinite",
        _switch,
        default=False,
        meaning="go on although an input holds NaN or infinity",
    ),
)

LINES_WORDS = (
    word("wrap", _wrap_name, "task_arithmetic", "merge method whose task vector is scaled"),
    # Where the schedule gives values there is no α to give: the default `auto` is taken later.
    word("alpha", _alpha, None, "coefficient of the first block, or auto or block (Eq. 2)"),
    _BETA,
    word("schedule", _schedule, "linear", f"{_SHAPES}, or larv"),
    *_SHARED_WORDS,
    word("norm", _norm, "l1", "norm of Eq. 2 for alpha: auto"),
    word("seed", lambda v: whole_number("seed", v, 0), None, "seed of wraps that draw at random"),
)

# Of a merge alone: nothing is scaled by depth.
ALONE_WORDS = tuple(word for word in _SHARED_WORDS if word.name == "allow_nonfinite")

WRAP = next(word for word in LINES_WORDS if word.name == "wrap")

POSTPROCESS_WORDS = (
    word("alpha", _alpha_postprocess, None, "coefficient of the first block"),
    word("gamma", lambda v: number("gamma", v), None, "alpha = gamma, beta = 1 - gamma"),
    _BETA,
    word("schedule", _schedule_postprocess, "linear", _SHAPES),
    *_SHARED_WORDS,
)


def _rescale_by(value: Any) -> str:
    if value not in ("l1", "p"):
        meaning = "`l1` (mergekit's: each tensor's L1 norm stays) or `p` (DARE's own: 1/(1 - p))"
        raise wrong("rescale_by", value, meaning)
    return str(value)


def _trim(value: Any) -> str:
    if value not in ("tensor", "model"):
        meaning = "`tensor` (mergekit's) or `model` (the paper's: over the whole task vector)"
        raise wrong("trim", value, meaning, ["tensor", "model"])
    return str(value)


# Words of ours for methods of mergekit, beside their own.
TRIM = word("trim", _trim, "tensor", "over what TIES keeps the largest entries")
RESCALE_BY = word("rescale_by", _rescale_by, "l1", "how `rescale` makes up for what is dropped")
FOR_WRAP = {"ties": (TRIM,), "dare_linear": (RESCALE_BY,), "dare_ties": (RESCALE_BY,)}

# Words that hold for the whole recipe: a filter or a gradient over tensors has no meaning.
WHOLE_RECIPE = ("blocks", "num_blocks", "norm", "seed")


def strict(
    parameter: ParameterSpec, name: str, *, by_depth: bool = False, defaults: bool = True
) -> ParameterSpec:
    """Return a wrapped method's parameter under the recipe's ``name``, strictly checked.

    Booleans and non-finite numbers are refused where a number is wanted.

    Args:
        parameter: the method's own.
        name: by which a recipe gives it.
        by_depth: take values from the first block to the last too.
        defaults: whether a required ``weight`` becomes 1.0.
    """
    numeric = _scalar(parameter.value_type) in (int, float)

    def validate(value: Any) -> Any:
        if by_depth and written_out(value):
            return _values(name, value)
        if numeric and value is not None:
            (share if parameter.name == "density" else number)(name, value)
        try:
            return parameter.validate(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise LinesError(of_parameter(name, f"found {value!r}: {reason}.")) from None

    default = parameter.default
    if defaults and parameter.required and parameter.name == "weight":
        default = 1.0
    return ParameterSpec(
        name,
        Annotated[Any, PlainValidator(validate)],
        parameter.scope,
        default=default,
        description=parameter.description,
    )


def _scalar(value_type: Any) -> Any:
    while get_origin(value_type) is Annotated:
        value_type = get_args(value_type)[0]
    if get_origin(value_type) is Union:
        kinds = [kind for kind in get_args(value_type) if kind is not type(None)]
        return _scalar(kinds[0]) if len(kinds) == 1 else None
    return value_type


def plain_sum_factors(
    wrap: str, values: Mapping[str, Any], models: Sequence[Any]
) -> frozenset[float] | None:
    """Return w·λ of each model where the wrapped merge is Σ w·λ·τ and no more, else None.

    That is task_arithmetic with ``normalize: false``.

    Args:
        wrap: the wrapped method.
        values: its resolved parameters; those that each model has are keyed by model.
        models: the fine-tuned ones.
    """
    if wrap != "task_arithmetic" or values["normalize"]:
        return None
    return frozenset(values["weight"][model] * values["lambda"] for model in models)
