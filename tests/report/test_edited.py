"""Reports that somebody edited: refused by a sentence, or shown and made a card of."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mergekit.config import MergeConfiguration

from mergekit_lines.errors import LinesError
from mergekit_lines.report.card import card
from mergekit_lines.report.file import read_report, to_json
from mergekit_lines.report.origins import Origins
from mergekit_lines.report.show import show_report

RECIPE = yaml.safe_dump(
    {
        "merge_method": "lines",
        "base_model": "./base",
        "models": [{"model": "./tuned"}],
        "parameters": {"beta": 0.5},
    }
)
FILES = {"model.safetensors": {"bytes": 8, "header_sha256": "0" * 64}}
REPORT: dict[str, Any] = {
    "format": 1,
    "mergekit_lines": "0.1.0",
    "versions": {"torch": "2.13"},
    "merge_method": "lines",
    "wrap": ["ties"],
    "seed": 0,
    "alpha": {
        "value": 0.5,
        "source": "Eq. 2",
        "models": 2,
        "norm": "l1",
        "tau_sum": 1.0,
        "tau_mtl": 2.0,
    },
    "containers": [{"name": "model.layers", "coefficients": [0.5, [0.5, 0.75]] * 7}],
    "outside": {"lm_head.weight": 0.5},
    "recipe": RECIPE,
    "flags": ["--random-seed", "7"],
    "dropped": {"./tuned": ["a"]},
    "inputs": {"./base": {"files": FILES, "adapter": {"files": FILES, "revision": "a"}}},
    "output": {"bytes": 8, "tensors": 1, "shards": FILES},
    "run": {
        "seconds": 1.5,
        "bytes_read": 1,
        "bytes_written": 1,
        "peak_rss": None,
        "threads": 2,
        "device": "cpu",
        "resumed": False,
    },
}
HOSTILE = "\x1b]0;HOSTILE\x07\nFORGED ``` `\u202e <b>|"
VALUES: list[Any] = [
    *(None, True, -1, 10**400, 1e308, 0.5, "", HOSTILE, [], {}, [None], [[]], {"": {}}),
    *({HOSTILE: HOSTILE}, [HOSTILE], [1, "2"], "../../x", {"../x": {"bytes": 1}}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in a report."""
    if path:
        yield path
    keys = value if isinstance(value, dict) else range(len(value)) if type(value) is list else ()
    for key, part in [(key, value[key]) for key in keys]:
        yield from places(part, (*path, key))


def edited(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    report = copy.deepcopy(REPORT)
    part: Any = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return report


def meet(folder: Path, report: Any, output: pytest.CaptureFixture[str]) -> bool:
    """Let everything meet a report that reads one; tell whether it was taken."""
    (folder / "lines_report.json").write_text(json.dumps(report))
    try:
        content = read_report(folder)
    except LinesError as error:
        refusal = error.message
    else:
        refusal = ""
    assert "\x1b" not in refusal and "\nFORGED" not in refusal
    if refusal:
        return False
    show_report(content, str(folder))
    shown = output.readouterr().out
    assert not [one for one in ("\x1b", "\x07", "\u202e", "\nFORGED") if one in shown]
    config = MergeConfiguration.model_validate(yaml.safe_load(RECIPE))
    origins = Origins(config, content.get("inputs", {}), folder)
    json.loads(to_json(origins.report(content)))
    text = card(folder, config, {**content, "recipe": RECIPE}, "OUT")
    outside_code = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)
    assert "\x1b" not in text and "\nFORGED" not in text
    assert not re.search(r"(?<!\\)<b>", outside_code)
    return True


def test_a_report_as_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read, shown and made a card of."""
    assert meet(tmp_path, REPORT, capsys)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_in_any_place(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every value of a report in turn is replaced: nothing but a sentence comes of it."""
    for path in places(REPORT):
        meet(tmp_path, edited(path, value), capsys)


def test_any_key_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a key of a merge's report it is refused; what only some merges write may lack."""
    may_lack = {"flags", "dropped", "inputs", "output", "run"}
    for key in REPORT:
        report = {name: part for name, part in REPORT.items() if name != key}
        assert meet(tmp_path, report, capsys) is (key in may_lack)


def test_many_edits_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five random edits, two hundred times."""
    draw = random.Random(1)
    for _ in range(200):
        report = copy.deepcopy(REPORT)
        for _ in range(5):
            *way, last = draw.choice(list(places(report)))
            part: Any = report
            for key in way:
                part = part[key]
            part[last] = copy.deepcopy(draw.choice(VALUES))
        meet(tmp_path, report, capsys)
