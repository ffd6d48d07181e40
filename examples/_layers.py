"""A drawing in floors: who stands on whom, with few crossings, and lines that go round others.

A graph names for each box those below it. What an arrow passes on its way down takes a place of
its own on every floor between, so that it meets no box (the method of Sugiyama and others).
"""

from __future__ import annotations

import random
from itertools import combinations, pairwise
from statistics import fmean

Graph = dict[str, set[str]]
Node = str | tuple[str, str, int]  # a box, or where the arrow between two passes a floor
Rows = list[list[Node]]

WIDTH, HEIGHT, GAP = 2.35, 0.62, 0.3  # of a box, and between two
FLOOR, LANE = 1.3, 0.45  # between two floors; what an arrow that passes a floor has to itself
TRIES, SWEEPS, ROUNDS = 100, 12, 300  # of the orders of boxes, and of moving boxes sideways


def below(graph: Graph, box: str, way: tuple[str, ...] = ()) -> set[str]:
    """Return all that stands under a box; a circle ends the drawing."""
    if box in way:
        raise SystemExit(f"a circle: {' -> '.join((*way[way.index(box) :], box))}")
    return graph[box].union(*(below(graph, other, (*way, box)) for other in graph[box]))


def reduced(graph: Graph) -> Graph:
    """Return the arrows that do not follow from others."""
    return {
        box: others - set().union(*(below(graph, other) for other in others))
        for box, others in graph.items()
    }


def floors(graph: Graph) -> dict[str, int]:
    """Return each box's floor: above what it needs, or close under those that need it."""
    floor: dict[str, int] = {}

    def height(box: str) -> int:
        if box not in floor:
            floor[box] = max((height(other) + 1 for other in graph[box]), default=0)
        return floor[box]

    for box in graph:
        height(box)
    for box in graph:
        above = [floor[other] for other, others in graph.items() if box in others]
        if above and not graph[box]:
            floor[box] = min(above) - 1
    return floor


def paths(graph: Graph, floor: dict[str, int]) -> list[list[Node]]:
    """Return each arrow as the nodes it goes through, from top to bottom, one per floor."""
    return [
        [box, *((box, other, level) for level in range(floor[box] - 1, floor[other], -1)), other]
        for box, others in graph.items()
        for other in sorted(others)
    ]


def crossings(rows: Rows, steps: list[tuple[Node, Node]]) -> int:
    """Count the pairs of arrows that cross between two floors."""
    place = {node: at for row in rows for at, node in enumerate(row)}
    floor = {node: level for level, row in enumerate(rows) for node in row}
    return sum(
        floor[a] == floor[c] and (place[a] - place[c]) * (place[b] - place[d]) < 0
        for (a, b), (c, d) in combinations(steps, 2)
    )


def ordered(floor: dict[str, int], arrows: list[list[Node]]) -> Rows:
    """Return each floor's nodes from left to right, with as few crossings as many tries reach."""
    steps = [step for arrow in arrows for step in pairwise(arrow)]
    passing = {node: node[2] for arrow in arrows for node in arrow if isinstance(node, tuple)}
    levels: dict[Node, int] = {**floor, **passing}
    near = {node: [a if b == node else b for a, b in steps if node in (a, b)] for node in levels}
    dice = random.Random(0)
    tries = []
    for _ in range(TRIES):
        rows: Rows = [[] for _ in range(max(levels.values()) + 1)]
        for node in dice.sample(sorted(levels, key=str), len(levels)):
            rows[levels[node]].append(node)
        for _ in range(SWEEPS):
            for row in (*rows, *reversed(rows)):
                at = {node: place / len(each) for each in rows for place, node in enumerate(each)}
                row.sort(key=lambda node, at=at: fmean(at[other] for other in near[node]))
        tries.append(rows)
    return min(tries, key=lambda rows: crossings(rows, steps))


def spread(rows: Rows, arrows: list[list[Node]]) -> dict[Node, float]:
    """Return where each node stands from left to right: near its neighbours, none over another."""
    pulls: dict[Node, list[tuple[Node, int]]] = {node: [] for row in rows for node in row}
    for one, other in (step for arrow in arrows for step in pairwise(arrow)):
        # What only passes is drawn straight where it can be.
        weight = (1, 2, 8)[isinstance(one, tuple) + isinstance(other, tuple)]
        pulls[one].append((other, weight))
        pulls[other].append((one, weight))
    width = {node: WIDTH if isinstance(node, str) else LANE for node in pulls}
    x = dict.fromkeys(pulls, 0.0)
    for _ in range(ROUNDS):
        for row in rows:
            at = [
                x[node] / 2
                + sum(x[other] * weight for other, weight in pulls[node])
                / (2 * sum(weight for _, weight in pulls[node]))
                for node in row
            ]
            for _ in range(ROUNDS // 5):
                for left in range(len(row) - 1):
                    least = (width[row[left]] + width[row[left + 1]]) / 2 + GAP
                    push = max(0.0, least - (at[left + 1] - at[left])) / 2
                    at[left] -= push
                    at[left + 1] += push
            x.update(zip(row, at, strict=True))
    return x


def ends(arrows: list[list[Node]], x: dict[Node, float]) -> list[tuple[float, float]]:
    """Return where each arrow leaves its box and reaches the other, from the middle."""
    offsets = [[0.0, 0.0] for _ in arrows]
    for end, nearest in ((0, 1), (-1, -2)):
        for box in {arrow[end] for arrow in arrows}:
            here = [number for number, arrow in enumerate(arrows) if arrow[end] == box]
            here.sort(key=lambda number: x[arrows[number][nearest]])
            for place, number in enumerate(here):
                offsets[number][end] = (place - (len(here) - 1) / 2) * WIDTH / (len(here) + 1)
    return [(start, stop) for start, stop in offsets]
