"""``mergekit-lines sweep``: tune one or two keys of a recipe by evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.cli.options.searching import asked, draw, end, live_models, shared_options
from mergekit_lines.errors import tell


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "axes",
    multiple=True,
    required=True,
    metavar="KEY=START:STOP:STEP",
    help="A key under parameters and its values, or KEY=VALUE,VALUE; once or twice. Values with "
    "commas in them stand between semicolons: schedule=0.1,0.5;0.2,0.4.",
)
@click.option("--evaluate", multiple=True, required=True, metavar="SPEC", help="Choose by this.")
@click.option("--test", multiple=True, metavar="SPEC", help="Report this of what was chosen.")
@click.option(
    "--objective",
    default="mean",
    show_default=True,
    help="mean, retention, or an expression over the metrics' names.",
)
@click.option("--target", "targets", multiple=True, help="Of retention: a target metric.")
@click.option("--control", "controls", multiple=True, help="Of retention: a control metric.")
@click.option("--target-weight", type=float, default=2.0, show_default=True, help="Of retention.")
@shared_options
def sweep(recipe: Path, axes: tuple[str, ...], out: Path, **options: Any) -> None:
    """Tune one or two keys of a recipe by evaluation.

    One model is held on a device. Measures LiNeS at every point, and beside it the unscaled merge
    and the uniform coefficient of equal mean; the base and the fine-tuned models once. Chooses by
    --evaluate, reports --test. OUT gets results.jsonl after every measurement, figure.png and
    best.yml, a recipe for mergekit-yaml. The same command again goes on where it was interrupted,
    and tries again what failed: a point that cannot be measured ends no search, and is told at the
    end with exit status 1.

    \b
    SPEC is [NAME=]KIND:ARGS[?key=value&…], KIND one of
      perplexity:FILE           of a text file, lower is better
      lm_eval:TASK,TASK         tasks of lm-evaluation-harness
      python:MODULE:FUNCTION    called with model and tokenizer, returns numbers
      rewards:MODULE:FUNCTION   called with prompts and generated texts, returns scores

    \b
    Objectives:
      mean         mean of metrics, each over the fine-tuned model's
      retention    2·M_target + M_control, see --target, --control
      EXPRESSION   e.g. "accuracy - 0.1*log(perplexity)", higher is better
    """  # noqa: D301 - the escape is click's mark, as a character
    from mergekit_lines.search import telling
    from mergekit_lines.search.store import BEST, CARD, FIGURE
    from mergekit_lines.search.sweep import sweep as search

    words = ("evaluate", "test", "objective", "targets", "controls", "target_weight")
    swept = search(recipe, axes, out=out, **asked(options, *words), **live_models(options))
    telling.show_sweep(swept)
    draw(telling.draw_sweep, swept, out / FIGURE)
    if swept.tested:
        telling.write_results(swept, out / CARD)
    tell(f"recipe: {out / BEST}")
    end(swept.failures, out)
