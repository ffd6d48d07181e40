"""``mergekit-lines show``: a page of what a search measured."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_lines.errors import tell


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page.  [default: DIR/show.html]",
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    help="Score the points by this too, as of sweep; as often as you like.  [default: mean]",
)
def show(folder: Path, out: Path | None, objectives: tuple[str, ...]) -> None:
    """Make a page to look at of a sweep, search or soup.

    DIR is the --out of sweep, search, soup or greedy; one that still runs is shown as far as it
    is. One HTML file that loads nothing: hover over a point for its settings and scores, choose
    what is drawn, switch the front and the baselines off and on, click a point and copy its
    recipe. Plotly comes with `pip install 'mergekit-lines[plot]'`.
    """
    from mergekit_lines.search.showing import PAGE
    from mergekit_lines.search.showing import show as write

    path = out or folder / PAGE
    count = write(folder, path, objectives)
    tell(f"page of {count} point{'s' * (count > 1)}: {path}")
