"""What stands under each key of a report: whoever reads one relies on it, whoever edited it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mergekit_lines.checkpoint.headers import is_file_name

Check = Callable[[Any], bool]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _listed(check: Check, least: int = 0) -> Check:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(check, value))


def _mapped(check: Check, name: Callable[[str], bool] = _text) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(map(name, value)) and all(map(check, value.values()))
    )


def _with(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    return lambda value: isinstance(value, dict) and not _unfit(value, required, optional or {})


def _unfit(
    value: Mapping[str, Any], required: Mapping[str, Check], optional: Mapping[str, Check]
) -> list[str]:
    missing = [key for key in required if key not in value]
    checks = {**required, **optional}
    return missing + [key for key in value if key in checks and not checks[key](value[key])]


def _coefficients(value: Any) -> bool:
    return _number(value) or _listed(_number, 1)(value)


def _alpha(value: Any) -> bool:
    by_eq2 = {"models", "norm", "tau_sum", "tau_mtl"}  # all of them, or none
    return _with(
        {"value": _or_none(_number), "source": _text},
        {
            "models": _whole,
            "norm": lambda norm: norm in ("l1", "l2"),
            "tau_sum": _or_none(_number),
            "tau_mtl": _or_none(_number),
            "blocks": _mapped(_listed(_number, 1)),
        },
    )(value) and (by_eq2 <= value.keys() or not by_eq2 & value.keys())


def _tier(value: Any) -> bool:
    keys = {"contrast", "conflict", "level"}
    return isinstance(value, dict) and value.keys() == keys and all(map(_number, value.values()))


_FILES = _mapped(
    _with({"bytes": _whole}, {"header_sha256": _digest, "sha256": _digest}), is_file_name
)

REQUIRED: dict[str, Check] = {
    "merge_method": _text,
    "wrap": _listed(_text),
    "seed": lambda value: type(value) is int,
    "alpha": _alpha,
    "containers": _listed(_with({"name": _text, "coefficients": _listed(_coefficients, 1)})),
    "outside": _mapped(_number),
    "recipe": _text,
    "mergekit_lines": _text,
    "versions": _mapped(_text),
}
OPTIONAL: dict[str, Check] = {
    "dropped": _mapped(_listed(_text)),
    "larv": _mapped(_listed(_tier, 1)),
    "flags": _listed(_text),
    "inputs": _mapped(
        _with(
            {"files": _FILES},
            {"revision": _text, "adapter": _with({"files": _FILES}, {"revision": _text})},
        )
    ),
    "lora_merge_dtype": _or_none(_text),
    "output": _with({"shards": _FILES}, {"bytes": _whole, "tensors": _whole}),
    "trim": _with({"magnitudes": _mapped(_number), "zero_sign": lambda sign: sign in (-1, 0, 1)}),
    "run": _with(
        {
            "seconds": _number,
            "bytes_read": _whole,
            "bytes_written": _whole,
            "peak_rss": _or_none(_whole),
            "threads": _whole,
            "device": _text,
            "resumed": lambda value: isinstance(value, bool),
        }
    ),
}


def unfit_keys(report: Mapping[str, Any]) -> list[str]:
    """Return the keys of a report that are missing, or hold what no merge writes there."""
    return _unfit(report, REQUIRED, OPTIONAL)
