"""The page of a search: whole in itself, and whatever others named stays text in it."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from mergekit_lines import LinesError
from mergekit_lines.figures import web
from mergekit_lines.figures.web import Axis, Dot, Page, html_of

HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \u202e"


def dot(way: str, *values: float | None, **more: Any) -> Dot:
    return Dot(way, values, {"beta": "0.1"}, {"math": "0.5"}, "merge_method: lines\n", **more)


PAGE = Page("a sweep", [Axis("math", 1), Axis("loss", -1)], 0, 1, [dot("LiNeS", 0.5, 2.0)], "LiNeS")


class Tags(HTMLParser):
    """All tags of a page, as a browser would find them, and the JSON of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.json: dict[str, Any] = {}
        self._id: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id:
            self.json[self._id] = json.loads(data)


def test_is_one_file_that_loads_nothing() -> None:
    """No tag of the page has an address, and its policy allows none."""
    tags = Tags(html_of(PAGE, "show")).tags
    assert not [attrs for _, attrs in tags if {"src", "href"} & attrs.keys()]
    (policy,) = [attrs["content"] for tag, attrs in tags if tag == "meta" and "http-equiv" in attrs]
    assert str(policy).startswith("default-src 'none'; ")
    assert "http" not in str(policy)
    assert sum(tag == "script" for tag, _ in tags) == 4


def test_names_stay_text() -> None:
    """A name that would end the script and begin an image does neither, wherever it stands."""
    hostile = replace(
        PAGE,
        title=HOSTILE,
        notes=[HOSTILE],
        axes=[Axis(HOSTILE, 1), Axis("loss", -1)],
        dots=[Dot(HOSTILE, [1, 2], {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, HOSTILE)],
    )
    plain, found = Tags(html_of(PAGE, "show")), Tags(html_of(hostile, "show"))
    assert [tag for tag, _ in found.tags if tag != "p"] == [
        tag for tag, _ in plain.tags if tag != "p"
    ]
    assert found.json["data"]["dots"][0]["recipe"] == HOSTILE  # to the letter: it is to be copied
    (trace, *_) = found.json["figure"]["data"]
    assert "<img" not in trace["name"] + trace["hovertext"][0]  # plotly reads HTML there
    assert "\u202e" not in trace["hovertext"][0]


def test_long_names_are_cut() -> None:
    """Of a name of a megabyte a line is shown."""
    long = "x" * (1 << 20)
    html = html_of(replace(PAGE, dots=[Dot(long, [1, 2], {long: long}, {}, "r")]), "show")
    assert "x" * 121 not in html


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_not_drawn(value: float | None) -> None:
    """NaN and the infinities, which JSON does not have, are gaps; the rest of the point stays."""
    data = Tags(html_of(replace(PAGE, dots=[dot("LiNeS", 0.5, value)]), "show")).json["data"]
    assert data["dots"][0]["values"] == [0.5, None]


def test_every_point_is_in_the_trace_of_its_way() -> None:
    """Each way is a trace of its own, the one with the front first; the front and a ring follow."""
    dots = [dot("base", 1, 2), dot("LiNeS", 3, 4), dot("base", 5, 6)]
    traces = Tags(html_of(replace(PAGE, dots=dots), "show")).json["figure"]["data"]
    assert [(one["name"], one.get("customdata")) for one in traces] == [
        ("LiNeS", [1]),
        ("base", [0, 2]),
        ("front", None),
        ("chosen", None),
    ]


def test_refuses_no_point_and_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a browser could not show is told before a page is written."""
    with pytest.raises(LinesError, match=r"^\[lines\] DIR: there is no point to show"):
        html_of(replace(PAGE, dots=[]), "DIR")
    with pytest.raises(LinesError, match="found 20,001 points, wanted at most 20,000"):
        html_of(replace(PAGE, dots=[dot("LiNeS", 1, 2)] * 20_001), "DIR")
    monkeypatch.setattr(web, "MOST_CHARACTERS", 10)
    with pytest.raises(LinesError, match="are 20 characters, wanted at most 10 in one page"):
        html_of(PAGE, "DIR")


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plotly one sentence says what brings it."""
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(LinesError, match=re.escape("`pip install 'mergekit-lines[plot]'`")):
        html_of(PAGE, "DIR")
