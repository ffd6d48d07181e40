"""Reading ``lines_report.json`` of a merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError, reason
from mergekit_lines.report import FORMAT

FILE = "lines_report.json"
_KEYS = {
    "merge_method": str,
    "wrap": list,
    "seed": int,
    "alpha": dict,
    "containers": list,
    "outside": dict,
    "recipe": str,
}


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of a merged model.

    Raises:
        LinesError: there is none, or it is not one of ours.
    """
    path = folder / FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LinesError(
            f"{folder}: found no {FILE}, wanted the OUT of a merge with merge_method: lines or "
            f"lines_postprocess. Check the path."
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
    wrong = [key for key, kind in _KEYS.items() if not isinstance(report.get(key), kind)]
    if wrong:
        raise LinesError(
            f"{path}: found no {', '.join(wrong)} as the merge writes them. The report was edited; "
            f"restore it."
        )
    return dict(report)
