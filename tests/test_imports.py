"""Who imports whom: the package's files held to the table of CONTRIBUTING.md."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mergekit_lines

PACKAGE = Path(mergekit_lines.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
FOR_ALL = {"errors", "files", "_version"}
HANDS_ON = {"__init__", "_autoload"}  # names only, and only when they are asked for


def table(text: str) -> dict[str, set[str]]:
    """Return the rooms from top to bottom, each with those that it may import from."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    return {room: set(re.findall(r"`(\w+)`", others)) for room, others in rows}


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """Yield every import of ours as (importing module, imported module), those inside too."""
    for file in package.rglob("*.py"):
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("mergekit_lines."):
                for alias in node.names:
                    path = [*str(node.module).split(".")[1:], alias.name]
                    is_module = (package / "/".join(path)).with_suffix(".py").exists()
                    yield module, ".".join(path if is_module or len(path) == 1 else path[:-1])
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("mergekit_lines."):
                        yield module, alias.name.removeprefix("mergekit_lines.")


def offences(package: Path, rooms: dict[str, set[str]]) -> list[str]:
    """Return the imports that the table does not allow."""
    problems = []
    for module, imported in imports(package):
        room, other = module.split(".")[0], imported.split(".")[0]
        allowed = room in HANDS_ON or other == room or other in FOR_ALL | rooms.get(room, set())
        problems += [] if allowed else [f"{module} imports {imported}"]
    return problems


def test_a_room_imports_only_from_rooms_below_it() -> None:
    """Every import stands in the table, and the table reads downwards."""
    rooms = table(CONTRIBUTING.read_text(encoding="utf-8"))
    below = {room: {"_autoload", *list(rooms)[place:]} for place, room in enumerate(rooms, 1)}
    assert [room for room in rooms if not rooms[room] <= below[room]] == []
    assert offences(PACKAGE, rooms) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Also inside a room the imports have an order."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports(PACKAGE):
        if module.split(".")[-1] not in HANDS_ON:
            graph.setdefault(module, set()).add(imported)
    TopologicalSorter(graph).prepare()  # raises where there is one


@pytest.mark.parametrize(
    "line",
    [
        "from mergekit_lines.plan.planned import MergeRun",
        "def late():\n    from mergekit_lines.cli.edit import edit",
        "if TYPE_CHECKING:\n    from mergekit_lines import search",
        "import mergekit_lines.hub.push",
    ],
)
def test_an_arrow_upwards_is_seen(tmp_path: Path, line: str) -> None:
    """A planted import of a higher room is found, inside a function and for a type too."""
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "depth.py").write_text(line, encoding="utf-8")
    assert len(offences(tmp_path, {"lines": set()})) == 1
