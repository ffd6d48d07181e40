"""``mergekit-lines inspect``: what a recipe will do, without reading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.cli.options.flags import PLANNED, merge_flags, with_values
from mergekit_lines.errors import LinesError, Problem, visible_json


@click.command()
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Check this output folder too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw the coefficients over depth (needs the extra [plot]).",
)
@click.option("--deep", is_flag=True, help="Read the weights once too, and tell what lies in them.")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.html",
    help="Write what --deep shows as one HTML page (needs the extra [plot]).",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tell what merge --workers N needs.",
)
@merge_flags(PLANNED, "As for the merge.")
def inspect(
    recipe: Path,
    out: Path | None,
    as_json: bool,
    plot: Path | None,
    deep: bool,
    page: Path | None,
    workers: int | None,
    **flags: Any,
) -> None:
    """Show what a recipe will do, without reading weights.

    RECIPE is a file for mergekit-yaml, or one of several documents for mergekit-multi. Only
    configs, indexes and the headers of shards are read, of models on the Hub too. Shown are
    each block's coefficient and size, what lies outside the blocks, and what the run will
    read, write and need; then every problem for which the merge would be refused.

    With --deep the weights are read once, those on the Hub downloaded: how far each model is
    from the base in every block, how they point together or against each other, how many
    directions their changes have, how much LiNeS keeps; and a warning for what makes merges
    fail. --plot then draws these over depth.

    RECIPE may be the OUT of a merge too: then its report is shown, which says what was done.

    \b
    Exit status:
      0  the merge would begin
      1  it would be refused, or none of the recipes is one of lines
      2  wrong usage
    """  # noqa: D301 - the escape is click's mark, as a character
    if plot is not None and plot.suffix.lower() != ".png":
        raise click.BadParameter(f"found {plot.name!r}, wanted FILE.png", param_hint="'--plot'")
    if page is not None and (not deep or page.suffix.lower() not in (".html", ".htm")):
        meaning = "FILE.html, together with --deep"
        raise click.BadParameter(f"found {page.name!r}, wanted {meaning}", param_hint="'--page'")
    if recipe.is_dir():
        _report(recipe, as_json, out or plot or (recipe if deep else None))
        return
    import mergekit_lines

    mergekit_lines.register()
    from mergekit.options import MergeOptions

    from mergekit_lines.host.process import silent
    from mergekit_lines.inspection.documents import inspect_file

    with silent():
        options = MergeOptions(quiet=True, **with_values(flags))
        inspections = inspect_file(recipe, options, out, deep=deep, workers=workers)
    if as_json:
        click.echo(_json(inspections, recipe))
    else:
        from mergekit_lines.inspection.tables import show

        show(inspections, str(recipe))
    problems = [
        problem.under(one.name) if one.name else problem
        for one in inspections
        for problem in one.problems
    ]
    if plot is not None:
        problems += _draw(inspections, plot, bool(problems), deep=deep)
    if page is not None and not problems:
        from mergekit_lines.inspection.page import write_page

        write_page(inspections, str(recipe), page)
    if problems:
        raise LinesError(problems)


def _report(folder: Path, as_json: bool, other: Path | None) -> None:
    """Show the report of a merged model."""
    from mergekit_lines.report.file import read_report

    report = read_report(folder)
    if other is not None:
        raise click.UsageError("--out, --plot, --deep are for recipes, and this is a merged model.")
    if as_json:
        click.echo(visible_json(report))
        return
    from mergekit_lines.report.show import show_report

    show_report(report, str(folder))


def _json(inspections: list[Any], recipe: Path) -> str:
    from mergekit_lines._version import __version__
    from mergekit_lines.inspection.findings import FORMAT

    documents = [one.to_dict() for one in inspections]
    head = {"format": FORMAT, "mergekit_lines": __version__, "recipe": str(recipe)}
    return visible_json({**head, "documents": documents})


def _draw(inspections: list[Any], path: Path, refused: bool, *, deep: bool) -> tuple[Problem, ...]:
    """Draw the picture; where the recipe is refused anyway, a failure is one more problem."""
    from mergekit_lines.inspection.landscape import draw_looks
    from mergekit_lines.inspection.plot import Panel, draw

    try:
        if deep and any(one.deep for one in inspections):
            draw_looks(inspections, f"--plot {path}", path)
        else:
            draw(list(map(Panel.of, inspections)), path)
    except LinesError as error:
        if not refused:
            raise
        return error.problems
    return ()
