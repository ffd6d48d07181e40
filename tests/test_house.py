"""The picture of the house shows the package's imports, and its numbers are those of the page."""

from __future__ import annotations

import ast
import importlib
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from tests.readmes import PYTHON, file, section

GRAPH = {
    "cli": {"search", "verify", "plan", "kernels"},
    "search": {"live", "figures"},
    "live": {"plan", "engine"},
    "verify": {"plan", "figures"},
    "plan": {"engine", "kernels"},
    "engine": {"kernels", "checkpoint"},
    "figures": set(),
    "kernels": set(),
    "checkpoint": set(),
}


@pytest.fixture(scope="module")
def house() -> ModuleType:
    """The script, imported as its own folder would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file("examples"))
        return importlib.import_module("house")


@pytest.fixture(scope="module")
def layers(house: ModuleType) -> ModuleType:
    return importlib.import_module("_layers")


def test_imports_are_seen_wherever_they_stand(house: ModuleType) -> None:
    """Imports at the top, for a type and inside a function count; those of others do not."""
    module = """
import torch, mergekit_lines.plan.sizes
from mergekit_lines import api
from mergekit.plan import Planner
if TYPE_CHECKING:
    from mergekit_lines.host.names import METHODS
def merge():
    from mergekit_lines.lines.depth import block_depths
"""
    assert sorted(house.imported(ast.parse(module))) == ["api", "host", "lines", "plan"]


def test_every_arrow_leads_down(layers: ModuleType) -> None:
    """A room stands above all that it imports from; one that needs none, close under its users."""
    floor = layers.floors(layers.reduced(GRAPH))
    assert all(floor[room] > floor[other] for room in GRAPH for other in GRAPH[room])
    assert (floor["figures"], floor["search"], floor["kernels"]) == (2, 4, 0)


def test_the_package_is_a_house(house: ModuleType, layers: ModuleType) -> None:
    """The package's own imports can be drawn: no circle, and each room above those it stands on."""
    graph = house.read()
    floor = layers.floors(layers.reduced(graph))
    assert all(floor[room] > floor[other] for room in graph for other in graph[room])
    assert {"merges", "plan", "kernels"} <= graph.keys()


def test_an_import_that_leads_back_ends_the_drawing(layers: ModuleType) -> None:
    """A circle is named, and nothing is drawn."""
    with pytest.raises(SystemExit, match=r"^a circle: plan -> engine -> plan$"):
        layers.reduced({"cli": {"plan"}, "plan": {"engine"}, "engine": {"plan"}})


def test_arrows_that_follow_from_others_are_left_out(layers: ModuleType) -> None:
    """Of a -> b -> c and a -> c the last is not drawn."""
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert layers.reduced(graph) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}


def test_nothing_stands_on_anything(layers: ModuleType) -> None:
    """Rooms of one floor do not overlap, nor does an arrow that passes meet one of them."""
    graph = layers.reduced(GRAPH)
    floor = layers.floors(graph)
    arrows = layers.paths(graph, floor)
    rows = layers.ordered(floor, arrows)
    x = layers.spread(rows, arrows)
    assert max(map(len, rows)) > 2
    for row in rows:
        for left, right in pairwise(row):
            half = [layers.WIDTH / 2 if isinstance(node, str) else 0 for node in (left, right)]
            assert x[right] - x[left] > sum(half), (left, right)


def test_draws_a_picture(house: ModuleType, tmp_path: Path) -> None:
    """The script's picture is a PNG, the same for the same imports."""
    for name in ("one.png", "two.png"):
        house.draw(tmp_path / name, GRAPH)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_room_without_words_is_refused(
    house: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new room has to be given its words before it is drawn."""
    monkeypatch.delitem(house.ROOMS, "kernels")
    with pytest.raises(SystemExit, match="say in ROOMS what these are for: kernels"):
        house.read()


def test_numbers_are_those_of_the_page(house: ModuleType) -> None:
    """The page tells of the stations in the order of their numbers in the picture."""
    text = section(PYTHON, "For those who read the source")
    stations = re.findall(r"^(\d+)\. `(\w+)` ", text, re.MULTILINE)
    assert stations == [(str(number), room) for number, room in enumerate(house.WAY, 1)]
