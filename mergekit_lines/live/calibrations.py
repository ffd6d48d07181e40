"""What was read of a live model's inputs for coefficients, kept from one setting to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mergekit_lines.engine.vectors import wrapped_key
from mergekit_lines.lines.placed import LARV
from mergekit_lines.plan.planned import PlannedTensor


class Calibrations:
    """What was read of the weights for coefficients, by what it hangs on."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._merge, self._words = "", ""

    def plan(self, planned: Sequence[PlannedTensor]) -> None:
        """Take note of a plan: of its wrapped merges, and of what its words ask of the weights."""
        words = [item.placed.words for item in planned]
        asked = [(each.alpha if each.from_norms else "", each.shape == LARV) for each in words]
        self._merge = repr([wrapped_key(item.task) for item in planned])
        self._words = repr([asked, [item.placed.depth for item in planned]])
        if any(alpha for alpha, _ in asked):
            self._words += planned[0].norm

    def recall(self, what: str) -> Any:
        """Return what was read for the present plan, or None."""
        return self._values.get(self._key(what))

    def keep(self, what: str, value: Any) -> None:
        """Keep it for plans like the present one."""
        self._values[self._key(what)] = value

    def _key(self, what: str) -> str:
        # The cuts of a model hang on no coefficient.
        text = repr((what, self._merge, "" if what == "trim" else self._words))
        return hashlib.sha256(text.encode()).hexdigest()
