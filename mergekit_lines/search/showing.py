"""The results of a search as a page to look at: what each point is, its scores and its recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.bounded import RECIPE_BYTES, parse_yaml, read_text
from mergekit_lines.errors import LinesError, some
from mergekit_lines.evaluate import Metric
from mergekit_lines.figures.web import Axis, Dot, Page, check_plotly, html_of
from mergekit_lines.search.judge import Judge
from mergekit_lines.search.measuring.means import (
    LINES,
    UNIFORM,
    UNSCALED,
    of_equal_mean,
    uniform,
    unscaled,
)
from mergekit_lines.search.objective import MEAN, parse_objective
from mergekit_lines.search.store import (
    BEST,
    BEST_UNIFORM,
    GREEDY,
    RECIPES,
    Record,
    read_results,
    recipe_text,
    record_key,
    write_output,
)

PAGE = "show.html"
INPUT = "models as they are"
SEARCHED = "uniform, searched"  # as propose/results.py has it
MOST_SCORES, MOST_SETTINGS = 16, 48  # axes that can be chosen
VALIDATION, TEST = "validation", "test"


def show(folder: Path, out: Path, objectives: Sequence[str] = ()) -> int:
    """Write a page of what a sweep, a search, a soup or a greedy soup measured.

    Args:
        folder: the ``--out`` of the search.
        out: the page.
        objectives: expressions to score the points by, besides their metrics; ``mean`` where
            the fine-tuned models were measured and it has a value.

    Returns:
        The number of points on the page.

    Raises:
        LinesError: the folder holds no results, plotly is not there, an objective has no value
            anywhere, or the page cannot be written.
    """
    check_plotly(f"show {folder}")
    page = page_of(folder, objectives)
    write_output(out, html_of(page, str(folder)))
    return len(page.dots)


def page_of(folder: Path, objectives: Sequence[str] = ()) -> Page:
    """Return what the page shows.

    Raises:
        LinesError: as :func:`show` says.
    """
    identity, records = read_results(folder)
    validation = [one for one in records if one.split == VALIDATION]
    measured = [one for one in validation if not (one.problems or one.pruned)]
    if not measured:
        raise LinesError(f"{folder}: found no measured point in its results, nothing to show.")
    ways = _ways(folder, measured)
    aims = _objectives(folder, identity, measured, ways, objectives)
    scores = {**aims, **_metrics(measured), **aims}  # a metric that is an objective is one axis
    leaves = [_leaves(one.recipe) if one.mean is not None else {} for one in measured]
    varied = _varied(leaves, ways)
    tests = {record_key("", one.recipe): one for one in records if one.split == TEST}
    chosen = _chosen(folder)
    numeric = [key for key in varied if any(_is_number(each.get(key)) for each in leaves)]
    axes = [*(Axis(name, direction) for name, (direction, _) in scores.items())]
    axes += [Axis(_short(key)) for key in numeric] + [Axis("mean coefficient"), Axis("order")]
    dots = []
    for n, one in enumerate(measured):
        values = [column[n] for _, column in scores.values()]
        values += [leaves[n][key] if _is_number(leaves[n].get(key)) else None for key in numeric]
        key = record_key("", one.recipe)
        dots.append(
            Dot(
                way=ways[n],
                values=[*values, one.mean, float(n + 1)],
                settings=_settings(one, leaves[n], varied),
                scores=_words({name: c[n] for name, (_, c) in scores.items()}, one, tests.get(key)),
                recipe=recipe_text(one.recipe) if one.mean is not None else _model(one),
                chosen=key in chosen,
            )
        )
    across, up = _first_axes(list(scores), len(aims), len(numeric))
    notes = _notes(ways, validation)
    return Page(
        f"{folder.absolute().name}: {len(dots)} points", axes, across, up, dots, LINES, notes
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _model(record: Record) -> str:
    return f"# no recipe: the model {json.dumps(str(record.recipe.get('model')))} as it is\n"


def _ways(folder: Path, measured: Sequence[Record]) -> list[str]:
    """Say of every record what it is: what stands beside a point is measured after it."""
    beside: dict[str, str] = {}
    searched = any((folder / name).exists() for name in ("trials.db", ".owner"))
    ways = []
    for one in measured:
        key = record_key("", one.recipe)
        if one.mean is None:
            ways.append(INPUT)
            continue
        try:
            plain, flat = unscaled(one.recipe), of_equal_mean(one.recipe, one.mean)
            alpha: Any = (one.recipe.get("parameters") or {}).get("alpha")
            is_flat = one.recipe == uniform(one.recipe, alpha)
        except (TypeError, ValueError, AttributeError):
            raise LinesError(
                f"{folder}: found a result whose recipe is none: {some(list(one.recipe))}. Take "
                f"its line out of the results."
            ) from None
        if key in beside:
            ways.append(beside[key])
        elif searched and LINES in ways and is_flat:
            ways.append(SEARCHED)
        else:
            ways.append(LINES)
            beside.setdefault(record_key("", plain), UNSCALED)
            beside.setdefault(record_key("", flat), UNIFORM)
    return ways


def _metrics(measured: Sequence[Record]) -> dict[str, tuple[int, list[float | None]]]:
    """Return the metrics as columns, each with its direction."""
    first: dict[str, Metric] = {}
    for one in measured:
        for name, metric in one.metrics.items():
            first.setdefault(name, metric)
    return {
        name: (
            1 if metric.higher_is_better else -1,
            [one.metrics[name].value if name in one.metrics else None for one in measured],
        )
        for name, metric in list(first.items())[:MOST_SCORES]
    }


def _objectives(
    folder: Path,
    identity: Mapping[str, Any],
    measured: Sequence[Record],
    ways: Sequence[str],
    texts: Sequence[str],
) -> dict[str, tuple[int, list[float | None]]]:
    """Return the objectives as columns; ``mean`` unasked only where it says something new."""
    recipe = identity.get("the recipe")
    base = str(recipe.get("base_model")) if isinstance(recipe, dict) else ""
    inputs = {
        str(one.recipe.get("model")): one
        for one, way in zip(measured, ways, strict=True)
        if way == INPUT
    }
    inputs = dict(sorted(inputs.items(), key=lambda item: item[0] != base))
    columns = {}
    by_number = {str(number): one for number, one in enumerate(measured)}
    several = len({name for one in measured for name in one.metrics}) > 1
    for text in texts or ([MEAN] if len(inputs) > 1 and several else []):
        failures: list[str] = []
        scores: dict[str, float] = {}
        try:
            scores = Judge(parse_objective(text), inputs, failures).scores(by_number)
        except LinesError:
            if texts:
                raise
        if texts and not scores:
            first = failures[0] if failures else "nothing was measured"
            raise LinesError(f"{folder}: --objective {text} has no value anywhere: {first}")
        if scores:
            columns[text] = (1, [scores.get(number) for number in by_number])
    return columns


def _leaves(part: Any, path: str = "") -> dict[str, Any]:
    """Return a recipe's values by their paths; a list of plain values is one."""
    if isinstance(part, Mapping):
        items: Iterable[tuple[Any, Any]] = part.items()
    elif isinstance(part, list) and any(isinstance(one, (dict, list)) for one in part):
        items = enumerate(part)
    else:
        return {path: part}
    return {
        key: value
        for name, inner in items
        for key, value in _leaves(inner, f"{path}.{name}" if path else str(name)).items()
    }


