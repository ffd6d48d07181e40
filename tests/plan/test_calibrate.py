"""Calibration: what an interrupted run kept is taken over, and a number needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mergekit.options import MergeOptions

from mergekit_lines.lines.readings import Calibration
from mergekit_lines.plan.calibrate import calibrate
from mergekit_lines.plan.planned import MergeRun
from tests.plan.preparing import configuration, prepared


class Notes:
    """What a partial folder keeps, in memory."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept

    def recall(self, key: str) -> Any:
        return self.kept.get(key)

    def keep(self, key: str, value: Any) -> None:
        self.kept[key] = value


def test_alpha_of_an_interrupted_run_is_taken_over() -> None:
    """What was kept is the answer; nothing is planned or read for it."""
    kept = {"alpha": 0.75, "models": 3, "norm": "l2", "tau_sum": 9.0, "tau_mtl": 4.0}
    run = MergeRun(partial=Notes(alpha=kept))
    assert calibrate([], run, 0, MergeOptions(), None) == Calibration(0.75, 3, "l2", 9.0, 4.0)


@pytest.mark.parametrize(("weight", "alpha"), [(0.5, 1.0), (0.25, 2.0)])
def test_a_plain_sum_has_a_closed_form(
    weight: float, alpha: float, llama_base: Path, llama_a: Path, llama_b: Path
) -> None:
    """Task arithmetic of N models at one weight w: α = 1/(N·w), kept, with no weight read."""
    parameters = {"alpha": "auto", "beta": 0.5, "weight": weight}
    notes = Notes()
    with prepared(configuration(llama_base, llama_a, llama_b, parameters=parameters)) as plan:
        run = MergeRun(partial=notes)  # without an engine no tensor can be computed
        found = calibrate(plan.planned, run, plan.seed, MergeOptions(), plan.out_config)
    assert found is not None
    assert (found.alpha, found.models, found.tau_sum) == (alpha, 2, None)
    assert Calibration(**notes.kept["alpha"]) == found


def test_a_number_keeps_nothing(llama_base: Path, llama_a: Path) -> None:
    """With α in the recipe there is no calibration, and nothing to go on from."""
    notes = Notes()
    with prepared(configuration(llama_base, llama_a)) as plan:
        run = MergeRun(partial=notes)
        assert calibrate(plan.planned, run, plan.seed, MergeOptions(), plan.out_config) is None
    assert notes.kept == {}
