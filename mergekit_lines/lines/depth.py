"""Depth of every tensor: which residual block it stands in, told from all names together.

LiNeS (arXiv 2410.17146, Eq. 1) gives block l of L the coefficient alpha + beta * (l-1)/(L-1);
l and L come from here. No architecture is known by name; the shape of the names decides, and
their words alone where lists side by side run one after another (``SERIES``):

* a container is the outermost numbered list that holds most tensors of its tower;
* lists of bare layers (``mlp.0``, ``conv_layers``) give way to lists of whole blocks;
* a list of stages is a list whose items each hold one inner list of like, whole blocks with
  less beside it than one such block has. (An MoE block has more beside its experts than one
  expert has; the sublayers of a T5 block are unlike one another.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from mergekit_lines.errors import LinesError, nearest, some

Path = tuple[str, ...]
Items = dict[int, list[Path]]  # index -> tensor names below that item

# A block has at least two weights and two norms; a conv layer, an expert or a projector has fewer.
BLOCK_MODULES = 4
# No leading zero, else layers.1 and layers.01 were one block; no list has 10**9 items.
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
# Lists beside one another through which the residual stream goes in this order: one without a
# number below it is one block. Diffusers' and the original names of Flux, SD3's like and U-Nets.
SERIES = (
    ("double_blocks", "single_blocks"),
    ("transformer_blocks", "single_transformer_blocks"),
    ("down_blocks", "mid_block", "up_blocks"),
    ("input_blocks", "middle_block", "output_blocks"),
)
_NUMBERED = re.compile(r"(.*[^0-9])(0|[1-9][0-9]?)", re.DOTALL)
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class BlockDepth:
    """Place of a tensor in the residual blocks of its container."""

    # Dotted name of the numbered list; in staged models that of the stages; of lists that run
    # one after another all of them: ``double_blocks → single_blocks``.
    container: str
    index: int  # 0-based; across all stages, and across lists that run one after another
    count: int  # blocks of the container, or of all lists of its series


@dataclass
class _Container:
    path: Path
    index: dict[Path, int] = field(default_factory=dict)  # tensor -> block
    count: int = 0
    gaps: list[str] = field(default_factory=list)  # problems, kept until the container is chosen


def block_depths(
    names: Iterable[str],
    *,
    blocks: Sequence[str] | None = None,
    num_blocks: int | None = None,
) -> dict[str, BlockDepth | None]:
    """Map each tensor name to its block, or to None where it is outside the blocks.

    Args:
        names: all output tensor names, in any order.
        blocks: containers that count, each by its full name or its trailing dotted components;
            a numbered list that is no container of itself must be named in full. Default: all.
        num_blocks: blocks per container when `names` are only some of the model's tensors.

    Raises:
        LinesError: indices missing from a container, an index past `num_blocks`, or a choice
            in `blocks` that is malformed, unknown, ambiguous or overlapping.
    """
    if num_blocks is not None and (type(num_blocks) is not int or num_blocks < 1):
        raise LinesError(f"num_blocks must be a whole number of at least 1, not {num_blocks!r}.")
    paths = _paths(names)
    lists = _lists(paths.values(), nested=True)
    series = list(_series(paths.values(), lists))
    candidates = [
        _container(path, lists[path]) if path in lists else _one_block(path, paths.values())
        for path in _find(paths, lists, series, num_blocks is None)
    ]
    problems: list[str] = []
    at: dict[Path, BlockDepth] = {}
    chosen = candidates if blocks is None else _choose(blocks, candidates, lists)
    for container, name, start, end in _connected(chosen, series):
        count = num_blocks or end
        problems += container.gaps if num_blocks is None else []
        last = start + container.count - 1
        if last >= count:
            problems.append(
                f"num_blocks is {count}, but {name!r} has a block of index {last}: "
                "give the number of blocks of the whole model."
            )
        at |= {path: BlockDepth(name, start + i, count) for path, i in container.index.items()}
    if problems:
        raise LinesError(problems)
    return {name: at.get(path) for name, path in paths.items()}


def containers(depths: Mapping[str, BlockDepth | None]) -> dict[str, int]:
    """Map each container's name to its number of blocks, in natural order."""
    counts = {depth.container: depth.count for depth in depths.values() if depth}
    return {name: counts[name] for name in sorted(counts, key=natural_key)}


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that compares runs of digits as numbers: ``h.2`` before ``h.10``."""
    parts = []
    for position, text in enumerate(_DIGITS.split(name)):
        number = text.lstrip("0") or "0"
        # By length, then by digits: int() refuses numbers of more than 4300 digits.
        parts.append((len(number), number) if position % 2 else (0, text))
    return (*parts, (0, name))


def _paths(names: Iterable[str]) -> dict[str, Path]:
    """Split names at dots, and ``layer1.0`` … ``layer4.2`` (ResNet) into a list of stages."""
    texts = [] if isinstance(names, str) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in texts):
        raise LinesError("names: found something else, wanted the names of all tensors, as texts.")
    paths = {name: tuple(name.split(".")) for name in texts}
    pure: dict[tuple[Path, str], dict[int, bool]] = {}
    for path in paths.values():
        for i, part in enumerate(path):
            if _INDEX.fullmatch(part):
                break
            if split := _NUMBERED.fullmatch(part):
                numbers = pure.setdefault((path[:i], split[1]), {})
                is_list = i + 2 < len(path) and bool(_INDEX.fullmatch(path[i + 1]))
                numbers[int(split[2])] = is_list and numbers.get(int(split[2]), True)
    for (parent, stem), numbers in pure.items():
        first, last = min(numbers), max(numbers)
        taken = any(path[: len(parent) + 1] == (*parent, stem) for path in paths.values())
        if first == last or last - first >= len(numbers) or taken or not all(numbers.values()):
            continue
        for name, path in paths.items():
            tail = path[len(parent) :]
            split = _NUMBERED.fullmatch(tail[0]) if path[: len(parent)] == parent and tail else None
            if split and split[1] == stem:
                paths[name] = (*parent, stem, str(int(split[2]) - first), *tail[1:])
    return paths


def _lists(paths: Iterable[Path], *, nested: bool) -> dict[Path, Items]:
    """Collect the numbered lists; without `nested` only those in no other list."""
    lists: dict[Path, Items] = {}
    for path in paths:
        for i, part in enumerate(path):
            if _INDEX.fullmatch(part):
                lists.setdefault(path[:i], {}).setdefault(int(part), []).append(path[i + 1 :])
                if not nested:
                    break
    return lists


def _series(paths: Collection[Path], lists: Mapping[Path, Items]) -> Iterator[list[Path]]:
    """Yield the lists, and single blocks, that run one after another, in their order."""
    for first in lists:
        for words in SERIES:
            if first[-1:] != words[:1] or any(map(_INDEX.fullmatch, first)):
                continue
            parts = [(*first[:-1], word) for word in words]
            ends = [lists[part] for part in (parts[0], parts[-1]) if part in lists]
            if len(ends) == 2 and all(_modules(end.values()) >= BLOCK_MODULES for end in ends):
                held = {path[: len(first)] for path in paths}
                yield [part for part in parts if part in held]


def _one_block(path: Path, paths: Iterable[Path]) -> _Container:
    below = [tensor for tensor in paths if tensor[: len(path)] == path]
    return _Container(path, dict.fromkeys(below, 0), 1)


def _connected(
    chosen: Sequence[_Container], series: Iterable[Sequence[Path]]
) -> Iterator[tuple[_Container, str, int, int]]:
    """Yield every container, its series' name, the blocks before it, and all of the series."""
    alone = {container.path: container for container in chosen}
    for parts in series:
        members = [alone.pop(part) for part in parts if part in alone]
        words = [member.path[-1] for member in members]
        name = ".".join([*parts[0][:-1], " → ".join(words)])
        start, end = 0, sum(member.count for member in members)
        for member in members:
            yield member, name, start, end
            start += member.count
    for container in alone.values():
        yield container, ".".join(container.path), 0, container.count


