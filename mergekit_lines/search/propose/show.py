"""What a search came to, for people: tables on stdout, a figure, recipes of what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_line, print_table
from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.propose.results import FLAT, Chosen, Search, best_uniform
from mergekit_lines.search.propose.study import Trial
from mergekit_lines.search.store import BEST, BEST_UNIFORM, CARD, RECIPES, write_recipe
from mergekit_lines.search.telling import (
    four_digits,
    print_records,
    short_names,
    widen,
    write_card,
)

Scores = Mapping[str, tuple[float, ...]]


def show_search(result: Search) -> None:
    """Print a search's trials, its choice, and what stands beside it on both splits."""
    console = open_console()
    numbers = {one.trial.number for one in result.chosen}
    _print_trials(console, "trials, validation; higher is better", result, result.trials, numbers)
    if result.pruned:
        print_line(console, f"{result.pruned} more trials were given up early, by --prune")
        print_line(console, "")
    if result.flat:
        best = {one.trial.number for one in result.flat_chosen}
        title = f"trials of {FLAT.partition(',')[0]} coefficients, validation"
        _print_trials(console, title, result, result.flat, best)
    names = short_names(result.inputs)
    scores = {names[name]: each for name, each in result.input_scores.items()}
    if result.inputs:
        rows = {names[name]: record for name, record in result.inputs.items()}
        print_records(console, "inputs as they are, validation", rows, _columns(result, scores))
    for one in (*result.chosen, *result.flat_chosen):
        _print_chosen(console, result, one)
    if len(result.objectives) == 1:
        _print_verdict(console, result)
    if result.input_test:
        rows = {names[name]: record for name, record in result.input_test.items()}
        print_records(console, "inputs as they are, test", rows)


def _print_trials(
    console: Console,
    title: str,
    result: Search,
    trials: Sequence[Trial],
    chosen: set[int],
) -> None:
    keys = list(trials[0].values)
    table = new_table("trial", *keys, *result.objectives, "")
    for trial in trials:
        values = [str(value) for value in trial.values.values()]
        scores = [four_digits(score) for score in trial.scores]
        mark = "chosen" if trial.number in chosen else ""
        table.add_row(str(trial.number), *values, *scores, mark)
    print_line(console, title)
    print_table(console, table)
    print_line(console, "")


def _columns(result: Search, scores: Scores) -> dict[str, dict[str, float]]:
    """Return the scores of each objective, by name of the row."""
    several = len(result.objectives) > 1
    return {
        (text if several else "objective"): {name: each[goal] for name, each in scores.items()}
        for goal, text in enumerate(result.objectives)
    }


def _print_chosen(console: Console, result: Search, one: Chosen) -> None:
    values = ", ".join(f"{name} {value}" for name, value in one.trial.values.items())
    what = FLAT if FLAT in one.records else "chosen"
    title = f"{what}: trial {one.trial.number}, {values}; validation"
    print_records(console, title, one.records, _columns(result, one.scores))
    for name, end in one.ends.items():
        print_line(console, widen(name, one.trial.values[name], end))
    if one.test:
        print_records(console, f"trial {one.trial.number}, test", one.test)


def _print_verdict(console: Console, result: Search) -> None:
    """Say what depth brought, by the one objective."""
    (one,), rival = result.chosen, best_uniform(result)
    best = one.trial.scores[0]
    print_line(console, "")
    same = one.scores.get(UNIFORM)
    if same is not None:
        brought = four_digits(best - same[0])
        print_line(console, f"depth brought {brought} over the uniform coefficient of equal mean")
    if rival is not None and result.flat:
        verdict = "no better than" if best <= rival[1][0] else "better than"
        print_line(
            console,
            f"LiNeS is {verdict} the best uniform coefficient, of as many trials: "
            f"{four_digits(rival[1][0])}",
        )


def write_choice(result: Search, out: Path) -> list[Path]:
    """Write the recipes of what was chosen, and results for a model card; return the recipes.

    What an earlier run chose goes.

    Raises:
        LinesError: a file cannot be written.
    """
    for name in (BEST, BEST_UNIFORM, CARD):
        out.joinpath(name).unlink(missing_ok=True)
    for pattern in ("trial-*.yml", "uniform-*.yml"):
        for old in out.joinpath(RECIPES).glob(pattern):
            old.unlink()
    if len(result.objectives) > 1:
        out.joinpath(RECIPES).mkdir(exist_ok=True)
        paths = []
        for one in (*result.chosen, *result.flat_chosen):
            kind = "uniform" if FLAT in one.records else "trial"
            paths.append(out / RECIPES / f"{kind}-{one.trial.number}.yml")
            write_recipe(paths[-1], one.recipe, _head(result, one))
        return paths
    (one,) = result.chosen
    paths = [out / BEST]
    write_recipe(paths[0], one.recipe, _head(result, one))
    rival = best_uniform(result)
    if rival is not None and rival[1] > one.trial.scores:
        paths.append(out / BEST_UNIFORM)
        score = f"{rival[1][0]:.6g}"
        write_recipe(
            paths[1],
            rival[0],
            f"# The best uniform coefficient beside a search of {len(result.trials)} trials\n"
            f"# (objective {result.objectives[0]}: {score} on validation data, more than "
            f"LiNeS's).\n",
        )
    if result.tested:
        write_card(out / CARD, one.test[LINES], result.pipeline_tag)
    return paths


def _head(result: Search, one: Chosen) -> str:
    values = ", ".join(f"{name} = {value}" for name, value in one.trial.values.items())
    scores = ", ".join(
        f"{text}: {score:.6g}"
        for text, score in zip(result.objectives, one.trial.scores, strict=True)
    )
    kind = " of uniform coefficients" if FLAT in one.records else ""
    return (
        f"# Trial {one.trial.number} of a search of {len(result.trials)}{kind}: {values}\n"
        f"# ({scores} on validation data).\n"
    )


def draw_search(result: Search, path: Path) -> None:
    """Draw the trials, or of two objectives their front, and which keys mattered.

    Raises:
        LinesError: matplotlib is not there, or the file cannot be made.
    """
    trials: dict[str, Any] = {LINES: _line(result.trials)}
    if result.flat:
        trials[FLAT] = _line(result.flat)
    places = {trial.number: place for place, trial in enumerate(result.trials)}
    chosen = [places[one.trial.number] for one in result.chosen]
    names = short_names(result.inputs)
    baselines: dict[str, tuple[float, ...]] = {}
    baselines |= {names[name]: scores for name, scores in result.input_scores.items()}
    ways = (UNIFORM, UNSCALED) if len(result.chosen) == 1 else (UNSCALED,)
    for way in ways:
        if way in result.chosen[0].scores:
            baselines[way] = result.chosen[0].scores[way]
    with figures.page(path) as figure:
        figures.search_panels(
            figure, result.objectives, trials, chosen, baselines, result.importances
        )


def _line(trials: Sequence[Trial]) -> tuple[list[int], list[tuple[float, ...]]]:
    return [trial.number for trial in trials], [trial.scores for trial in trials]
