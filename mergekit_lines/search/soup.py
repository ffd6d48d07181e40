"""A rewarded soup: the front between two policies, with LiNeS and without."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_lines.api import merge
from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate import Settings
from mergekit_lines.recipe.settings import tuned_entries, with_settings
from mergekit_lines.search.bench import Bench, labelled, three_ways
from mergekit_lines.search.checks import check_recipes, input_names, make_evaluators, open_recipe
from mergekit_lines.search.measuring.means import LINES, UNIFORM, UNSCALED, Recipe
from mergekit_lines.search.measuring.meters import PoolMaker
from mergekit_lines.search.pareto import Bootstrap, bootstrap
from mergekit_lines.search.store import RECIPES, Record, write_recipe


@dataclass(frozen=True)
class Soup:
    """A measured front between two policies.

    Attributes:
        rewards: names of the two rewards; of both more is better.
        shares: c at every point that was measured all three ways: the first policy's weight, the
            second's being 1 − c.
        fronts: records by way (LiNeS, uniform of equal mean, unscaled), a record per point.
        base: the model before either policy.
        bootstrap: means, errors, Pareto sets and hypervolumes, over resampled prompts.
        failures: what could not be measured, in sentences.
    """

    rewards: tuple[str, str]
    shares: tuple[float, ...]
    fronts: Mapping[str, tuple[Record, ...]]
    base: Record
    bootstrap: Bootstrap
    failures: tuple[str, ...] = ()


def soup(
    recipe: Any,
    rewards: Sequence[str],
    out: str | os.PathLike[str],
    *,
    points: int = 11,
    settings: Settings | None = None,
    samples: int = 1000,
    workers: PoolMaker | None = None,
    **model: Any,
) -> Soup:
    """Measure θ_SFT + λ(ℓ)·(c·τ_1 + (1 − c)·τ_2) for c from 0 to 1, on one live model.

    That is with task_arithmetic; another wrap merges with the weights c and 1 − c. Each c is
    measured three ways, by the same prompts: with the recipe's λ, with λ = 1, and with λ the mean
    of the recipe's over its blocks. Results are in ``out`` after every measurement; called again,
    an interrupted soup goes on. The recipes of LiNeS's Pareto-optimal points are written to
    ``out/recipes``.

    Args:
        recipe: path of a YAML file, or a mapping: ``lines`` with two models besides the base.
        rewards: specs of ``rewards`` evaluators, which give two metrics together.
        out: folder of the results.
        points: number of c, evenly from 0 to 1.
        settings: for evaluators whose specs do not say otherwise.
        samples: bootstrap resamples of the prompts.
        workers: makes the live models that measure side by side; one in this process by default.
        **model: what :class:`~mergekit_lines.LiveModel` takes besides.

    Raises:
        LinesError: the recipe has not two policies, there are not two rewards, or ``out`` holds
            another search.

    Source: arXiv 2410.17146, section 5.4 and figure 4; rewarded soups, arXiv 2306.04488.
    """
    document = open_recipe(recipe)
    _check_policies(document)
    if points < 2 or samples < 1:
        raise LinesError(f"found {points} points and {samples} samples, wanted 2 and 1 or more.")
    shares = tuple(round(number / (points - 1), 12) for number in range(points))
    recipes = [at_share(document, share) for share in shares]
    check_recipes(recipes, [{"c": share} for share in shares])
    evaluators = make_evaluators(settings, "--rewards", rewards, ())
    _check_alike(evaluators["validation"])
    bench_of = Bench(
        recipes[0],
        Path(out),
        evaluators,
        document,
        model,
        3 * points + 1,
        settings=settings,
        workers=workers,
    )
    with bench_of as bench:
        base = bench.measure_input(input_names(document)[0])
        if base.problems:
            raise LinesError(f"the base cannot be measured: {bench.failures[0]}")
        names = _two(base)
        by_share = dict(
            bench.each(
                labelled(share, three_ways(each))
                for share, each in zip(shares, recipes, strict=True)
            )
        )
        ways = {share: by_share[share] for share in shares}
        # Fronts are compared point by point: a c that is missing in one is left out of all.
        kept = {
            share: records
            for share, records in ways.items()
            if len(records) == 3 and all(record.metrics for record in records.values())
        }
        if not kept:
            raise LinesError(f"no point could be measured: {bench.failures[0]}")
        fronts = {
            way: tuple(records[way] for records in kept.values())
            for way in (LINES, UNSCALED, UNIFORM)
        }
        result = Soup(
            rewards=names,
            shares=tuple(kept),
            fronts=fronts,
            base=base,
            bootstrap=bootstrap(
                {way: _scores(records, names) for way, records in fronts.items()}, samples=samples
            ),
            failures=tuple(bench.failures),
        )
        _write_best(result, document, Path(out, RECIPES))
    return result


def _write_best(soup: Soup, document: Recipe, folder: Path) -> None:
    """Write the recipes of LiNeS's Pareto-optimal points, and none of an earlier front's."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("c*.yml"):
        old.unlink()
    for number in soup.bootstrap.fronts[LINES].pareto:
        share = soup.shares[number]
        write_recipe(folder / f"c{share:g}.yml", at_share(document, share))