def _find(
    paths: Mapping[str, Path],
    lists: Mapping[Path, Items],
    series: Iterable[Iterable[Path]],
    complete: bool,
) -> list[Path]:
    """Return the containers: the list that holds most of its tower, for each tower."""
    members = {part for parts in series for part in parts}

    def below_member(path: Path) -> bool:
        return any(path[: len(member)] == member for member in members)

    outer = [path for path in lists if not any(map(_INDEX.fullmatch, path))]
    outer = [path for path in outer if not below_member(path)]
    outer = [path for path in outer if any(len(t) > 1 for ts in lists[path].values() for t in ts)]
    whole = [path for path in outer if _modules(lists[path].values()) >= BLOCK_MODULES]
    # Without whole blocks the names are of a toy or of a part of a model.
    if not whole and not members:
        outer = [path for path in outer if not complete or _alike(lists[path].values()) == 1]
    else:
        outer = whole
    outermost = list(members)
    free = {path for path in paths.values() if not below_member(path)}
    # Deepest parent first: a tower inside another (LLaVA's model.vision_tower) is not counted
    # against the outer one.
    parents = {path[:-1] for path in outer}
    for parent in sorted(parents, key=lambda parent: (-len(parent), parent)):
        tower = {path for path in free if path[: len(parent)] == parent}
        for path in [path for path in outer if path[:-1] == parent]:
            if 2 * sum(map(len, lists[path].values())) > len(tower):
                outermost.append(_unwrap(path, lists))
                free -= tower
    return sorted(outermost, key=lambda path: natural_key(".".join(path)))


def _unwrap(path: Path, lists: Mapping[Path, Items]) -> Path:
    """Step into a list of one item that only wraps a list of blocks (``0.model.layers``)."""
    while len(lists[path]) == 1 and (inner := _inner(lists[path])) is not None:
        within = (*path, *map(str, lists[path]), *inner)
        if len(lists[within]) == 1:
            break
        path = within
    return path


