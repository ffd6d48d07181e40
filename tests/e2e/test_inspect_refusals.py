"""What a merge refuses, ``mergekit-lines inspect`` names too: one table of cases drives both.

The cases are those of :mod:`tests.cases` that need no weights; what must be in the message is
the same as for ``mergekit-yaml`` (:mod:`tests.e2e.test_refusals`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import CASES
from tests.cases.case import Case, Models
from tests.e2e import runner
from tests.e2e.test_refusals import SOUND, contains, message, seen

# What a merge sees and an inspection cannot.
UNSEEN = {
    "out-in-use": "the lock of OUT is only taken by a merge, and may be gone when one begins",
    "out-holds-a-tokenizer": "which files a tokenizer has is known when mergekit saves it",
    "integers-everywhere": "integers that all models agree on are copied; whether they do is data",
}
SEEN = [case for case in CASES if case.fault != "weights" and case.id not in UNSEEN]


@pytest.fixture(scope="module")
def models(llama_base: Path, llama_a: Path, llama_b: Path, adapter: Path) -> Models:
    """The session's checkpoints."""
    return Models(llama_base, llama_a, llama_b, adapter)


@pytest.mark.parametrize("case", SEEN, ids=lambda case: case.id)
def test_named(case: Case, tmp_path: Path, models: Models, server: runner.ForkServer) -> None:
    """A fault ends ``inspect`` with status 1 and the merge's own words, and writes nothing."""
    text = runner.recipe_text(case.build(tmp_path, models))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    (tmp_path / "scratch").mkdir()
    before = seen(tmp_path, models)
    command = ["mergekit-lines", "inspect", "recipe.yml", "--out", case.out, *case.flags]
    result = server.run(command, tmp_path, tmp_path / "scratch")
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == 1, f"{result.stdout}{result.stderr}"
    assert result.stderr.count("Error: [lines] ") == 1, result.stderr
    found = message(result, tmp_path, models)
    lacking = [phrase for phrase in case.expected if not contains(found, phrase)]
    assert not lacking, f"the message lacks {lacking}:\n{found}"
    if case.problems is not None:
        assert max(1, found.count("\n  ")) == case.problems, found
    assert seen(tmp_path, models) == before


@pytest.mark.parametrize("build", SOUND.values(), ids=SOUND)
def test_sound(build: object, tmp_path: Path, models: Models, server: runner.ForkServer) -> None:
    """A recipe that merges has no problem: status 0, and nothing on stderr."""
    text = runner.recipe_text(build(tmp_path, models))  # type: ignore[operator]
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    result = server.run(["mergekit-lines", "inspect", "recipe.yml"], tmp_path, tmp_path)
    result.succeeded()
    assert result.stderr == ""
    assert "model.layers" in result.stdout


def test_unseen_cases_exist() -> None:
    """Every exclusion is a case of the table."""
    assert set(UNSEEN) <= {case.id for case in CASES}
    assert len(SEEN) > 150
