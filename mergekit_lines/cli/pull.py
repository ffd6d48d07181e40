"""``mergekit-lines pull``: the recipe of a model on the Hub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mergekit_lines.errors import LinesError, visible
from mergekit_lines.files import write_whole


@click.command()
@click.argument("repo", metavar="USER/NAME")
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--pin", is_flag=True, help="Name the commits that were merged, where known.")
@click.option("--force", is_flag=True, help="Write over RECIPE if it is there.")
def pull(repo: str, recipe: Path, pin: bool, force: bool) -> None:
    """Take the recipe out of a model on the Hub.

    USER/NAME is a model merged by mergekit, ours or not, and may end in @REVISION. Its recipe is
    written to the file RECIPE, and looked at: which models it needs, what would be downloaded,
    and for what a merge would be refused here. No weight is downloaded.
    """
    with _writing(recipe):  # a name too long, for one
        is_there = recipe.exists()
    if is_there and not force:
        raise LinesError(f"{recipe}: is there already. Choose another file, or give --force.")
    if not recipe.parent.is_dir():
        raise LinesError(f"{recipe}: there is no folder {recipe.parent}. Make it first.")
    import mergekit_lines

    mergekit_lines.register()
    from mergekit_lines.host.process import silent
    from mergekit_lines.hub.pull import pull_recipe

    with silent():
        pulled = pull_recipe(repo, pin=pin)
    with _writing(recipe):
        write_whole(recipe, pulled.text)
    _say(f"{recipe}: merge_method {pulled.method}, from {repo} at {pulled.commit[:12]}")
    for note in pulled.notes:
        _say(note)
    click.echo("it needs")
    width = max((len(need.name) for need in pulled.needs), default=0)
    for need in pulled.needs:
        size = f", {need.download:,} bytes to download" if need.download else ""
        _say(f"  {need.name:{width}}  {need.where}{size}")
    total = sum(need.download for need in pulled.needs)
    if total:
        click.echo(f"  {total:,} bytes in all")
    if pulled.problems:
        click.echo("as it is, a merge would be refused here:")
        for problem in pulled.problems:
            _say(f"  {problem}")
    command = shlex.join([*pulled.command, str(recipe), "OUT", *pulled.flags])
    _say(f"{'when that is mended, ' if pulled.problems else ''}run it with `{command}`")


def _say(line: str) -> None:
    click.echo(visible(line))


@contextmanager
def _writing(recipe: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LinesError(
            f"{recipe}: cannot be written ({error.strerror}). Choose another file."
        ) from error
