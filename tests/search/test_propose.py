"""What a search proposes: its keys, its trials, and that none is lost or proposed twice."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergekit_lines import LinesError
from mergekit_lines.recipe.settings import with_settings
from mergekit_lines.search.propose.results import best_of
from mergekit_lines.search.propose.space import Space, parse_space
from mergekit_lines.search.propose.storage import database_in, open_storage, without_password
from mergekit_lines.search.propose.study import Study, Trial, check_sampler

optuna = pytest.importorskip("optuna")

RECIPE = {
    "merge_method": "lines",
    "base_model": "base",
    "models": [{"model": "a"}, {"model": "base"}, {"model": "b"}],
    "parameters": {"alpha": 0.2, "beta": 0.5, "norm": "l2"},
}
PLANTED = {"alpha": 0.3, "beta": 1.1, "density": 0.8, "outside": 0.05}


def space(*texts: str) -> Space:
    return parse_space(texts, RECIPE)


def study(
    folder: Path, of: Space, sampler: str = "tpe", seed: int = 0, goals: int = 1, owner: Any = None
) -> Study:
    url = database_in(folder)
    return Study("a study", of, goals, sampler, seed, open_storage(url), url, owner)


def test_a_range_a_choice_and_several_numbers() -> None:
    """Every form of --set gives the settings that a recipe has them by."""
    keys = space("beta=0.1:2", "density=1e-3:1:log", "wrap=ties,dare_ties", "weights=0:1",
                 "models.0.parameters.x=1:9:int", "gamma=0.1:0.3:0.1")  # fmt: skip
    names = ["beta", "density", "wrap", "weights.1", "weights.2", "models.0.parameters.x", "gamma"]
    assert [one.name for one in keys.dimensions] == names
    proposed = dict(zip(names, (0.123456789, 1e-3, "ties", 0.5, 1.0, 3, 0.2), strict=True))
    settings = keys.settings(keys.values(proposed), RECIPE)
    assert settings == {
        "parameters.beta": 0.123457,
        "parameters.density": 1e-3,
        "parameters.wrap": "ties",
        "weights": [0.5, 1.0],
        "models.0.parameters.x": 3,
        "parameters.gamma": 0.2,
    }
    recipe = with_settings(RECIPE, settings)
    assert [entry.get("parameters") for entry in recipe["models"]] == [
        {"weight": 0.5, "x": 3},
        None,
        {"weight": 1.0},
    ]


def test_blocks_take_the_place_of_every_word_by_depth() -> None:
    """Values over the depth are written out in the recipe's own word, and nothing beside them."""
    keys = space("blocks=0:1.5:3", "density=0.2:0.9")
    settings = keys.settings({"blocks.1": 0.0, "blocks.2": 1.25, "blocks.3": 1e-05,
                              "density": 0.5}, RECIPE)  # fmt: skip
    recipe = with_settings(RECIPE, settings)
    assert recipe["parameters"] == {"schedule": "0.0, 1.25, 1e-05", "density": 0.5}
    assert len(space("blocks=0:1").dimensions) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("beta", r"--set beta: wanted KEY=LOW:HIGH"),
        ("beta=", r"--set beta=: wanted KEY=LOW:HIGH"),
        ("beta=1:0", r"found '1:0', wanted LOW:HIGH, two finite numbers, the first below"),
        ("beta=1:1", r"the first below the second"),
        ("beta=0:nan", r"two finite numbers"),
        ("beta=0:1e999", r"two finite numbers"),
        ("beta=0:1:log", r"found 0, wanted a LOW above 0 for a log range"),
        ("beta=0.1:1:lgo", r"found 'lgo' behind the range.*Did you mean 'log'"),
        ("seed=0.5:3:int", r"found 0.5:3, wanted whole numbers"),
        ("blocks=0:1:1", r"found '1', wanted the number of values .* from 2 to 64"),
        ("blocks=0:1:log", r"found 'log', wanted the number of values"),
        ("blocks=1,2", r"found '1,2', wanted a range blocks=LOW:HIGH"),
        ("weights=0:1:log", r"found '0:1:log', wanted weights=LOW:HIGH"),
        ("wrap=ties,ties", r"a value stands there twice"),
        ("outside=1,true", r"two of the values are equal"),
    ],
)
def test_slips_in_a_key_are_told(text: str, problem: str) -> None:
    """Each in one sentence that names the text, what was found and what is wanted."""
    with pytest.raises(LinesError, match=problem):
        space(text)


