"""The results of a search on the disk: nothing lost, nothing mixed, nothing half-written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Metric
from mergekit_lines.search.store import EXAMPLES, RESULTS, SEARCH, Record, Store, search_folder

IDENTITY: dict[str, Any] = {"the recipe": {"merge_method": "lines"}, "inputs": {"a": 1}}


def record(beta: float, split: str = "validation") -> Record:
    value = Metric(1 / 3 + beta, True, (0.1, 1 / 7))
    return Record(split, {"parameters": {"beta": beta}}, 0.1 + beta, {"score": value}, 1.5)


def test_gives_back_what_was_added(tmp_path: Path) -> None:
    """A record is found again by split and recipe, to the last digit, in another process too."""
    Store(tmp_path, IDENTITY).add(record(0.1))
    again = Store(tmp_path, IDENTITY)
    assert again.count == 1
    assert again.find("validation", {"parameters": {"beta": 0.1}}) == record(0.1)
    assert again.find("test", {"parameters": {"beta": 0.1}}) is None
    assert again.find("validation", {"parameters": {"beta": 0.2}}) is None


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_drops_a_line_that_a_kill_cut_short(tmp_path: Path, cut: int) -> None:
    """Of a line without its end nothing is left, and the next one is whole."""
    store = Store(tmp_path, IDENTITY)
    store.add(record(0.1))
    store.add(record(0.2))
    path = tmp_path / RESULTS
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:cut])
    again = Store(tmp_path, IDENTITY)
    assert again.count == 1
    assert path.read_bytes() == first
    again.add(record(0.2))
    assert path.read_bytes() == first + second


def test_refuses_a_line_that_is_no_result(tmp_path: Path) -> None:
    """What somebody wrote into the file is named by its line."""
    Store(tmp_path, IDENTITY).add(record(0.1))
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"split": "validation"}\n')
    with pytest.raises(LinesError, match=r"results\.jsonl, line 2: is no result"):
        Store(tmp_path, IDENTITY)


def test_refuses_results_of_another_search(tmp_path: Path) -> None:
    """Another recipe or other inputs are told by name; more evaluators are no other search."""
    Store(tmp_path, IDENTITY).add(record(0.1))
    with pytest.raises(LinesError, match="results of another search: inputs differ"):
        Store(tmp_path, {**IDENTITY, "inputs": {"a": 2}})
    with_test = {**IDENTITY, "the evaluators of test": ["x"]}
    assert Store(tmp_path, with_test).count == 1
    assert Store(tmp_path, IDENTITY).count == 1  # and without them again
    with pytest.raises(LinesError, match="the evaluators of test differ"):
        Store(tmp_path, {**IDENTITY, "the evaluators of test": ["y"]})


def test_refuses_results_that_nobody_explains(tmp_path: Path) -> None:
    """Without search.json the numbers could be of anything."""
    Store(tmp_path, IDENTITY).add(record(0.1))
    (tmp_path / SEARCH).unlink()
    with pytest.raises(LinesError, match=r"found results.jsonl without the search\.json"):
        Store(tmp_path, IDENTITY)


def test_refuses_a_folder_in_which_another_search_runs(tmp_path: Path) -> None:
    """Two processes would measure everything twice."""
    with search_folder(tmp_path / "out") as folder:
        assert folder.is_dir()
        with (
            pytest.raises(LinesError, match="another process searches there"),
            search_folder(folder),
        ):
            pass


def test_refuses_a_file_as_folder(tmp_path: Path) -> None:
    """--out that is a file is told, not overwritten."""
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(LinesError, match=r"--out .*out: cannot be written"),
        search_folder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_search_json_is_plain(tmp_path: Path) -> None:
    """What the numbers hang on can be read by people."""
    Store(tmp_path, IDENTITY)
    assert json.loads((tmp_path / SEARCH).read_text()) == {"format": 1, **IDENTITY}


HOSTILE = {
    "a pipe": None,
    "deep": "[" * 100_000 + "\n",
    "half a character": '{"a": "\\ud800", "recipe": {"\\udfff": 1}}\n',
    "no text": "\xff\x1b[2J\n",
    "a number": f'{{"a": {"9" * 9_999}}}\n',
    "lists": '["\x1b]0;x\\u001b", 1]\n',
}


@pytest.mark.parametrize("name", [RESULTS, SEARCH, EXAMPLES])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_files_that_somebody_put_there(tmp_path: Path, name: str, content: str | None) -> None:
    """They are refused by a sentence, whatever they are, and nothing waits for them."""
    Store(tmp_path, IDENTITY).add(record(0.1))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(LinesError, match=re.escape(name)) as caught:
        Store(tmp_path, IDENTITY).digests()
    assert caught.value.message.isprintable()
