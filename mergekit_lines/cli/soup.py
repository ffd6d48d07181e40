"""``mergekit-lines soup``: the rewarded-soup front between two policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mergekit_lines.cli.options.searching import asked, draw, end, live_models, shared_options

# What a merge of one point takes of the options; the others are of measuring a front.
MERGING = ("device", "num_threads", "trust_remote_code", "copy_tokenizer", "quiet")
_ALWAYS = ("recipe", "out", "share")


def _share(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text.removeprefix("c="))
    except ValueError:
        raise click.BadParameter(f"found {text!r}, wanted c=NUMBER, e.g. c=0.3") from None


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--points", type=click.IntRange(min=2), default=11, show_default=True, help="Of c.")
@click.option("--rewards", multiple=True, metavar="SPEC", help="rewards:MODULE:FUNCTION, twice.")
@click.option(
    "--write",
    "share",
    callback=_share,
    metavar="c=NUMBER",
    help="Measure nothing: merge this point into OUT, with the weights c and 1 - c.",
)
@shared_options
def soup(
    recipe: Path,
    out: Path,
    points: int,
    rewards: tuple[str, ...],
    share: float | None,
    **options: Any,
) -> None:
    """Trace the rewarded-soup front between two policies.

    Their weights are c and 1 - c. RECIPE is `lines` with two models besides the base; the paper's
    setting is alpha 1, beta 1. Every c is measured with LiNeS, unscaled, and uniformly scaled by
    LiNeS's mean coefficient, on the same prompts. OUT gets results.jsonl after every measurement,
    figure.png, and recipes of the Pareto-optimal points. The same command again goes on where it
    was interrupted.
    """
    if (share is None) == (not rewards):
        raise click.UsageError("Wanted --rewards (twice) to trace a front, or --write c=NUMBER.")
    if share is not None:
        _refuse_measuring(click.get_current_context())
    from mergekit_lines.search import soup as search

    if share is not None:
        flags = {name: options[name] for name in MERGING if options[name] is not None}
        search.write(recipe, share, out, **flags)
        return
    from mergekit_lines.search import telling
    from mergekit_lines.search.store import FIGURE

    front = search.soup(
        recipe, rewards, out, points=points, **asked(options), **live_models(options)
    )
    telling.show_soup(front)
    draw(telling.draw_soup, front, out / FIGURE)
    end(front.failures, out)


def _refuse_measuring(ctx: click.Context) -> None:
    """Refuse options that a merge would drop.

    Raises:
        click.UsageError: names them.
    """
    typed = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in (*MERGING, *_ALWAYS)
        and ctx.get_parameter_source(str(parameter.name)) is not ParameterSource.DEFAULT
    ]
    if typed:
        raise click.UsageError(
            f"--write merges one point and measures nothing: found {', '.join(typed)}, which only "
            f"a measured front takes. Leave {'it' if len(typed) == 1 else 'them'} out."
        )