def test_keys_that_say_the_same_are_refused() -> None:
    """Twice one key, and the coefficients of all blocks beside a schedule's words."""
    with pytest.raises(LinesError, match=r"found parameters\.beta twice"):
        space("beta=0:1", "parameters.beta=0:2")
    with pytest.raises(LinesError, match=r"found blocks and parameters\.beta, wanted one"):
        space("blocks=0:1", "beta=0:2")
    with pytest.raises(LinesError, match="found none, wanted at least one of KEY=LOW:HIGH"):
        space()
    with pytest.raises(LinesError, match=r"found weights and models\.2\.parameters\.weight"):
        parse_space(["weights=0:1", "models.2.parameters.weight=0:1"], RECIPE)
    # Under `lines` gamma is a word of the wrap's own, of breadcrumbs for example.
    assert len(parse_space(["blocks=0:1.5", "gamma=0:0.1"], RECIPE).dimensions) == 5
    postprocess = {**RECIPE, "merge_method": "lines_postprocess"}
    with pytest.raises(LinesError, match=r"found blocks and parameters\.gamma"):
        parse_space(["blocks=0:1.5", "gamma=0:0.1"], postprocess)


def test_the_end_of_an_axis_is_seen() -> None:
    """Within 2% of a range, on its own scale; of choices the first and last of three numbers."""
    keys = space("beta=1:2", "density=0.001:1:log", "outside=0,0.5,1", "wrap=ties,dare_ties")
    values = {"beta": 1.99, "density": 0.00101, "outside": 0.5, "wrap": "ties"}
    assert keys.ends(values) == {"beta": "high", "density": "low"}
    assert keys.ends({**values, "beta": 1.97, "density": 0.03, "outside": 0}) == {"outside": "low"}


def test_uniform_coefficients_keep_the_other_keys() -> None:
    """What says a coefficient by depth goes, and alpha is in its place."""
    flat = space("beta=0:1", "schedule=linear,sqrt", "density=0.2:0.9", "outside=0:1")
    names = [one.name for one in flat.without_depth(RECIPE, 0, 2).dimensions]
    assert names == ["alpha", "density", "outside"]


def planted(values: Mapping[str, Any]) -> float:
    return -sum((values[name] - best) ** 2 for name, best in PLANTED.items())


def in_memory(of: Space, sampler: str, seed: int = 0, goals: int = 1, storage: Any = None) -> Study:
    storage = storage or optuna.storages.InMemoryStorage()
    return Study("a study", of, goals, sampler, seed, storage, "memory", None)


def searched(sampler: str, seed: int) -> float:
    """The best of thirty trials of the planted objective."""
    of = space("alpha=0:1", "beta=0:2", "density=0.1:1", "outside=0:1")
    asked = in_memory(of, sampler, seed)
    for proposal in asked.coming(30):
        asked.tell(proposal, [planted(proposal.values)])
    assert len(asked.complete()) == 30
    return max(one.scores[0] for one in asked.complete())


def test_tpe_beats_random_search_of_as_many_trials() -> None:
    """On a planted objective of four keys: over eight seeds at most half the distance, in median.

    The margin was decided on beforehand; the seeds are the first eight numbers.
    """
    best = {
        sampler: [-searched(sampler, seed) for seed in range(8)] for sampler in ("tpe", "random")
    }
    assert np.median(best["tpe"]) <= 0.5 * np.median(best["random"])


def test_an_interrupted_search_proposes_what_a_whole_one_does(tmp_path: Path) -> None:
    """Trials that were being measured come again with their values; the later ones are the same."""
    of = space("alpha=0:1", "beta=0:2", "density=0.1:1", "outside=0:1", "wrap=ties,dare_ties")
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = study(tmp_path / "whole", of)
    for proposal in whole.coming(16):
        whole.tell(proposal, [planted(proposal.values)])
    begun = []
    for stop in (3, 4, 9, 13, 99):
        again = study(tmp_path / "cut", of)  # as after a kill: nothing but the database is left
        for proposal in again.coming(16):
            if proposal.number == stop:
                begun.append((stop, proposal.values))
                break
            again.tell(proposal, [planted(proposal.values)])
    assert [one.values for one in again.complete()] == [one.values for one in whole.complete()]
    assert all(whole.complete()[number].values == values for number, values in begun)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("owner", [None, "one"])
