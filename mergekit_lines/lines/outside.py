"""What stands in numbered lists and counts as no block: a depth that was not seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from mergekit_lines.errors import LinesError, Problem, some
from mergekit_lines.lines.depth import BLOCK_MODULES, BlockDepth, block_depths, natural_key

NO_BLOCKS = (
    "no residual blocks found in the tensor names: every tensor gets the coefficient for outside, "
    "and beta has no effect"
)


def lists_outside(
    depths: Mapping[str, BlockDepth | None], sizes: Mapping[str, int], modules: int = 0
) -> dict[str, int]:
    """Return the sizes of the numbered lists whose tensors are outside the blocks, by name.

    A list has two items at least: ``0.model`` only wraps one.

    Args:
        depths: of all output tensors.
        sizes: entries of each.
        modules: that an item of a list has at least, on average: fewer make no block.
    """
    items: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in depths:
        for place, item in _numbers(name):
            items[place][item].add(name.rpartition(".")[0])
    lists: dict[str, int] = defaultdict(int)
    for name, depth in depths.items():
        places = [
            place
            for place, _ in _numbers(name)
            if len(items[place]) > 1
            and sum(map(len, items[place].values())) >= modules * len(items[place])
        ]
        if depth is None and places:
            lists[places[0]] += sizes[name]
    return dict(lists)


def mostly_outside(
    depths: Mapping[str, BlockDepth | None], sizes: Mapping[str, int]
) -> Problem | None:
    """Return that most of what stands in numbered lists is no block, or None.

    Embeddings and heads, which may be larger than all blocks, stand in no list; of a model that
    has blocks, lists of projectors and convolutions are none.

    Args:
        depths: of all output tensors, where the recipe does not say which blocks count.
        sizes: entries of each.
    """
    containers = {depth.container for depth in depths.values() if depth}
    lists = lists_outside(depths, sizes, BLOCK_MODULES if containers else 0)
    inside = sum(sizes[name] for name, depth in depths.items() if depth)
    outside = sum(lists.values())
    if outside <= inside:
        return None
    share = round(100 * outside / (inside + outside))
    largest = sorted(lists, key=lambda place: (-lists[place], natural_key(place)))
    return Problem(
        "parameters.blocks",
        f"found nothing, and {share}% of what stands in numbered lists is in no block that the "
        f"names show (blocks: {some(containers) or 'none'}; outside: {some(largest[:3])}), so "
        f"that it would get one coefficient whatever its depth. Name the lists that count, e.g. "
        f"`blocks: {largest[0]}`.",
        about=("blocks",),
    )


def checked_depths(
    sizes: Mapping[str, int], blocks: str | None, num_blocks: int | None
) -> dict[str, BlockDepth | None]:
    """Return the depth of every tensor of a model.

    Args:
        sizes: entries of all tensors, by name.
        blocks: the recipe's word: containers that count, comma-separated; None for all.
        num_blocks: the recipe's word.

    Raises:
        LinesError: the names do not fit the words, or most of what stands in lists is in no block.
    """
    chosen = blocks.split(",") if blocks else None
    depths = block_depths(sizes, blocks=chosen, num_blocks=num_blocks)
    problem = mostly_outside(depths, sizes) if chosen is None else None
    if problem:
        raise LinesError(problem)
    return depths


def described(depths: Mapping[str, BlockDepth | None]) -> Iterator[str]:
    """Yield what is told of a model's blocks, and of what lies outside them."""
    counts = {depth.container: depth.count for depth in depths.values() if depth}
    for name in sorted(counts, key=natural_key):
        yield f"{name}: {counts[name]} blocks"
    outside = sum(depth is None for depth in depths.values())
    if not counts:
        yield NO_BLOCKS
    elif outside:
        yield f"outside: {outside} of {len(depths)} tensors, which get the coefficient for outside"


def _numbers(name: str) -> list[tuple[str, str]]:
    """Return every numbered list that a tensor stands in, the outermost first, with its item."""
    parts = name.split(".")
    return [
        (".".join(parts[:place]), part)
        for place, part in enumerate(parts)
        if place and part.isdecimal()
    ]
