"""``lines_report.json``: what a merge did, for people, for the card and for later tools."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergekit_lines._version import __version__
from mergekit_lines.checkpoint.bounded import read_json
from mergekit_lines.errors import LinesError, reason
from mergekit_lines.files import REPORT
from mergekit_lines.lines.outside import NO_BLOCKS
from mergekit_lines.lines.readings import Calibration, Readings, Tier
from mergekit_lines.lines.summary import Summary
from mergekit_lines.report.schema import unfit_keys

FORMAT = 1
PACKAGES = ("mergekit", "torch", "transformers", "safetensors", "peft")


def _one_or_all(values: list[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else values


def report(summary: Summary, method: str, recipe: str) -> dict[str, Any]:
    """Return the report of a merge; equal recipes and versions give equal reports."""
    alpha: dict[str, Any] = {"value": summary.alpha, "source": "recipe"}
    if isinstance(summary.alpha, Calibration):
        calibration = summary.alpha
        closed = calibration.tau_sum is None
        alpha = {
            "value": calibration.alpha,
            "source": "Eq. 2, closed form 1/(N·|w·lambda|)" if closed else "Eq. 2",
            "models": calibration.models,
            "norm": calibration.norm,
            "tau_sum": calibration.tau_sum,
            "tau_mtl": calibration.tau_mtl,
        }
        if calibration.blocks is not None:
            alpha["blocks"] = {name: list(values) for name, values in calibration.blocks.items()}
    return {
        "format": FORMAT,
        "mergekit_lines": __version__,
        "versions": versions(),
        "merge_method": method,
        "wrap": list(summary.wraps),
        "seed": summary.seed,
        "alpha": alpha,
        # Per block from the first to the last; a list where filters gave it several.
        "containers": [
            {"name": name, "coefficients": [_one_or_all(values) for values in blocks]}
            for name, blocks in summary.containers.items()
        ],
        "outside": summary.outside,
        **({"trim": summary.trim} if summary.trim else {}),
        **({"larv": _tiers(summary.larv)} if summary.larv is not None else {}),
        "recipe": recipe,
    }


def _tiers(larv: Mapping[str, Sequence[Tier]]) -> dict[str, list[dict[str, float]]]:
    return {name: [asdict(tier) for tier in blocks] for name, blocks in larv.items()}


def reported_readings(report: Mapping[str, Any]) -> Readings:
    """Return what a report says was read of the weights; its keys were checked."""
    alpha, larv = report["alpha"], report.get("larv")
    # One tensor by the recipe's number beside others by Eq. 2: the number is Eq. 2's all the same.
    calibration = None
    if alpha["value"] is not None:
        keys = ("models", "norm", "tau_sum", "tau_mtl", "blocks")
        facts = {"models": 0, "norm": "", **{key: alpha[key] for key in keys if key in alpha}}
        calibration = Calibration(alpha["value"], **facts)
    tiers = larv and {name: [Tier(**one) for one in blocks] for name, blocks in larv.items()}
    return Readings(calibration, tiers)


def run_figures(
    *,
    seconds: float,
    bytes_read: int,
    bytes_written: int,
    threads: int,
    device: str,
    resumed: bool,
) -> dict[str, Any]:
    """Return the part of a report that differs from run to run of the same merge.

    Args:
        seconds: from the first check to the last shard.
        bytes_read: of the inputs' tensors.
        bytes_written: of the output's shards; fewer than it has where the run went on behind
            an interrupted one.
        threads: that shared the arithmetic.
        device: where it was done.
        resumed: whether shards of an interrupted run were kept.
    """
    return {
        "seconds": round(seconds, 3),
        "bytes_read": bytes_read,
        "bytes_written": bytes_written,
        "peak_rss": peak_rss(),
        "threads": threads,
        "device": device,
        "resumed": resumed,
    }


def peak_rss() -> int | None:
    """Return the peak of this process's resident memory in bytes, if the system tells it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@functools.cache
def _version(name: str) -> str:
    """Return a package's version; a merge asks twice, and each answer parses a long text."""
    return importlib.metadata.version(name)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a merge's bytes may hang on."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def to_json(content: dict[str, Any]) -> str:
    """Return a report as the text of its file."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def describe(summary: Summary) -> list[str]:
    """Return what the user is told before the merge: α, λ per container, what lies outside."""
    if not summary.by_depth:
        return [f"{', '.join(summary.wraps)}: {len(summary.outside)} tensors, not scaled by depth"]
    lines = []
    if isinstance(summary.alpha, Calibration):
        calibration = summary.alpha
        how = "closed form" if calibration.tau_sum is None else f"{calibration.norm.upper()} norms"
        own, alphas = "auto", repr(calibration.alpha)
        if calibration.blocks is not None:
            values = sorted(each for blocks in calibration.blocks.values() for each in blocks)
            own, alphas = "block", f"{_range(values)} by block, {alphas} of the whole model"
        lines.append(f"alpha = {alphas} ({own}: Eq. 2, {calibration.models} models, {how})")
    for name, tiers in (summary.larv or {}).items():
        levels = Counter(tier.level for tier in tiers)
        shares = ", ".join(f"{level:g} for {levels[level]}" for level in sorted(levels))
        lines.append(f"{name}: larv multiplies alpha by {shares} of {len(tiers)} blocks")
    for name, blocks in summary.containers.items():
        first, last = _range(blocks[0]), _range(blocks[-1])
        lines.append(f"{name}: {len(blocks)} blocks, coefficient {first} to {last}")
    if not summary.containers:
        lines.append(NO_BLOCKS)
    if summary.outside:
        values = sorted(set(summary.outside.values()))
        lines.append(f"outside: {len(summary.outside)} tensors, coefficient {_range(values)}")
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{values[0]:.4g}", f"{values[-1]:.4g}"
    return low if low == high else f"{low}…{high}"


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of a merged model.

    Raises:
        LinesError: there is none, or it is not one of ours.
    """
    path = folder / REPORT
    try:
        report = read_json(path, finite=True)
    except FileNotFoundError:
        raise LinesError(
            f"{folder}: found no {REPORT}, wanted the OUT of a merge with merge_method: lines, "
            f"lines_postprocess or another of this package, or of mergekit-lines merge. Check "
            f"the path."
        ) from None
    except (OSError, ValueError) as error:
        raise LinesError(
            f"{path}: cannot be read ({reason(error)}), wanted the JSON object that the merge "
            f"wrote. Restore the file."
        ) from error
    kind = report.get("format") if isinstance(report, dict) else None
    if kind != FORMAT:
        raise LinesError(
            f"{path}: found format {kind!r}, wanted {FORMAT}: another version of mergekit-lines "
            f"wrote this report. Use that version, or merge again."
        )
    if wrong := unfit_keys(report):
        raise LinesError(
            f"{path}: found no {', '.join(wrong)} as the merge writes them. The report was edited; "
            f"restore it."
        )
    return dict(report)


def is_by_depth(content: Mapping[str, Any]) -> bool:
    """Tell by its report whether a merge is scaled by depth, or a method alone."""
    return bool(content["wrap"] != [content["merge_method"]])
