"""Giving a trial up: its parts are compared with the same parts of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lines.evaluate import Metric
from mergekit_lines.evaluate.partial import PrunedError
from mergekit_lines.search.measuring.early import Early, limits_of
from mergekit_lines.search.objective import parse_objective
from mergekit_lines.search.propose.space import parse_space
from mergekit_lines.search.propose.storage import database_in, open_storage
from mergekit_lines.search.propose.study import Study
from mergekit_lines.search.store import Record, Store


def looked(values: list[float], limits: dict[int, float]) -> list[float | None]:
    """What the parts of a trial score by an objective that has no value at 0."""
    early, scores = Early(parse_objective("1/acc"), None, None, limits), list[float | None]()
    for value in values:
        early.look(scores, {"acc": Metric(value, higher_is_better=True)})
    return scores


def test_a_part_without_a_value_keeps_its_number() -> None:
    """Nothing is accurate in the first part: the second is held to the second of others."""
    assert looked([0.0, 0.5, 0.25], {}) == [None, 2.0, 4.0]
    limits = limits_of([{0: 9.0, 1: 1.0}] * 5)
    assert looked([0.0, 0.5], limits) == [None, 2.0]
    with pytest.raises(PrunedError, match=r"2 is below 9 at step 1"):
        looked([0.5], limits)


def test_a_study_and_a_store_keep_the_numbers_of_parts(tmp_path: Path) -> None:
    """Optuna's steps are the parts' numbers, in a run that went on behind the results too."""
    optuna = pytest.importorskip("optuna")
    record = Record("validation", {}, 1.0, {}, 0.0, partials=(None, 2.0, 4.0), goal="1/acc")
    Store(tmp_path, {}).add(record)
    kept = Store(tmp_path, {}).find("validation", {})
    assert kept is not None and kept.partials == (None, 2.0, 4.0)
    url = database_in(tmp_path)
    space = parse_space(["alpha=0:1"], {"merge_method": "lines"})
    study = Study("a study", space, 1, "random", 0, open_storage(url), url, None)
    for proposal in study.coming(5):
        study.tell(proposal, [1.0], partials=kept.partials)
    (name,) = optuna.get_all_study_names(url)
    trials = optuna.load_study(study_name=name, storage=url).get_trials()
    assert [trial.intermediate_values for trial in trials] == [{1: 2.0, 2: 4.0}] * 5
    assert study.limits() == {1: 2.0, 2: 4.0}
