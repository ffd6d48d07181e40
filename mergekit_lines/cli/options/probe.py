"""What ``doctor`` finds in a fresh interpreter: run there, as ``mergekit-yaml`` would start."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

# A command's interpreter has its own folder on sys.path, and not the current one.
PROGRAM = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; "
    "from mergekit_lines.cli.options.probe import look; look()"
)


def probe() -> dict[str, Any]:
    """Start this interpreter anew, in this environment, and return what :func:`look` prints."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(  # noqa: S603 - this very interpreter, on a fixed program
        command, capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    try:
        answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": said[-1]}
    return answers


def look() -> None:
    """Import torch and mergekit as a command does, and print in JSON how far we got."""
    answers: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answers["devices"] = _devices()
            # Before anything here imports it: is it torch that did?
            answers["called"] = "mergekit_lines._autoload" in sys.modules
            answers["active"] = _active()
        except Exception as error:  # noqa: BLE001 - it is what the report is about
            answers["error"] = f"{type(error).__name__}: {error}"
    texts = {str(warning.message) for warning in caught}
    answers["warnings"] = sorted(text for text in texts if "mergekit-lines could not" in text)
    if "error" not in answers:
        answers |= _registered()
    print(json.dumps(answers))  # noqa: T201 - this is the channel to the other process


def _devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = range(torch.cuda.device_count())
    memory = [torch.cuda.get_device_properties(n).total_memory / 2**30 for n in devices]
    return [f"cuda:{n} {torch.cuda.get_device_name(n)}, {memory[n]:.0f} GiB" for n in devices]


def _active() -> bool:
    from mergekit import merge
    from mergekit.merge_methods import registered_methods

    from mergekit_lines.host.names import METHODS

    names = {method.spec.name for method in registered_methods()}
    return names.issuperset(METHODS) and hasattr(merge.run_merge, "extended_by")


def _registered() -> dict[str, Any]:
    """Register by hand, which checks every seam, and list what can be wrapped."""
    from mergekit_lines.errors import LinesError
    from mergekit_lines.host import seams
    from mergekit_lines.host.names import METHODS
    from mergekit_lines.plugin import register, require_extended

    try:
        register()
        require_extended()
    except LinesError as error:
        return {"seams": "; ".join(map(str, error.problems))}
    from mergekit.merge_methods import registered_methods

    from mergekit_lines.methods.registry import check_wrap

    names = sorted(method.spec.name for method in registered_methods())
    return {
        "seams": None,
        "seam_count": len(seams.SEAMS),
        "methods": [name for name in METHODS if name in names],
        "wraps": [name for name in names if check_wrap(name) is None and "[" not in name],
    }
