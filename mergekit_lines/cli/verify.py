"""``mergekit-lines verify``: recompute a merged model's tensors in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.errors import LinesError, visible_json


def _moved(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    places = {}
    for value in values:
        name, equals, place = value.rpartition("=")
        if not (name and equals and place):
            raise click.BadParameter(f"found {value!r}, wanted NAME=PATH")
        places[name] = place
    return places


@click.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Recompute every tensor.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Recompute N tensors, blocks at both ends and tensors outside among them.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Choose another sample.")
@click.option(
    "--strict",
    is_flag=True,
    help="Recompute every tensor, and hash whole input files where the report knows their "
    "content's digest (those of the Hub; of others it knows the headers').",
)
@click.option(
    "--model",
    "moved",
    multiple=True,
    callback=_moved,
    metavar="NAME=PATH",
    help="Find the recipe's model NAME in PATH; may be given more than once.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def verify(out: Path, as_json: bool, **options: Any) -> None:
    """Recompute a merged model's tensors in float64.

    OUT is the folder of a merge; lines_report.json in it names the recipe and the inputs, whose
    relative paths are relative to the current folder. Tensors are computed again in float64 by
    formulas that the merge does not use, and an entry is wrong where it is further off than
    rounding explains. Entries that rounding made the merge keep, drop or sign otherwise are
    counted apart, as flips. Before that, files are compared with the report by size and header.

    \b
    Exit status:
      0  every tensor that was recomputed is right
      1  one is not, or files or report are not those of the merge
      2  wrong usage
    """  # noqa: D301 - the escape is click's mark, as a character
    import mergekit_lines

    mergekit_lines.register()
    from mergekit_lines.host.process import silent
    from mergekit_lines.verify.sample import Choice
    from mergekit_lines.verify.verify import verify as recompute

    with silent():
        verdict = recompute(out, Choice(**options))
    if as_json:
        click.echo(visible_json(verdict.to_dict()))
    else:
        from mergekit_lines.verify.show import show_verdict

        show_verdict(verdict, str(out))
    if not verdict.right:
        wrong = [one for one in verdict.checked if not one.right]
        raise LinesError(_why(out, len(wrong)))


def _why(out: Path, wrong: int) -> str:
    if not wrong:
        return f"{out}: no tensor could be recomputed, so nothing is verified."
    tensors = "1 tensor is" if wrong == 1 else f"{wrong} tensors are"
    return (
        f"{out}: {tensors} not what recipe and inputs give. Weights were changed since the merge, "
        f"in OUT or in an input: restore them, or merge again."
    )