def _inner(items: Items) -> Path | None:
    """Return where each stage keeps its blocks, or None where the items are no stages."""
    stages = [_lists(tensors, nested=False) for tensors in items.values()]
    shared = set.intersection(*(set(stage) for stage in stages))
    if not shared:
        return None
    inner = max(shared, key=lambda r: (sum(len(t) for s in stages for t in s[r].values()), r))
    size = _modules([tensors for stage in stages for tensors in stage[inner].values()])
    beside = [len({t[:-1] for t in tensors if not _below(t, inner)}) for tensors in items.values()]
    if size < BLOCK_MODULES or max(beside) >= size:
        return None
    # Self- and cross-attention of a T5-like block may be alike: two of its three sublayers.
    return inner if all(3 * _alike(stage[inner].values()) > 2 for stage in stages) else None


def _below(tensor: Path, inner: Path) -> bool:
    at = len(inner)
    return len(tensor) > at and tensor[:at] == inner and bool(_INDEX.fullmatch(tensor[at]))


def _modules(items: Iterable[Iterable[Path]]) -> float:
    """Mean number of modules that own tensors, per item."""
    counts = [len({tensor[:-1] for tensor in tensors}) for tensors in items]
    return sum(counts) / len(counts)


def _alike(items: Iterable[Iterable[Path]]) -> float:
    """Share of the items that have half their modules in common with another item."""
    kinds = Counter(
        frozenset(tuple(_DIGITS.sub("#", part) for part in tensor[:-1]) for tensor in tensors)
        for tensors in items
    )
    number = sum(kinds.values())
    like = {
        a: n > 1 or any(a != b and 2 * len(a & b) >= len(a | b) for b in kinds)
        for a, n in kinds.items()
    }
    return sum(n for a, n in kinds.items() if like[a]) / number if number > 1 else 1.0


def _container(path: Path, items: Items) -> _Container:
    """Number the blocks of a list, through its stages where it has some."""
    container = _Container(path)
    inner = _inner(items) if len(items) > 1 else None
    container.gaps += _gap(path, items)
    if inner is None:
        container.count = max(items) + 1
        container.index = {(*path, str(i), *t): i for i, ts in items.items() for t in ts}
        return container
    # What stands beside the blocks and is lacking in the last stage only closes a stage (Swin's
    # downsample); all else opens it (ConvNeXt's). Either way it goes with the next block.
    first, last = min(items), max(items)
    lacking_last = {t[0] for t in items[first]} - {t[0] for t in items[last]}
    for stage in sorted(items):
        start = container.count
        blocks = _lists(items[stage], nested=False)[inner]
        container.gaps += _gap((*path, str(stage), *inner), blocks)
        container.count += max(blocks) + 1
        for tensor in items[stage]:
            if _below(tensor, inner):
                index = start + int(tensor[len(inner)])
            else:
                index = container.count if tensor[0] in lacking_last else start
            name = (*path, str(stage), *tensor)
            container.index[name] = index
    return container


def _gap(path: Path, items: Items) -> list[str]:
    number = max(items) + 1 - len(items)
    if not number:
        return []
    missing = ", ".join(map(str, islice((i for i in range(max(items)) if i not in items), 5)))
    missing += f" and {number - 5} more" if number > 5 else ""
    return [
        f"The blocks of {'.'.join(path)!r} run to index {max(items)}, but no tensor name has index "
        f"{missing}. Give all tensor names of the model, or num_blocks if some are not at hand."
    ]


def _choose(
    blocks: Sequence[str], candidates: list[_Container], lists: Mapping[Path, Items]
) -> list[_Container]:
    if isinstance(blocks, str) or not blocks:
        raise LinesError(f"blocks must be a list of container names, not {blocks!r}.")
    names = {".".join(container.path): container for container in candidates}
    listing = f"Containers found: {some(names) or 'none'}."
    chosen: list[_Container] = []
    for entry in blocks:
        if not isinstance(entry, str) or not entry.strip():
            raise LinesError(f"blocks: {entry!r} is not a container name. {listing}")
        ends = [name for name in names if name == entry or name.endswith(f".{entry}")]
        path = tuple(entry.split("."))
        if len(ends) > 1 and entry not in names:
            raise LinesError(f"blocks: {entry!r} fits {some(ends)}; write more of it. {listing}")
        if ends:
            container = names[entry if entry in names else ends[0]]
        elif path in lists:
            container = _container(path, lists[path])
        else:
            raise LinesError(f"blocks: no container is {entry!r}.{nearest(entry, names)} {listing}")
        for other in chosen:
            if other.index.keys() & container.index.keys():
                both = f"{'.'.join(other.path)!r} and {'.'.join(container.path)!r}"
                raise LinesError(f"blocks: {both} overlap; choose one. {listing}")
        chosen.append(container)
    return chosen
