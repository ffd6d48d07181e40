"""``mergekit-lines search``: tune any number of keys of a recipe by proposals of Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.cli.options.searching import asked, draw, end, live_models, shared_options
from mergekit_lines.errors import tell


def _range(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not float("-inf") < low < high < float("inf"):
        raise click.BadParameter(f"found {text!r}, wanted LOW:HIGH, e.g. 0:1.5")
    return low, high


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "keys",
    multiple=True,
    required=True,
    metavar="KEY=LOW:HIGH[:log]",
    help="A key under parameters and its range, or KEY=VALUE,VALUE; as often as you like. "
    ":int for whole numbers; blocks=LOW:HIGH[:COUNT] is a coefficient for each block, by COUNT "
    "values over the depth (4); weights=LOW:HIGH each model's weight.",
)
@click.option("--evaluate", multiple=True, required=True, metavar="SPEC", help="Choose by this.")
@click.option("--test", multiple=True, metavar="SPEC", help="Report this of what was chosen.")
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    default=["mean"],
    show_default=True,
    help="As of sweep; two or more give a Pareto front.",
)
@click.option("--target", "targets", multiple=True, help="Of retention: a target metric.")
@click.option("--control", "controls", multiple=True, help="Of retention: a control metric.")
@click.option("--target-weight", type=float, default=2.0, show_default=True, help="Of retention.")
@click.option("--trials", type=click.IntRange(min=1), default=30, show_default=True, help="In all.")
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "cmaes", "nsga2", "random"]),
    help="Of the proposals.  [default: tpe; nsga2 for two or more objectives]",
)
@click.option("--sampler-seed", type=int, default=0, show_default=True, help="Likewise.")
@click.option(
    "--uniform",
    "uniform_range",
    callback=_range,
    metavar="LOW:HIGH",
    help="Search uniform coefficients too, in as many trials: the honest rival.",
)
@click.option(
    "--storage",
    metavar="URL",
    help="A database for the trials, where several machines take part.  [default: in OUT]",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Give trials up that a part of the data puts below most others: each quarter of a "
    "perplexity's, each task of lm_eval, each evaluator.",
)
@click.option("--resume", is_flag=True, help="Only go on: refuse to begin a search anew.")
@shared_options
def search(recipe: Path, keys: tuple[str, ...], out: Path, **options: Any) -> None:
    """Tune any number of keys of a recipe by proposals.

    One model is held on a device. Optuna proposes points, by what was measured before; beside
    the best one the unscaled merge and the uniform coefficient of equal mean are measured, the
    base and the fine-tuned models once. Chooses by --evaluate, reports --test. OUT gets
    results.jsonl and trials.db after every measurement (optuna-dashboard opens it), figure.png
    and best.yml, a recipe for mergekit-yaml, or recipes of the Pareto front. The same command
    again goes on where it was interrupted, with the trials that were being measured, and tries
    again what failed; with more --trials it goes on further. SPEC and objectives are as in
    `mergekit-lines sweep`. Optuna comes with `pip install 'mergekit-lines[search]'`.
    """
    from mergekit_lines.search.propose import show
    from mergekit_lines.search.propose.search import search as run
    from mergekit_lines.search.store import FIGURE

    words = ["evaluate", "test", "objectives", "targets", "controls", "target_weight", "trials"]
    words += ["sampler", "sampler_seed", "storage", "resume", "prune", "uniform_range"]
    result = run(recipe, keys, out=out, **asked(options, *words), **live_models(options))
    show.show_search(result)
    draw(show.draw_search, result, out / FIGURE)
    for path in show.write_choice(result, out):
        tell(f"recipe: {path}")
    end(result.failures, out)