def _varied(leaves: Sequence[Mapping[str, Any]], ways: Sequence[str]) -> list[str]:
    """Return the keys in which points differ: those of the search, then those beside it."""
    keys: dict[str, None] = {}
    for wanted in ((LINES,), (LINES, UNIFORM, UNSCALED, SEARCHED)):
        seen: dict[str, set[str]] = {}
        chosen = [each for each, way in zip(leaves, ways, strict=True) if way in wanted]
        for each in chosen:
            for key, value in each.items():
                seen.setdefault(key, set()).add(json.dumps(value))
        count = {key: sum(key in each for each in chosen) for key in seen}
        for key, values in seen.items():
            if len(values) > 1 or count[key] < len(chosen):
                keys.setdefault(key)
    return list(keys)[:MOST_SETTINGS]


def _settings(record: Record, leaves: Mapping[str, Any], varied: Sequence[str]) -> dict[str, str]:
    if record.mean is None:
        return {"model": str(record.recipe.get("model"))}
    words = {_short(key): _value(leaves[key]) for key in varied if key in leaves}
    return {**words, "mean coefficient": _value(record.mean)}


def _short(key: str) -> str:
    """Return a key as ``--set`` takes it."""
    return key.removeprefix("parameters.")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(
    values: Mapping[str, float | None], record: Record, tested: Record | None
) -> dict[str, str]:
    """Return the scores in words: with standard errors, and those on test data behind."""
    words = {}
    for name, value in values.items():
        if value is not None:
            words[name] = _with_error(value, record.metrics.get(name))
    for name, metric in list(tested.metrics.items())[:MOST_SCORES] if tested else ():
        words[f"{name}, on test data"] = _with_error(metric.value, metric)
    return words


def _with_error(value: float, metric: Metric | None) -> str:
    error = metric.error if metric is not None else None
    return f"{value:.6g}" + (f" ± {error:.2g}" if error is not None else "")


def _chosen(folder: Path) -> set[str]:
    """Return the keys of the recipes that the search wrote as its choice."""
    paths = [folder / name for name in (BEST, BEST_UNIFORM, GREEDY)]
    paths += sorted((folder / RECIPES).glob("*.yml"))[:1000]
    return set(_keys(path for path in paths if path.is_file()))


def _keys(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            recipe = parse_yaml(read_text(path, RECIPE_BYTES))
            yield record_key("", recipe)
        except (OSError, ValueError, TypeError):  # an edited one is no point's any more
            continue


def _first_axes(scores: Sequence[str], objectives: int, settings: int) -> tuple[int, int]:
    """Return what is drawn at first, across and up: two scores, or one over a setting.

    Two objectives, or two metrics, say what one costs the other.
    """
    if len(scores) - objectives > 1:
        return (0, 1) if objectives > 1 else (objectives, objectives + 1)
    return (len(scores), 0) if settings else (len(scores) + 1, 0)


def _notes(ways: Sequence[str], records: Sequence[Record]) -> tuple[str, ...]:
    counts = {way: list(ways).count(way) for way in dict.fromkeys(ways)}
    told = "; ".join(f"{way}: {count}" for way, count in counts.items())
    notes = [f"Points by their scores on validation data. {told}."]
    if pruned := sum(one.pruned for one in records):
        notes.append(f"Pruned after a part of the data: {pruned}.")
    if failed := sum(bool(one.problems) for one in records):
        notes.append(f"Could not be measured: {failed}.")
    return tuple(notes)