def at_share(document: Recipe, share: float) -> dict[str, Any]:
    """Return the recipe at c = ``share``: the first policy's weight is c, the second's 1 − c."""
    return with_settings(document, {"weights": [share, round(1 - share, 12)]})


def write(recipe: Any, share: float, out: str | os.PathLike[str], **options: Any) -> Path:
    """Merge one point of a soup into a model, as ``mergekit-yaml`` does.

    Args:
        recipe: as :func:`soup` takes it.
        share: c, from 0 to 1.
        out: folder to make.
        **options: fields of mergekit's ``MergeOptions``.

    Raises:
        LinesError: c is not within 0 and 1, or the merge is refused.
    """
    document = open_recipe(recipe)
    _check_policies(document)
    if not 0 <= share <= 1:
        raise LinesError(f"--write c={share:g}: wanted c from 0 to 1.")
    return merge(at_share(document, share), out, **options)


def _check_policies(document: Recipe) -> None:
    places = tuned_entries(document)
    if document.get("merge_method") != "lines" or len(places) != 2:
        raise LinesError(
            f"recipe: found merge_method {document.get('merge_method')!r} and {len(places)} models "
            f"besides the base under `models`, wanted `lines` and two policies, whose weights "
            f"become c and 1 − c."
        )


def _check_alike(chosen: Sequence[Any]) -> None:
    """See that all rewards score the same texts: one front compares them prompt by prompt."""
    identities = [evaluator.identity() for evaluator in chosen]
    kinds = [str(one["spec"]).partition("?")[0] for one in identities]
    if not all(re.match(r"(?:\w+=)?rewards:", kind) for kind in kinds):
        raise LinesError(f"--rewards: found {', '.join(kinds)}, wanted rewards:MODULE:FUNCTION.")
    for key in ("data", "options"):
        if any(one[key] != identities[0][key] for one in identities[1:]):
            raise LinesError(
                f"--rewards: found other {key} for {' and '.join(kinds)}, wanted the same prompts "
                f"and the same generation for both. Give them by --prompts, --limit, --seed and "
                f"--max-new-tokens."
            )


def _two(record: Record) -> tuple[str, str]:
    names = tuple(record.metrics)
    if len(names) != 2:
        raise LinesError(
            f"--rewards: found the metrics {', '.join(names)}, wanted two: a front has two axes. "
            f"Give two specs such as rewards:module:function."
        )
    lower = [name for name in names if not record.metrics[name].higher_is_better]
    lengths = {name: len(record.metrics[name].examples or ()) for name in names}
    if lower or len(set(lengths.values())) > 1 or min(lengths.values()) < 2:
        raise LinesError(
            f"--rewards: found {lengths} scores, wanted one per prompt of each reward, of two "
            f"prompts or more, and of both more to be better."
        )
    return names[0], names[1]


def _scores(records: Sequence[Record], names: tuple[str, str]) -> np.ndarray[Any, Any]:
    """Return the scores, shape [points, 2, prompts]."""
    return np.array([[record.metrics[name].examples for name in names] for record in records])