@pytest.mark.parametrize("cut", range(6))
def test_a_proposal_cut_between_its_values_goes_on_with_the_same(
    tmp_path: Path, sampler: str, owner: str | None, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after so many writes of the 13th trial: it is taken up, with the values of a whole."""
    of = space("alpha=0:1", "beta=0:2", "wrap=ties,dare_ties")
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = study(tmp_path / "whole", of, sampler, owner=owner)
    for proposal in whole.coming(14):
        whole.tell(proposal, [proposal.values["alpha"]])
    first = study(tmp_path / "cut", of, sampler, owner=owner)
    for proposal in first.coming(12):
        first.tell(proposal, [proposal.values["alpha"]])
    # Every change of a trial is one of these calls, each of which is there whole or not at all.
    writes = ("create_new_trial", "set_trial_state_values", "set_trial_user_attr",
              "set_trial_param")  # fmt: skip
    left = [cut]

    def counted(name: str) -> None:
        own = getattr(optuna.storages._CachedStorage, name)

        def write(*values: Any, **more: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return own(*values, **more)

        monkeypatch.setattr(optuna.storages._CachedStorage, name, write)

    for name in writes:
        counted(name)
    with contextlib.suppress(KeyboardInterrupt):
        next(first.coming(14))
        assert cut > 3  # what is not cut has been whole
    monkeypatch.undo()
    again = study(tmp_path / "cut", of, sampler, owner=owner)
    for proposal in again.coming(14):
        again.tell(proposal, [proposal.values["alpha"]])
    assert [one.number for one in again.complete()] == list(range(14))
    assert [one.values for one in again.complete()] == [one.values for one in whole.complete()]


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "cmaes"])
def test_every_sampler_goes_on_where_it_was(sampler: str) -> None:
    """Two runs of twelve trials each, the second after the first was cut, make twenty-four."""
    goals = 2 if sampler == "nsga2" else 1
    of = space("alpha=0:1", "beta=1e-3:2:log", "outside=0:1")
    storage = optuna.storages.InMemoryStorage()
    for stop in (12, 99):
        asked = in_memory(of, sampler, goals=goals, storage=storage)
        for proposal in asked.coming(24):
            if proposal.number == stop:
                break
            asked.tell(proposal, [float(v) for v in list(proposal.values.values())[:goals]])
    finished = asked.complete()
    assert [one.number for one in finished] == list(range(24))
    assert all(1e-3 <= one.values["beta"] <= 2 for one in finished)


def test_what_failed_is_tried_again_once_a_run(tmp_path: Path) -> None:
    """With the same values, and counted once: the trials stay as many as were asked for."""
    of = space("alpha=0:1")
    first = study(tmp_path, of)
    failed = []
    for proposal in first.coming(5):
        if proposal.number in (1, 3):
            first.tell(proposal, None, "no memory")
            failed.append(proposal.values)
        else:
            first.tell(proposal, [1.0])
    again = study(tmp_path, of)
    values = []
    for proposal in again.coming(5):
        values.append(proposal.values)
        again.tell(proposal, None if len(values) == 2 else [2.0])
    assert values == failed
    last = study(tmp_path, of)
    assert [proposal.values for proposal in _told(last, 5)] == failed[1:]
    assert len(last.complete()) == 5
    assert list(_told(study(tmp_path, of), 5)) == []


def _told(asked: Study, total: int) -> list[Any]:
    proposals = []
    for proposal in asked.coming(total):
        asked.tell(proposal, [3.0])
        proposals.append(proposal)
    return proposals


def test_two_folders_of_one_database_take_no_trial_of_each_other(tmp_path: Path) -> None:
    """A trial that the other measures stays its own; together they make the number."""
    of = space("alpha=0:1")
    one, other = (study(tmp_path, of, owner=name) for name in ("one", "other"))
    coming, coming_there = one.coming(6), other.coming(6)
    first, there = next(coming), next(coming_there)
    assert first.number != there.number and first.values != there.values
    other.tell(there, [1.0])
    again = study(tmp_path, of, owner="other")
    numbers = [proposal.number for proposal in _told(again, 6)]
    assert first.number not in numbers
    resumed = study(tmp_path, of, owner="one")
    assert [proposal.values for proposal in _told(resumed, 6)] == [first.values]
    assert len(resumed.complete()) == 6


def test_a_front_of_three_objectives() -> None:
    """Of equal ones the first counts, and what another beats in all is not in it."""
    scores = [(1, 1, 1), (1, 1, 1), (2, 0, 0), (0, 2, 0), (1, 0, 0), (2, 0, -1)]
    trials = [Trial(n, {}, tuple(map(float, each))) for n, each in enumerate(scores)]
    assert [one.number for one in best_of(trials)] == [3, 0, 2]
    alone = [Trial(n, {}, (score,)) for n, score in enumerate([1.0, 3.0, 3.0, 2.0])]
    assert [one.number for one in best_of(alone)] == [1]


def test_cmaes_proposes_numbers_alone() -> None:
    """It is refused for choices, one range or two objectives, with the sampler to take."""
    for keys, goals in (
        (space("alpha=0:1", "wrap=ties,dare_ties", "beta=0:1"), 1),
        (space("alpha=0:1"), 1),
        (space("alpha=0:1", "beta=0:1"), 2),
    ):
        with pytest.raises(LinesError, match=r"--sampler cmaes: found .* Take tpe\."):
            check_sampler("cmaes", keys, goals)
    check_sampler("cmaes", space("alpha=0:1", "beta=0:1"), 1)


def _corrupt(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


def _no_database(path: Path) -> None:
    path.write_text("my notes\n" * 300)


def _other_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE studies (numbers TEXT)")


@pytest.mark.parametrize("harm", [_corrupt, _no_database, _other_tables])
def test_a_database_that_is_none_is_one_sentence(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """It is named with what the database says, and what was measured is said to be kept."""
    harm(tmp_path / "trials.db")
    with pytest.raises(LinesError, match=r"--storage sqlite:.*trials\.db: the trials cannot be"):
        study(tmp_path, space("alpha=0:1")).begun  # noqa: B018 - reading is what is tried


def test_a_locked_database_is_one_sentence(tmp_path: Path) -> None:
    """Another process that holds it is told by the database's own words."""
    of = space("alpha=0:1")
    asked = study(tmp_path, of)
    hold = (
        "import sqlite3, sys\n"
        "held = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "held.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "trials.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LinesError, match="database is locked"):
            next(asked.coming(1))
        holder.stdin.close()
    assert next(asked.coming(1)).number == 0


@pytest.mark.parametrize(
    "url",
    [
        "nowhere",
        "mysql://me:secret@127.0.0.1:1/x",
        "x://me:secret@y",
        "postgres//me:p@secret@y/x",
        "me:secret",
        "mysql://y/x?user=me&password=secret",
    ],
)
def test_a_storage_that_cannot_be_had_is_told_without_its_password(url: str) -> None:
    """No URL, no driver and no such database are each one sentence."""
    with pytest.raises(LinesError, match="--storage") as caught:
        open_storage(url)
    assert "secret" not in caught.value.message
    assert "secret" not in without_password(url)


@pytest.mark.parametrize(
    ("table", "column", "wrong"),
    [
        ("trial_params", "distribution_json", "{"),
        ("trial_params", "distribution_json", '{"name": "FloatDistribution", "attributes": {}}'),
        ("trial_params", "distribution_json", '{"name": "Distribution", "attributes": {}}'),
        ("trial_params", "param_name", "aplha"),
        ("trials", "state", "COMPLETELY"),
        ("trials", "datetime_start", "yesterday"),
        ("trial_values", "value_type", "FINITELY"),
        ("trial_user_attributes", "value_json", "nothing"),
    ],
)
def test_rows_that_are_none_are_one_sentence(
    tmp_path: Path, table: str, column: str, wrong: str
) -> None:
    """A database that was edited, or in which a bit flipped: SQLite reads it, Optuna cannot."""
    of = space("alpha=0:1", "beta=0:1")
    asked = study(tmp_path, of, owner="own")
    for proposal in asked.coming(3):
        asked.tell(proposal, [1.0])
    del asked
    with sqlite3.connect(tmp_path / "trials.db") as database:
        (row,) = database.execute(f"SELECT min(rowid) FROM {table}").fetchone()
        changed = database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (wrong, row))
        assert changed.rowcount == 1
    again = study(tmp_path, of, owner="own")
    with pytest.raises(LinesError, match=r"--storage sqlite:.*trials\.db: the trials cannot be"):
        list(_told(again, 4))
